"""Bring a model into the one form that everything later understands.

Inline functions and lift constants, simplify, fold BatchNormalization, drop what is unused. The result
computes the same function under the same inputs, outputs, opset imports and metadata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from trp_onnx.errors import TrpOnnxError
from trp_onnx.passes import (
    CheckedPass,
    CleanUpPass,
    FoldBatchNormPass,
    LiftConstantsPass,
    SimplifyPass,
    UniqueNamesPass,
)
from trp_onnx.passes.simplify import MOST_NODES
from trp_onnx.progress import note


def normalise(
    model: ir.Model,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    simplify: bool = True,
    fold_batch_norm: bool = True,
) -> ir.Model:
    """Normalise a model that was just opened; it is changed in place where that is possible.

    Args:
        model: From `open_model`.
        input_shapes: Shapes for inputs with dynamic sizes, for the numerical check of the simplifier.
        simplify: Whether to run onnx-simplifier; a note says where it was not (see `progress.note`).
        fold_batch_norm: Whether to fold BatchNormalization; training keeps it until the end.

    Raises:
        ModelError: A call does not fit its function, or no inputs can be generated.
    """
    passes: list[ir.passes.PassBase] = [LiftConstantsPass()]
    if simplify and len(model.graph) > MOST_NODES:  # said before it is copied to no end
        note(f"not simplified: onnx-simplifier takes too long for {len(model.graph)} nodes")
    elif simplify:
        passes += [CheckedPass(SimplifyPass(), "simplified", input_shapes), LiftConstantsPass()]
    if fold_batch_norm:
        passes.append(FoldBatchNormPass())
    try:
        return ir.passes.Sequential(*passes, CleanUpPass(), UniqueNamesPass())(model).model
    except ir.passes.PassError as error:
        if isinstance(error.__cause__, TrpOnnxError):
            raise error.__cause__ from None
        raise
