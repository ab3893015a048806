"""Give layers other weights of the same shape, and add to their biases; the nodes stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.bias import bias_of
from trp_onnx.graph.layers import Layer
from trp_onnx.lowrank.linalg import Array
from trp_onnx.passes.factorise import Keep


class ReplaceWeightsPass(ir.passes.InPlacePass):
    """A layer gets initializers of its own, `<layer>/refitted.weight` and `<layer>/refitted.bias`."""

    def __init__(
        self, layers: Sequence[Layer], weights: Mapping[str, tuple[Array, Array | None]], keep: Keep | None = None
    ) -> None:
        """Say what to do.

        Args:
            layers: From `find_layers`, of the same model.
            weights: By layer name the new weight, (G, N, C, *k), and what is added to the bias, (G N,), or None;
                layers without an entry stay.
            keep: How to store them; in memory by default.
        """
        super().__init__()
        self.layers = [layer for layer in layers if layer.name in weights]
        self.weights = weights
        self.keep = keep or (lambda name, array, dtype: ir.tensor(array.astype(dtype.numpy()), name=name))

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run."""
        for layer in self.layers:
            assert layer.layout is not None
            weight, shift = self.weights[layer.name]
            stored = layer.layout.from_canonical(weight)
            layer.node.replace_input_with(layer.layout.weight_index, self._initializer(model, layer, "weight", stored))
            if shift is None:
                continue
            bias = bias_of(layer)
            array = shift if bias is None else bias.array().astype(np.float64).reshape(-1) + shift
            if len(layer.node.inputs) < 3:
                layer.node.resize_inputs(3)
            layer.node.replace_input_with(2, self._initializer(model, layer, "bias", array))
        return ir.passes.PassResult(model, modified=bool(self.layers))

    def _initializer(self, model: ir.Model, layer: Layer, part: str, array: np.ndarray) -> ir.Value:
        assert layer.constant is not None and layer.constant.dtype is not None
        dtype, name = layer.constant.dtype, f"{layer.name}/refitted.{part}"
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype), const_value=self.keep(name, array, dtype)
        )
        model.graph.register_initializer(value)
        return value
