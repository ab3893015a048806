"""Data from files to batches that a model takes."""

from trp_onnx.data.augmentation import Augmentation
from trp_onnx.data.dataset import Dataset, open_data
from trp_onnx.data.npz import read_npz
from trp_onnx.data.preprocessing import Preprocessing, read_preprocessing

__all__ = ["Augmentation", "Dataset", "Preprocessing", "open_data", "read_npz", "read_preprocessing"]
