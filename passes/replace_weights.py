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
                layers without an entry stay.
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
        for name, layer in layers_named(model, self.weights).items():
            assert layer.layout is not None and layer.constant is not None and layer.constant.dtype is not None
            weight, shift = self.weights[name]
            arrays = {layer.layout.weight_index: ("weight", layer.layout.from_canonical(weight))}
            if shift is not None:
                bias = bias_of(layer)
                arrays[2] = ("bias", shift if bias is None else bias.array().astype(np.float64).reshape(-1) + shift)
                layer.node.resize_inputs(3)
            for index, (what, array) in arrays.items():
                tensor = self.keep(f"{name}/refitted.{what}", array, layer.constant.dtype)
                layer.node.replace_input_with(index, tape.initializer(tensor))
        return ir.passes.PassResult(model, modified=bool(self.weights))
