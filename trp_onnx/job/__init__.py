"""What a user asks for: how far to go, among which factors, for which device. Light: the help is made of it."""

from trp_onnx.job.device import Device
from trp_onnx.job.goal import Goal
from trp_onnx.job.network import NetworkOptions
from trp_onnx.job.search_space import SearchSpace
from trp_onnx.job.training import Training

__all__ = ["Device", "Goal", "NetworkOptions", "SearchSpace", "Training"]
