"""Weights that are computed from constants (behind a Transpose, a Reshape) become initializers of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.layers import Layer


class FoldWeightsPass(ir.passes.InPlacePass):
    """What stood behind such a weight stays where other nodes use it, and is left for `CleanUpPass` elsewhere."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        """`layers`: from `find_layers`, of the same model; to be found anew afterwards."""
        super().__init__()
        self.layers = [layer for layer in layers if layer.constant is not None and layer.constant.nodes]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run."""
        folded: set[ir.Value] = set()
        for layer in self.layers:
            assert layer.constant is not None
            value = layer.constant.value
            if value in folded:
                continue
            array = np.ascontiguousarray(layer.constant.array())
            name = f"{value.name}/folded"
            fresh = ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
                const_value=ir.tensor(array, name=name),
            )
            model.graph.register_initializer(fresh)
            value.replace_all_uses_with(fresh)
            folded.add(value)
        return ir.passes.PassResult(model, modified=bool(folded))
