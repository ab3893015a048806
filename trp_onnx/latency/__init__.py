"""Time: fair comparisons of models, where each layer spends it, and what its factors would."""

from trp_onnx.latency.benchmark import Bench, Contender, bench
from trp_onnx.latency.profiling import profile
from trp_onnx.latency.table import LatencyTable, Target, read_table, save_table
from trp_onnx.latency.timing import Ratio, Timing, compare, measure

__all__ = [
    "Bench",
    "Contender",
    "LatencyTable",
    "Ratio",
    "Target",
    "Timing",
    "bench",
    "compare",
    "measure",
    "profile",
    "read_table",
    "save_table",
]
