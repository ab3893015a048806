"""Drop what nothing uses any more; inputs, outputs, opset imports and metadata stay as they are."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common


class CleanUpPass(ir.passes.InPlacePass):
    """Remove nodes and initializers without a use, and put the nodes in running order."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run; `modified` says whether anything was dropped."""
        modified = common.RemoveUnusedNodesPass()(model).modified
        model.graph.sort()
        return ir.passes.PassResult(model, modified)
