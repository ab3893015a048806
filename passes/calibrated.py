"""A float model whose activations' ranges are known, from which int8 models are made, whole or layer by layer.

ONNX Runtime's quantiser puts QuantizeLinear and DequantizeLinear around what it quantises (QDQ): int8 weights with a
scale for each output channel, activations with one scale and zero point. Those are uint8, which x86's kernels take as
they are (signed ones it turns over where only one node reads them, and runs the rest in float), or int8, which ARM's
prefer. Calibrating once serves them all.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.version_converter
import onnx_ir as ir

from trp_onnx.errors import ModelError
from trp_onnx.graph.inputs import Run
from trp_onnx.graph.model import to_proto, write_model
from trp_onnx.graph.session import Arrays
from trp_onnx.process.silence import quietly

_OPSET = 13
"""From which DequantizeLinear has a scale for each channel."""

QUANTISED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with weights: what is listed, judged, and kept in float where int8 hurts."""


def in_int8(model: onnx.ModelProto) -> set[str]:
    """The layers of a quantised model that are in int8: both operands come out of DequantizeLinear, weights stored so.

    A weight that is quantised while the model runs is stored in float, and counts as that.
    """
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    constant = set(stored)
    for node in model.graph.node:
        if node.input and all(name in constant for name in node.input if name):
            constant.update(node.output)

    def small(operand: str) -> bool:
        node = made.get(operand)
        if node is None or node.op_type != "DequantizeLinear":
            return False
        return operand not in constant or stored.get(node.input[0]) in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)

    layers = (node for node in model.graph.node if node.op_type in QUANTISED)
    return {node.name for node in layers if all(small(operand) for operand in node.input[:2])}


class Calibrated:
    """A model with the ranges of its activations."""

    def __init__(
        self, model: ir.Model, runs: Iterable[Run], *, signed: bool = False
    ) -> None:  # fmt: skip
        """Run it on calibration data.

        Args:
            model: Every node has a name of its own, BatchNormalization is folded.
            runs: What it runs on.
            signed: Whether activations are int8; uint8 otherwise.

        Raises:
            ModelError: It does not run, or the quantiser does not take it.
        """
        from onnxruntime.quantization import CalibrationMethod, QuantType, create_calibrator
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

        self._activations = QuantType.QInt8 if signed else QuantType.QUInt8
        self._operators = sorted({*QLinearOpsRegistry, *QDQRegistry})
        with tempfile.TemporaryDirectory() as folder, quietly():
            path = Path(folder) / "model.onnx"
            beside = write_model(_at_least(_OPSET, model), path)
            try:
                calibrator = create_calibrator(
                    path, self._operators, augmented_model_path=str(Path(folder) / "augmented.onnx"),
                    calibrate_method=CalibrationMethod.MinMax, use_external_data_format=beside,
                )  # fmt: skip
                calibrator.collect_data(_Reader(runs))
                self._ranges = calibrator.compute_data()
                self._model = load_model_with_shape_infer(path)
            except Exception as error:
                raise _refusal(error) from error
        self._unbounded = self._touching_infinity()
        self.layers = [node.name for node in self._model.graph.node if node.op_type in QUANTISED]
        self.refused: dict[str, str] = {}
        """Layers that the quantiser does not take, and what it says."""

    def _touching_infinity(self) -> set[str]:
        """Nodes that read or make an infinity, as a mask is: no scale holds one, so they stay in float."""
        infinite: set[str] = set()
        for name, found in self._ranges.items():
            if not all(np.isfinite(end).all() for end in found.range_value):
                infinite.add(name)
                found.lowest, found.highest = (np.zeros_like(end) for end in found.range_value)  # nothing reads them
        for tensor in self._model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and np.isinf(onnx.numpy_helper.to_array(tensor)).any():
                infinite.add(tensor.name)
        nodes = self._model.graph.node
        return {node.name for node in nodes if not infinite.isdisjoint((*node.input, *node.output))}

    def quantised(self, *, only: Collection[str] = (), kept: Collection[str] = ()) -> onnx.ModelProto:
        """The model in int8.

        Args:
            only: Nodes to quantise; all where none are named.
            kept: Layers to leave in float; what does not stand between two that are quantised stays in float too.

        Raises:
            ModelError: The quantiser does not take it.
        """
        try:
            return self._quantised(only, {*kept, *self.refused})
        except ModelError:
            if only:
                raise
        for name in self.layers:  # it stops at the first that it does not take, and does not say which
            try:
                self._quantised([name], set())
            except ModelError as error:
                self.refused[name] = str(error).partition(": ")[2]
        return self._quantised((), {*kept, *self.refused})

    def _quantised(self, only: Collection[str], left: set[str]) -> onnx.ModelProto:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        nodes = self._model.graph.node
        between = _reached(nodes, left) & _reached(reversed(nodes), left, backwards=True)
        left = left | {node.name for node in nodes if node.op_type not in QUANTISED and node.name not in between}
        left |= self._unbounded
        try:
            with quietly():
                quantizer = QDQQuantizer(
                    copy.deepcopy(self._model), True, False, QuantType.QInt8, self._activations, self._ranges,
                    list(only), sorted(left), self._operators, {},
                )  # fmt: skip
                quantizer.quantize_model()
        except Exception as error:
            raise _refusal(error) from error
        return _sorted(quantizer.model.model)


def _sorted(model: onnx.ModelProto) -> onnx.ModelProto:
    """In running order, by what bodies read as well, which the quantiser's own order is not."""
    found = ir.from_proto(model)
    found.graph.sort()
    return ir.to_proto(found)


def _at_least(opset: int, model: ir.Model) -> ir.Model:
    """The model, brought to an opset by onnx's own converter where it is older.

    Raises:
        ModelError: The converter does not know an operator.
    """
    version = model.opset_imports.get("", opset)
    if version >= opset:
        return model
    try:
        with quietly():
            return ir.from_proto(onnx.version_converter.convert_version(to_proto(model), opset))
    except Exception as error:
        raise ModelError(
            f"int8 with a scale for each channel needs opset {opset}, and onnx cannot bring the model there from "
            f"{version}: {str(error).splitlines()[0][:200]}; export it with a newer one"
        ) from error


def _reached(nodes: Iterable[onnx.NodeProto], left: Collection[str], *, backwards: bool = False) -> set[str]:
    """Names of the nodes into which an int8 layer's output flows with no layer in between.

    Args:
        nodes: In running order; in reverse where `backwards`.
        left: Layers in float.
        backwards: The nodes from which something flows into an int8 layer.
    """
    flowing: set[str] = set()
    found: set[str] = set()
    for node in nodes:
        sources, targets = (node.output, node.input) if backwards else (node.input, node.output)
        reached = not flowing.isdisjoint(sources)
        if reached:
            found.add(node.name)
        if node.name not in left if node.op_type in QUANTISED else reached:
            flowing.update(name for name in targets if name)
    return found


class _Reader:
    """What the calibrator reads from."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._rest: Iterator[Arrays] = (run.feeds for run in runs)

    def get_next(self) -> Arrays | None:
        return next(self._rest, None)


def _refusal(error: Exception) -> ModelError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return ModelError(f"the model cannot be quantised: {reason}")
