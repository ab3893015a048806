"""Layers of the same name get a number to keep: plans go by names, and the numbers must not move when a layer goes."""

from __future__ import annotations

import onnx_ir as ir

from trp_onnx.graph.layers import named_nodes


class UniqueNamesPass(ir.passes.InPlacePass):
    """The second node `conv` becomes `conv#2`; `NameFixPass` of onnx_ir tells apart those of one graph alone."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run; `modified` says whether two layers had the same name."""
        modified = False
        for name, node in named_nodes(model).items():
            if name not in (node.name, node.outputs[0].name, node.op_type):
                node.name, modified = name, True
        return ir.passes.PassResult(model, modified)
