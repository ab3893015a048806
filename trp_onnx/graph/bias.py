"""The bias of a layer, and whether it may take up a change of the mean."""

from __future__ import annotations

from trp_onnx.graph.constants import Constant, resolve_constant
from trp_onnx.graph.layers import Layer


def bias_of(layer: Layer) -> Constant | None:
    """The bias of a Conv or Gemm, where it is constant."""
    inputs = layer.node.inputs
    found = resolve_constant(inputs[2] if len(inputs) > 2 else None, layer.constant.opset if layer.constant else 0)
    return found if isinstance(found, Constant) else None


def corrects_bias(layer: Layer) -> bool:
    """Whether a layer, and all that share its weight, have or can be given a bias to take up a change of the mean."""
    node = layer.node
    if layer.op == "Conv":
        users = {node} if layer.constant is None else {node, *(use.node for use in layer.constant.value.uses())}
        opset = layer.constant.opset if layer.constant is not None else 0
        biases = [user.inputs[2] for user in users if user.op_type == "Conv" and len(user.inputs) > 2]
        return all(bias is None or isinstance(resolve_constant(bias, opset), Constant) for bias in biases)
    if layer.op != "Gemm" or layer.layout is None or layer.layout.on_left or layer.geometry is None:
        return False
    if any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return False
    bias = bias_of(layer)
    return bias is not None and bias.array().shape in ((layer.geometry.out_channels,), (1, layer.geometry.out_channels))
