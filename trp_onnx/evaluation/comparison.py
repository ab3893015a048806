"""How far each output of one model is from that of another, on the same inputs.

Arrays are held against each other place by place, the elements of a sequence one by one. Where values decide on a size
(NonZero, NonMaxSuppression), items are compared as a set, and a note says so: of whole numbers the share that is not in
both; floats by the distance of each item from the nearest of the other side, or from zero where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trp_onnx.errors import VerificationError
from trp_onnx.evaluation.divergence import (
    FEW,
    Divergence,
    channel_errors,
    item_axis,
    items,
    items_agree,
    squared_distances,
    without_shared_infinities,
)
from trp_onnx.evaluation.outputs import Output, OutputKind, Told, is_float, output_kinds
from trp_onnx.graph.batching import find_batching
from trp_onnx.graph.inputs import Samples
from trp_onnx.graph.session import Arrays, open_session, relative_error, run_session

SMALL, SHARE = 0.01, 0.02
"""Size of a channel, beside the largest, below which its error is hidden, and the least part of all that such are."""


@dataclass(frozen=True)
class OutputDifference:
    """How far one output moved.

    Attributes:
        name: The output.
        relative_error: `|y - y'|_2 / |y|_2` of floats; of whole numbers, booleans and strings the share that differs.
        measure: Which of the two: "relative error" or "share that differs".
        worst_channel: The channel that moved most, each held against its own spread (see `divergence`), so that large
            values do not hide small ones; None where there are no channels, or too few values to know their spread.
        worst_error: By how much: root mean square error over standard deviation.
        hidden_error: The same of all channels that are a hundredth as large as the largest, whose error the relative
            error of the whole does not show: scores beside boxes in pixels. None where there are none.
        note: What a reader should know of the comparison; empty for nothing.
        taken_for: What kind of output it is taken for, and why (see `outputs`).
    """

    name: str
    relative_error: float
    measure: str = "relative error"
    worst_channel: int | None = None
    worst_error: float | None = None
    hidden_error: float | None = None
    note: str = ""
    taken_for: str = ""


def compare(original: ir.Model, expected: Arrays, actual: Arrays, told: Told | None = None) -> list[OutputDifference]:
    """How far each output moved.

    Args:
        original: The model, whose graph says which sizes are free.
        expected: What it gives.
        actual: What the other one gives.
        told: What is known of outputs beside, see `output_kinds`.

    Raises:
        VerificationError: NaN, infinity or another shape where the original has none. The same infinity is equal.
    """
    kinds = output_kinds(original, expected, told)
    return [
        replace(_compare(value, expected, actual, kinds), taken_for=_taken_for(value.name or "", kinds))
        for value in original.graph.outputs
    ]


def _taken_for(name: str, kinds: Mapping[str, Output]) -> str:
    return next((str(kind) for key, kind in kinds.items() if key == name or key.startswith(f"{name}[")), "")


def _compare(value: ir.Value, expected: Arrays, actual: Arrays, kinds: Mapping[str, Output]) -> OutputDifference:
    name = value.name or ""
    before, after = (_elements(name, arrays) for arrays in (expected, actual))
    common = [key for key in before if key in after]
    for key in common:
        _check_shape(value, before[key], after[key])
    if not common:
        return OutputDifference(name, float(len(before) != len(after)), note=_note(name, before, after, kinds))
    if not is_float(before[common[0]]):
        shares = [share(before[key], after[key], kinds[key]) for key in common]
        return OutputDifference(
            name, float(np.mean(shares)), "share that differs", note=_note(name, before, after, kinds)
        )
    pairs = [paired(*without_shared_infinities(before[key], after[key]), kinds[key]) for key in common]
    a, b = (np.concatenate([pair[side].reshape(-1) for pair in pairs]) for side in (0, 1))
    error = relative_error(a, b)
    if not np.isfinite(error):
        raise VerificationError(f"output '{name}' of the written file has NaN or infinity where the original does not")
    by_channel = _by_channel(kinds[common[0]], *pairs[0]) if len(pairs) == 1 else (None, None, None)
    return OutputDifference(name, error, "relative error", *by_channel, _note(name, before, after, kinds))


def _elements(name: str, arrays: Arrays) -> Arrays:
    """The array of an output, or those of its elements."""
    return {key: array for key, array in arrays.items() if key == name or key.startswith(f"{name}[")}


def _check_shape(value: ir.Value, before: np.ndarray, after: np.ndarray) -> None:
    declared = value.shape if isinstance(value.type, ir.TensorType) else None
    sizes: Sequence[object] = tuple(declared) if declared is not None else (None,) * before.ndim
    same = before.ndim == after.ndim and all(
        was == now or not isinstance(size, int)
        for was, now, size in zip(before.shape, after.shape, sizes, strict=False)
    )
    if not same:
        raise VerificationError(
            f"output '{value.name}' of the written file has the shape {list(after.shape)}, that of the original "
            f"{list(before.shape)}"
        )


def share(before: np.ndarray, after: np.ndarray, output: Output) -> float:
    """The share of elements that differ, 0 to 1; of outputs whose size values decide on that of items."""
    if sized(before, after, output):
        return 1.0 - items_agree(before, after, item_axis(before, after, output))
    return float(np.mean(before != after)) if before.size else 0.0


def sized(before: np.ndarray, after: np.ndarray, output: Output) -> bool:
    """Whether values decide on its size."""
    return output.kind is OutputKind.ITEMS or before.shape != after.shape


@np.errstate(over="ignore", invalid="ignore")  # squares beyond float32 are infinite
def paired(before: np.ndarray, after: np.ndarray, output: Output) -> tuple[np.ndarray, np.ndarray]:
    """What is held against each other: the arrays, or each item and, of another size, what it is nearest to."""
    rows = items(before, after, item_axis(before, after, output)) if sized(before, after, output) else None
    if rows is None or not np.isfinite(after).all():
        return before, after
    lengths = [np.square(np.nan_to_num(side)).sum(axis=1) for side in rows]
    apart = [squared_distances(*sides, missing) for sides, missing in zip((rows, rows[::-1]), lengths, strict=True)]
    a = np.sqrt(np.concatenate(lengths))
    return a, a - np.sqrt(np.concatenate(apart))


@np.errstate(over="ignore", invalid="ignore")  # squares beyond float32 are infinite
def _by_channel(output: Output, before: np.ndarray, after: np.ndarray) -> tuple[int | None, float | None, float | None]:
    """The worst channel, its error, and that of the channels that larger ones hide."""
    channels = before.shape[output.axis] if before.ndim > 1 else 1
    if not output.has_channels or channels < 2 or before.size < FEW * channels:
        return None, None, None
    errors = channel_errors(before, after, output.axis)
    others = tuple(axis for axis in range(before.ndim) if axis != output.axis % before.ndim)
    sizes = np.sqrt(np.square(before).mean(axis=others, dtype=np.float64))
    small = (sizes > 0) & (sizes < SMALL * sizes.max())
    hidden = float(np.sqrt(errors[small].mean())) if small.mean() >= SHARE else None
    return int(errors.argmax()), float(np.sqrt(errors.max())), hidden


def _note(name: str, before: Arrays, after: Arrays, kinds: Mapping[str, Output]) -> str:
    if len(before) != len(after):
        return (
            f"output '{name}' has {len(after)} elements on the inputs it was verified on, the original {len(before)}: "
            "compared as far as both go"
        )
    differ = [key for key in before if sized(before[key], after[key], kinds[key])]
    if not differ:
        return ""
    key = differ[0]
    return (
        f"values decide on the size of output '{name}': it is {list(after[key].shape)} on the inputs it was verified "
        f"on, {list(before[key].shape)} in the original; compared as a set"
    )


def divergences_on(
    samples: Samples, original: Path, candidates: Sequence[Path], graph: ir.Model, told: Told
) -> list[float]:
    """How far each candidate's outputs moved from the original's, see `divergence`: the mean over samples.

    Raises:
        ModelError: One of them does not run, or there is no output that can be measured.
    """
    before, after = open_session(original), [open_session(candidate) for candidate in candidates]
    kinds, totals, count = None, np.zeros(len(after)), 0
    for run in find_batching(before, samples.longest, samples.inputs).split(samples.by_shape()):
        expected = run.counted(run_session(before, run.feeds))
        kinds = output_kinds(graph, expected, told) if kinds is None else kinds
        moved = Divergence(expected, kinds)
        totals += [run.count * moved(run.counted(run_session(session, run.feeds))) for session in after]
        count += run.count
    return [float(total) / max(1, count) for total in totals]
