"""A pass whose result counts where the model still computes what it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from trp_onnx.errors import ModelError
from trp_onnx.graph.difference import largest_difference
from trp_onnx.graph.session import feeds_for
from trp_onnx.progress import note

TOLERANCE = 1e-3
"""Largest relative error of an output (2-norm) that reordering float32 sums may explain."""


class CheckedPass(ir.passes.FunctionalPass):
    """Another pass, undone with a note where it fails or where the outputs on generated inputs differ."""

    def __init__(
        self, inner: ir.passes.PassBase, done: str, input_shapes: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        """Configure the pass.

        Args:
            inner: Changes no model that it is given: a functional pass.
            done: What it has done, for the note: "simplified".
            input_shapes: Shapes for inputs with dynamic sizes.
        """
        super().__init__()
        self.inner, self.done, self.input_shapes = inner, done, input_shapes

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run; `modified` says whether the inner pass stands.

        Raises:
            ModelError: No inputs can be generated for the model.
        """
        feeds = feeds_for(model, self.input_shapes)
        try:
            result = self.inner(model)
        except ir.passes.PassError as error:
            return self._undone(model, str(error))
        try:
            worst = largest_difference(model, result.model, feeds)
        except ModelError as error:
            return self._undone(model, f"its check could not run ({error})")
        if not worst <= TOLERANCE:
            return self._undone(model, f"the outputs would differ by {worst:.1e}")
        return result

    def _undone(self, model: ir.Model, why: str) -> ir.passes.PassResult:
        note(f"not {self.done}: {why}")
        return ir.passes.PassResult(model.clone(), modified=False)
