"""Fold BatchNormalization at inference into the layer before it.

    y = gamma (W x + b - mean) / sqrt(var + eps) + beta  =  (s W) x + (s (b - mean) + beta),
    s = gamma / sqrt(var + eps)

The rules of onnxscript do the same but give the folded node a new name, and ours are what the per-layer
map and every later report go by. We also fold inside subgraphs and compute in float64.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from trp_onnx.passes.free_names import free_name

logger = logging.getLogger(__name__)


class FoldBatchNormPass(ir.passes.InPlacePass):
    """BatchNormalization(Conv | ConvTranspose | Gemm) -> the layer alone, under its own name."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run; a BatchNormalization that stays is logged with its reason."""
        count = 0
        for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
                continue
            reason = _obstacle(node)
            if reason:
                logger.debug("BatchNormalization '%s' stays: %s", node.name, reason)
                continue
            _fold(model, node)
            count += 1
        return ir.passes.PassResult(model, modified=count > 0)


def _obstacle(norm: ir.Node) -> str | None:
    """Why this BatchNormalization cannot be folded, or None."""
    source = norm.inputs[0]
    layer = source.producer() if source is not None else None
    if layer is None or layer.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return "no Conv, ConvTranspose or Gemm before it"
    if source is None or len(source.uses()) > 1 or source.is_graph_output():
        return f"'{layer.name}' feeds other nodes too"
    if norm.attributes.get_int("training_mode", 0) or any(value.uses() for value in norm.outputs[1:]):
        return "it is in training mode"
    constants = [*norm.inputs[1:5], *layer.inputs[1:3]]
    for value in constants:
        if value is not None and value.const_value is None:
            return f"'{value.name}' is not constant"
    weight = layer.inputs[1]
    if weight is None or len(weight.uses()) > 1:
        return f"the weight of '{layer.name}' is shared"
    return _misfit(norm, layer)


def _misfit(norm: ir.Node, layer: ir.Node) -> str | None:
    """What of a damaged model does not fit together, or None."""
    channels = _channels(layer)
    if [_shape(value) for value in norm.inputs[1:5]] != [(channels,)] * 4:
        return f"its statistics are not those of the {channels} channels of '{layer.name}'"
    bias = _shape(layer.inputs[2]) if len(layer.inputs) > 2 else None
    if bias not in (None, (channels,)) and (layer.op_type != "Gemm" or bias not in ((), (1,), (1, 1), (1, channels))):
        return f"the bias of '{layer.name}' is not one number a channel"
    return None


def _channels(layer: ir.Node) -> int:
    """How many channels come out of a layer with a constant weight."""
    weight = _shape(layer.inputs[1]) or (0,)
    if layer.op_type == "ConvTranspose":
        return weight[1] * layer.attributes.get_int("group", 1)
    return weight[-1 if layer.op_type == "Gemm" and not layer.attributes.get_int("transB", 0) else 0]


def _shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of a constant."""
    return None if value is None or value.const_value is None else tuple(value.const_value.shape.numpy())


def _array(value: ir.Value | None) -> np.ndarray:
    assert value is not None and value.const_value is not None
    return np.asarray(value.const_value.numpy(), dtype=np.float64)


def _fold(model: ir.Model, norm: ir.Node) -> None:
    source = norm.inputs[0]
    assert source is not None
    layer = source.producer()
    assert layer is not None
    gamma, beta, mean, variance = (_array(value) for value in norm.inputs[1:5])
    scale = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))

    weight_value = layer.inputs[1]
    assert weight_value is not None and weight_value.const_value is not None
    dtype = weight_value.const_value.dtype
    weight = _scale_outputs(layer, _array(weight_value), scale)
    bias_value = layer.inputs[2] if len(layer.inputs) > 2 else None
    bias = _array(bias_value) if bias_value is not None else np.zeros_like(mean)
    gemm_beta = layer.attributes.get_float("beta", 1.0) if layer.op_type == "Gemm" else 1.0
    bias = (gemm_beta * bias - mean) * scale + beta
    if gemm_beta != 1.0:
        del layer.attributes["beta"]

    name = layer.name or norm.outputs[0].name or "layer"
    layer.resize_inputs(3)
    tape = ir.tape.Tape(model.graph)
    for index, what, array in ((1, "weight", weight), (2, "bias", bias)):
        free = free_name(f"{name}/folded.{what}", model.graph.initializers)  # taken by a norm that was folded before
        tensor = ir.tensor(array.astype(dtype.numpy()), name=free)
        layer.replace_input_with(index, tape.initializer(tensor))

    # The layer now computes what the normalisation did; readers keep the name they know.
    graph = norm.graph
    assert graph is not None
    ir.convenience.replace_nodes_and_values(graph, norm, [norm], [], norm.outputs[:1], [source])


def _scale_outputs(layer: ir.Node, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Multiply each output channel of a stored weight by its scale."""
    if layer.op_type == "Conv":
        return np.asarray(weight * scale.reshape(-1, *[1] * (weight.ndim - 1)))
    if layer.op_type == "ConvTranspose":  # stored (G C, N, *k)
        groups = layer.attributes.get_int("group", 1)
        grouped = weight.reshape(groups, -1, *weight.shape[1:])
        per_group = scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
        return np.asarray(grouped * per_group).reshape(weight.shape)
    return np.asarray(weight * (scale[:, None] if layer.attributes.get_int("transB", 0) else scale))
