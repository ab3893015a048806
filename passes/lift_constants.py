"""Every constant becomes an initializer of the main graph: one form for all that follows."""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnx_ir.passes import common

from trp_onnx.errors import ModelError

logger = logging.getLogger(__name__)

_FIRST_IR_WITHOUT_INPUTS = 4


class LiftConstantsPass(ir.passes.InPlacePass):
    """Constant nodes, initializers of subgraphs and initializers that are inputs too -> initializers.

    Local functions are inlined first, so that their constants are reached and each call is a layer of
    its own. IR 3 wants every initializer to be an input as well; such a model moves up to IR 4, and the
    inputs that remain are those that a caller must feed.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run; `modified` says whether anything moved.

        Raises:
            ModelError: A call does not fit its function.
        """
        modified = False
        if len(model.functions):
            try:
                modified |= common.InlinePass()(model).modified
            except ValueError as error:  # of a call that does not fit its function
                raise ModelError(f"the model's functions cannot be inlined: {error}") from error
        listed = sum(value.is_initializer() for value in model.graph.inputs)
        for step in (
            common.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0),
            common.LiftSubgraphInitializersToMainGraphPass(),
            common.RemoveInitializersFromInputsPass(),
        ):
            modified |= step(model).modified
        if listed:
            logger.info("%d initializers were also inputs of the graph: now they are constants", listed)
            model.ir_version = max(model.ir_version or 0, _FIRST_IR_WITHOUT_INPUTS)
        return ir.passes.PassResult(model, modified)
