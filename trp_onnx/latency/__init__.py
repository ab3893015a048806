"""Time: fair comparisons of models, where each layer spends it, and what its factors would."""

from trp_onnx.latency.benchmark import Bench, bench
from trp_onnx.latency.profiling import profile
from trp_onnx.latency.table import LatencyTable, read_table, save_table
from trp_onnx.latency.timing import Ratio, Timing, compare, measure

__all__ = [
    "Bench",
    "LatencyTable",
    "Ratio",
    "Timing",
    "bench",
    "compare",
    "measure",
    "profile",
    "read_table",
    "save_table",
]
