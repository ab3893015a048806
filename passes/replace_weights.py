"""Give layers other weights of the same shape, and add to their biases; the nodes stay as they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.bias import bias_of
from trp_onnx.graph.layers import layers_named
from trp_onnx.lowrank.linalg import Array
from trp_onnx.passes.factorise import Keep, in_memory


class ReplaceWeightsPass(ir.passes.InPlacePass):
    """A layer gets initializers of its own, `<layer>/refitted.weight` and `<layer>/refitted.bias`."""

    def __init__(self, weights: Mapping[str, tuple[Array, Array | None]], keep: Keep = in_memory) -> None:
        """Configure the pass.

        Args:
            weights: By layer name the new weight, (G, N, C, *k), and what is added to the bias, (G N,), or None;
                layers without an entry stay. Layers that are given one and the same array share it.
            keep: How to store them; in memory by default.
        """
        super().__init__()
        self.weights, self.keep = weights, keep

    def requires(self, model: ir.Model) -> None:
        """Refuse a model without one of the layers, or with one of another shape."""
        layers = layers_named(model, self.weights)
        for name, (weight, _) in self.weights.items():
            if name not in layers or layers[name].shape != weight.shape:
                raise ir.passes.PreconditionError(f"the model has no layer '{name}' with a weight of {weight.shape}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run."""
        tape = ir.tape.Tape(model.graph)
        made: dict[tuple[int, object], ir.Value] = {}
        for name, layer in layers_named(model, self.weights).items():
            assert layer.layout is not None and layer.constant is not None and layer.constant.dtype is not None
            weight, shift = self.weights[name]
            node, index, key = layer.node, layer.layout.weight_index, (id(weight), layer.layout)
            if key not in made:
                own = _free(model, node, index, f"{name}/refitted.weight")
                made[key] = tape.initializer(self.keep(own, layer.layout.from_canonical(weight), layer.constant.dtype))
            node.replace_input_with(index, made[key])
            if shift is not None:
                bias = bias_of(layer)
                array = shift if bias is None else bias.array().astype(np.float64).reshape(-1) + shift
                node.resize_inputs(3)
                own = _free(model, node, 2, f"{name}/refitted.bias")
                node.replace_input_with(2, tape.initializer(self.keep(own, array, layer.constant.dtype)))
        return ir.passes.PassResult(model, modified=bool(self.weights))


def _free(model: ir.Model, node: ir.Node, index: int, name: str) -> str:
    """A name for what an input of a node becomes; what bears it goes, if nothing else uses it."""
    node.replace_input_with(index, None)
    known = model.graph.initializers
    while name in known:
        if not known[name].uses():
            known.pop(name)
        else:
            name += "'"
    return name
