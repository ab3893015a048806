"""Data from whatever a user has it in to what a model takes."""

from trp_onnx.data.augmentation import Augmentation
from trp_onnx.data.dataset import Dataset
from trp_onnx.data.npz import read_npz
from trp_onnx.data.opening import Data, open_data
from trp_onnx.data.preprocessing import Preprocessing, read_preprocessing

__all__ = ["Augmentation", "Data", "Dataset", "Preprocessing", "open_data", "read_npz", "read_preprocessing"]
