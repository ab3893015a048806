"""Time: fair comparisons of models, and where each layer spends it."""

from trp_onnx.latency.benchmark import Bench, bench
from trp_onnx.latency.timing import Ratio, Timing, compare

__all__ = ["Bench", "Ratio", "Timing", "bench", "compare"]
