"""What the mobile providers take of a model: ONNX Runtime's own checker, its verdict as data.

The checker counts the nodes of each connected group that a provider takes: many groups mean many hand-overs. It has
lists of operators for NNAPI and CoreML; XNNPACK's stand here, from that provider's page in ONNX Runtime's
documentation. XNNPACK runs on the CPU, where a hand-over costs next to nothing: for it the nodes count, not the groups.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trp_onnx.process.silence import quietly

if TYPE_CHECKING:
    import onnx

_XNNPACK = {
    "ai.onnx:AveragePool": "only 2-d",
    "ai.onnx:Conv": "only 2-d; weights and bias constant",
    "ai.onnx:ConvTranspose": "only 2-d; weights and bias constant",
    "ai.onnx:Gemm": "only 2-d",
    "ai.onnx:MatMul": "only 2-d",
    "ai.onnx:MaxPool": "only 2-d",
    "ai.onnx:QLinearConv": "only 2-d; weights, bias, scales and zero points constant",
    "ai.onnx:Resize": "only bilinear, over the sizes of a 4-d tensor",
    "ai.onnx:Softmax": "from opset 13 on only over the last axis",
    "com.microsoft:QLinearAveragePool": "only 2-d; scales and zero points constant",
    "com.microsoft:QLinearConvTranspose": "scales and zero points constant",
    "com.microsoft:QLinearSoftmax": "scales and zero points constant",
}


@dataclass(frozen=True)
class Usability:
    """What one provider takes of a model.

    Attributes:
        provider: "nnapi", "coreml" or "xnnpack".
        verdict: "yes", "maybe" or "no": whether it is worth trying there.
        when_fixed: The same if every size were fixed.
        nodes: Nodes of the model.
        taken: Those that the provider takes.
        groups: Connected groups of them, between which tensors are handed over.
        missing: Operators that it does not have.
        dynamic: Nodes that it leaves because their size is dynamic.
        caveats: What the checker does not check.
    """

    provider: str
    verdict: str
    when_fixed: str
    nodes: int
    taken: int
    groups: int
    missing: tuple[str, ...]
    dynamic: int
    caveats: tuple[str, ...]


class _Operators:
    """A list of operators in the checker's form."""

    def __init__(self, notes: dict[str, str]) -> None:
        self._notes = notes
        self._seen: set[str] = set()

    def is_op_supported(self, node: onnx.NodeProto) -> bool:
        name = f"{node.domain or 'ai.onnx'}:{node.op_type}"
        self._seen.add(name)
        return name in self._notes

    def get_caveats(self) -> list[str]:
        return [f"{name}: {self._notes[name]}" for name in sorted(self._seen) if self._notes.get(name)]


def check_usability(model: Path, style: str = "fixed") -> list[Usability]:
    """Hold a file against every mobile provider, optimised as an `.ort` file of that style is.

    A "fixed" file is: with the CPU's fusions in it, which the others do not know.
    """
    import onnx
    import onnxruntime as ort
    from onnxruntime.tools.mobile_helpers import usability_checker as checker
    from onnxruntime.tools.onnx_model_utils import ModelProtoWithShapeInfo, optimize_model

    ModelProtoWithShapeInfo._tmp_model_path = None  # its destructor reads it, also where its constructor failed
    with tempfile.TemporaryDirectory() as folder, quietly():
        basic, fused = Path(folder) / "basic.onnx", Path(folder) / "fused.onnx"
        optimize_model(model, basic, use_external_initializers=True)
        proto = ModelProtoWithShapeInfo(basic).model_with_shape_info
        if style == "fixed":
            shapes = proto.graph.value_info
            optimize_model(model, fused, ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, use_external_initializers=True)
            proto = onnx.load(fused)
            proto.graph.value_info.extend(shapes)  # onnx does not infer through the runtime's own operators
    checks: dict[str, Callable[[bool], Any]] = {
        "nnapi": lambda fixed: checker.check_nnapi_partitions(proto, fixed),
        "coreml": lambda fixed: checker.check_coreml_partitions(proto, fixed, "coreml_supported_mlprogram_ops.md"),
        "xnnpack": lambda fixed: checker.check_partitioning(proto.graph, _Operators(_XNNPACK), fixed, 4),
    }
    return [_usability(name, check(True), check(False)) for name, check in checks.items()]


def _usability(name: str, info: Any, when_fixed: Any) -> Usability:
    now, fixed = (found.suitability().name.lower() for found in (info, when_fixed))
    if name == "xnnpack":
        now, fixed = ("yes" if found.num_supported_nodes else "no" for found in (info, when_fixed))
    return Usability(
        name, now, fixed, info.num_nodes, info.num_supported_nodes, info.num_partitions,
        tuple(sorted(info.unsupported_ops)), info.nodes_unsupported_due_to_dynamic_input,
        tuple(" ".join(caveat.split()) for caveat in info.supported_ops_checker.get_caveats()),
    )  # fmt: skip
