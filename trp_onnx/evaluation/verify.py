"""Verification: the written file is opened again, checked, and run beside the original."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trp_onnx.errors import VerificationError
from trp_onnx.evaluation.comparison import OutputDifference, compare
from trp_onnx.evaluation.outputs import Told
from trp_onnx.graph.model import open_model, weight_bytes
from trp_onnx.graph.session import Arrays, run_model
from trp_onnx.graph.sizes import real_inputs
from trp_onnx.process.silence import silence

MAPPED_FROM = 512 * 2**20
"""Bytes of weights from which they are mapped while the model runs, not read."""


def reference_outputs(path: Path, model: ir.Model, feeds: Mapping[str, np.ndarray]) -> Arrays:
    """Outputs of the original file.

    Raises:
        ModelError: ONNX Runtime cannot load or run it.
    """
    return run_model(path, feeds, mapped=weight_bytes(model) > MAPPED_FROM)


def verify(
    written: Path,
    source: Path,
    original: ir.Model,
    feeds: Mapping[str, np.ndarray],
    expected: Arrays,
    told: Told | None = None,
) -> tuple[ir.Model, list[OutputDifference]]:
    """Open a written file again and hold it against the original.

    Args:
        written: The file.
        source: The original file; what onnx's checker says against that is no fault of ours.
        original: The model as it was opened.
        feeds: Inputs, from which `expected` was computed.
        expected: The original's outputs.
        told: What is known of them beside, see `output_kinds`.

    Returns:
        The model as read from the file, and the error of each output.

    Raises:
        VerificationError: It does not pass onnx's checker, has another interface, does not run, or gives
            NaN, infinity or another shape where the original does not; sizes that values decide on may differ.
    """
    reopened = open_model(written)
    complained = complaint(written)
    if complained and not complaint(source):
        raise VerificationError(f"the written file does not pass onnx's checker: {complained}")
    for kind, before, after in (
        ("inputs", real_inputs(original), real_inputs(reopened)),
        ("outputs", original.graph.outputs, reopened.graph.outputs),
    ):
        if [v.name for v in before] != [v.name for v in after]:
            raise VerificationError(f"the written file has other {kind} than the original")
    actual = run_model(written, feeds, mapped=weight_bytes(reopened) > MAPPED_FROM)
    return reopened, compare(original, expected, actual, told)


def complaint(path: Path) -> str | None:
    """What onnx's checker says against a file, in a line."""
    import onnx

    try:
        with silence():
            onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        return str(error).strip().splitlines()[0].rstrip(": ")
    return None
