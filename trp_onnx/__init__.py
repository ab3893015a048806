"""trp-onnx: low-rank compression of trained ONNX networks.

    import trp_onnx

    result = trp_onnx.compress("model.onnx", "small.onnx", trp_onnx.Goal(macs=0.5))
    print(result)

Names are loaded when they are first used: importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trp_onnx._version import __version__
from trp_onnx.errors import (
    DataError,
    ModelError,
    OutputError,
    RunnerError,
    TargetError,
    TrainingError,
    TrpOnnxError,
    UsageError,
    VerificationError,
)

if TYPE_CHECKING:
    from trp_onnx.commands.compress import compress
    from trp_onnx.commands.demo import demo
    from trp_onnx.commands.doctor import Diagnosis, doctor
    from trp_onnx.commands.inspect import Inspection, inspect
    from trp_onnx.commands.result import Compressed
    from trp_onnx.data import Dataset, Preprocessing, open_data
    from trp_onnx.edge import Export, export
    from trp_onnx.evaluation.evaluate import evaluate
    from trp_onnx.evaluation.metric import Metric, Score, Scores, metric
    from trp_onnx.job import Device, Goal, NetworkOptions, SearchSpace, Training
    from trp_onnx.latency import Bench, LatencyTable, bench, profile
    from trp_onnx.planning import Decision, LayerRule, Plan, read_rules
    from trp_onnx.quantization import Quantized, quantize
    from trp_onnx.report import Report
    from trp_onnx.training import TrainingOptions
    from trp_onnx.training.isolated_runtime import setup_training

_HOMES = {
    "Bench": "latency",
    "Compressed": "commands.result",
    "Dataset": "data",
    "Decision": "planning",
    "Device": "job",
    "Diagnosis": "commands.doctor",
    "Export": "edge",
    "Goal": "job",
    "Inspection": "commands.inspect",
    "LatencyTable": "latency",
    "LayerRule": "planning",
    "Metric": "evaluation.metric",
    "NetworkOptions": "job",
    "Plan": "planning",
    "Preprocessing": "data",
    "Quantized": "quantization",
    "Report": "report",
    "Score": "evaluation.metric",
    "Scores": "evaluation.metric",
    "SearchSpace": "job",
    "Training": "job",
    "TrainingOptions": "training",
    "bench": "latency",
    "compress": "commands.compress",
    "demo": "commands.demo",
    "doctor": "commands.doctor",
    "evaluate": "evaluation.evaluate",
    "export": "edge",
    "inspect": "commands.inspect",
    "metric": "evaluation.metric",
    "open_data": "data",
    "profile": "latency",
    "quantize": "quantization",
    "read_rules": "planning",
    "setup_training": "training.isolated_runtime",
}

__all__ = [
    "Bench",
    "Compressed",
    "DataError",
    "Dataset",
    "Decision",
    "Device",
    "Diagnosis",
    "Export",
    "Goal",
    "Inspection",
    "LatencyTable",
    "LayerRule",
    "Metric",
    "ModelError",
    "NetworkOptions",
    "OutputError",
    "Plan",
    "Preprocessing",
    "Quantized",
    "Report",
    "RunnerError",
    "Score",
    "Scores",
    "SearchSpace",
    "TargetError",
    "Training",
    "TrainingError",
    "TrainingOptions",
    "TrpOnnxError",
    "UsageError",
    "VerificationError",
    "__version__",
    "bench",
    "compress",
    "demo",
    "doctor",
    "evaluate",
    "export",
    "inspect",
    "metric",
    "open_data",
    "profile",
    "quantize",
    "read_rules",
    "setup_training",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'trp_onnx' has no attribute '{name}'")
    value = getattr(import_module(f"trp_onnx.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
