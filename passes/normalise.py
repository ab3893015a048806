"""Bring a model into the one form that everything later understands.

Inline functions and lift constants, simplify, fold BatchNormalization, drop what is unused. The result
computes the same function under the same inputs, outputs, opset imports and metadata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from trp_onnx.errors import ModelError
from trp_onnx.passes import CleanUpPass, FoldBatchNormPass, LiftConstantsPass, SimplifyPass
from trp_onnx.passes.simplify import MOST_NODES


def normalise(
    model: ir.Model,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    simplify: bool = True,
    fold_batch_norm: bool = True,
) -> tuple[ir.Model, list[str]]:
    """Normalise a model that was just opened; it is changed in place where that is possible.

    Args:
        model: From `open_model`.
        input_shapes: Shapes for inputs with dynamic sizes, for the numerical check of the simplifier.
        simplify: Whether to run onnx-simplifier.
        fold_batch_norm: Whether to fold BatchNormalization; training keeps it until the end.

    Returns:
        The normalised model, and notes that its owner should see.

    Raises:
        ModelError: A call does not fit its function.
    """
    notes: list[str] = []
    try:
        LiftConstantsPass()(model)
    except ValueError as error:  # of a call that does not fit its function
        raise ModelError(f"the model's functions cannot be inlined: {error}") from error
    if simplify and len(model.graph) > MOST_NODES:
        notes.append(f"not simplified: onnx-simplifier takes too long for {len(model.graph)} nodes")
    elif simplify:
        simplifier = SimplifyPass(input_shapes)
        model = simplifier(model).model
        LiftConstantsPass()(model)
        if simplifier.note:
            notes.append(simplifier.note)
    if fold_batch_norm:
        FoldBatchNormPass()(model)
    CleanUpPass()(model)
    return model, notes
