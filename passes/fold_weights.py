"""Weights that are computed from constants (behind a Transpose, a Reshape) become initializers of their own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.layers import layers_named


class FoldWeightsPass(ir.passes.InPlacePass):
    """What stood behind such a weight stays where other nodes use it, and is left for `CleanUpPass` elsewhere."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run; layers are to be found anew afterwards."""
        computed = {
            layer.constant.value: layer.constant
            for layer in layers_named(model).values()
            if layer.constant is not None and layer.constant.nodes
        }
        tape = ir.tape.Tape(model.graph)
        for value, constant in computed.items():
            array = np.ascontiguousarray(constant.array())
            folded = tape.initializer(ir.tensor(array, name=f"{value.name}/folded"))
            for node, index in tuple(value.uses()):  # not the graph: where it is an output too, it stays that
                node.replace_input_with(index, folded)
        return ir.passes.PassResult(model, modified=bool(computed))
