"""How far a network's outputs moved: one number that small changes already show, and the share of answers that agree.

With z the original's output along its axis of classes, channels or components, z' the other's, a mean over all that
stands beside that axis (samples, tokens, pixels):

                 divergence                                                     agreement, 0 to 1
SCORES           mean KL(softmax(z / T) || softmax(z' / T))                     mean [arg max z = arg max z']
PROBABILITIES    the same of log z                                              the same
UNIT_VECTORS     1 - mean cos(z, z')                                            mean cos(z, z')
VALUES, BOXES    mean over channels c of mean((z_c - z'_c)^2) / s_c^2           1 - that
DISCRETE         share of elements that differ                                  share of equal ones
ITEMS            1 - |A and B| / |A or B| of whole numbers, as multisets; of    1 - that
                 floats the mean over both sides of min(1, that of VALUES from the nearest item of the other)

The spread s_c of a channel is its standard deviation over all places, so that boxes in pixels and scores between 0 and
1 count alike; that of a constant channel is the root of its mean square. Too few places for a spread (`FEW`) leave the
mean square of the whole. Divergences of several outputs add up; of their agreements the least counts.

An infinity is an answer (a mask, the logarithm of nothing): it is equal to the same one, and anything else in its place
is ruin. NaN is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from trp_onnx.errors import ModelError
from trp_onnx.evaluation.outputs import Output, OutputKind, Value, channel_axis, floats, is_float, output_kinds, runs_of

SURE = 0.9
"""Scores are divided by 2 until the mean of the largest probability is at most this: the divergence of a network
that is sure of every answer stays near zero until answers flip."""

RUINED = 1e3
"""Of outputs that are no numbers any more; far above anything that a plan would accept."""

FEW = 8
"""Values of a channel that make a spread at the least."""

CONSTANT = 1e-6
"""Part of a channel's mean square below which its variance is none."""

_TINY = 1e-30

_FAR = 1e4
"""By how much the score of a class that is ruled out is below all others: its probability is 0 at any temperature."""


class Divergence:
    """The divergence from one network's outputs, of any number of others."""

    def __init__(self, expected: Mapping[str, Value], kinds: Mapping[str, Output] | None = None) -> None:
        """Compute what depends on the original alone.

        Args:
            expected: Its outputs by name, as `joined` gives them.
            kinds: What they are, see `output_kinds`; those that are missing are not measured.

        Raises:
            ModelError: An expected output holds NaN or nothing but infinities, or there is none to measure.
        """
        kinds = output_kinds(None, expected) if kinds is None else kinds
        self._measures = {name: _measure(name, value, kinds[name]) for name, value in expected.items() if name in kinds}
        if not self._measures:
            raise ModelError("the model has no output that can be measured")

    def __call__(self, actual: Mapping[str, Value]) -> float:
        """How far these moved, of the same samples."""
        return min(RUINED, sum(measure(actual[name]) for name, measure in self._measures.items()))


def divergence(
    expected: Mapping[str, Value], actual: Mapping[str, Value], kinds: Mapping[str, Output] | None = None
) -> float:
    """How far outputs moved; both by name, of the same samples. See `Divergence`.

    Raises:
        ModelError: An expected output holds NaN or nothing but infinities, or there is none to measure.
    """
    return Divergence(expected, kinds)(actual)


def agreement(
    expected: Mapping[str, Value], actual: Mapping[str, Value], kinds: Mapping[str, Output] | None = None
) -> float:
    """How much of the answers stayed the same, 0 to 1; of several outputs the least.

    Raises:
        ModelError: There is no output to measure.
    """
    found = agreements(expected, actual, kinds)
    if not found:
        raise ModelError("the model has no output that can be measured")
    return min(found.values())


def agreements(
    expected: Mapping[str, Value], actual: Mapping[str, Value], kinds: Mapping[str, Output] | None = None
) -> dict[str, float]:
    """How much of each output stayed the same, 0 to 1; what that means of each kind stands above."""
    kinds = output_kinds(None, expected) if kinds is None else kinds
    return {name: agreement_of(value, actual[name], kinds[name]) for name, value in expected.items() if name in kinds}


def channel_errors(before: np.ndarray, after: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Mean square error of each channel over the square of its spread: (C,); one that is no number is infinite.

    Args:
        before: The original's output.
        after: The other's, of the same shape.
        axis: The axis of channels, see `channel_axis`.
    """
    axis = channel_axis(before) if axis is None else axis
    return _channel_errors(*(as_channels(side, axis) for side in without_shared_infinities(before, after)))


def without_shared_infinities(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as floats, zero where both hold the same infinity: there they are equal."""
    a, b = floats(before), floats(after)
    infinite = np.isinf(a)
    if a.shape != b.shape or not infinite.any():
        return a, b
    shared = infinite & (a == b)
    return np.where(shared, 0, a), np.where(shared, 0, b)


def _channel_errors(before: np.ndarray, after: np.ndarray, spreads: np.ndarray | None = None) -> np.ndarray:
    spreads = squared_spreads(before) if spreads is None else spreads
    with np.errstate(invalid="ignore", over="ignore"):
        errors: np.ndarray = np.square(before - after).mean(axis=0, dtype=np.float64) / spreads
    return np.asarray(np.nan_to_num(errors, nan=np.inf, posinf=np.inf))


def as_channels(value: np.ndarray, axis: int) -> np.ndarray:
    """As (places, channels), floats."""
    z = floats(value)
    return z.reshape(-1, 1) if axis < 0 or z.ndim <= axis else np.moveaxis(z, axis, -1).reshape(-1, z.shape[axis])


@np.errstate(over="ignore", invalid="ignore")  # squares beyond float32 are infinite
def squared_spreads(channels: np.ndarray) -> np.ndarray:
    """s_c^2 of (places, channels), see the module: (C,), none of them 0."""
    square = np.square(channels).mean(axis=0, dtype=np.float64) if len(channels) else np.zeros(channels.shape[1])
    if len(channels) < FEW:
        square[:] = square.mean()
    else:
        variance = channels.var(axis=0, dtype=np.float64)
        square = np.where(variance > CONSTANT * square, variance, square)
    used = square > 0
    return np.asarray(np.where(used, square, square[used].mean() if used.any() else 1.0))


def _measure(name: str, value: Value, output: Output) -> Callable[[Value], float]:
    """The divergence of one output from what is expected of it."""
    numbers = [floats(run) for run in runs_of(value) if is_float(run)]
    if any(np.isnan(z).any() or (z.size and np.isinf(z).all()) for z in numbers):
        raise ModelError(f"output '{name}' of the model is NaN or infinite on the data: nothing can be measured by it")
    if isinstance(value, list) or not (output.chooses or output.has_channels):
        may = any(np.isinf(z).any() for z in numbers)
        return lambda after: RUINED if _ruined(after, may) else 1.0 - agreement_of(value, after, output)
    before = floats(value)
    infinite = np.isinf(before)
    finite = _filling(before, infinite, output)
    measure = (_errors if output.has_channels else _kl)(finite(before), output)

    def measured(after: Value) -> float:
        z = floats(runs_of(after)[0])
        same = z.shape == before.shape and not np.isnan(z).any() and np.array_equal(np.isinf(z), infinite)
        return measure(finite(z)) if same and np.array_equal(z[infinite], before[infinite]) else RUINED

    return measured


def _ruined(value: Value, infinities: bool) -> bool:
    """Whether it holds NaN, or where there shall be none infinities."""
    is_bad = np.isnan if infinities else lambda z: ~np.isfinite(z)
    return any(is_float(run) and bool(is_bad(floats(run)).any()) for run in runs_of(value))


def _filling(before: np.ndarray, infinite: np.ndarray, output: Output) -> Callable[[np.ndarray], np.ndarray]:
    """Puts numbers in the place of infinities: scores far below and above all others, else zero."""
    if not infinite.any():
        return lambda z: z
    fill = np.zeros_like(before)
    if output.kind is OutputKind.SCORES:
        far = _FAR + np.abs(before).max(where=~infinite, initial=0)
        fill = np.where(before < 0, -far, far).astype(before.dtype)
    return lambda z: np.where(infinite, fill, z)


def _errors(before: np.ndarray, output: Output) -> Callable[[np.ndarray], float]:
    channels = as_channels(before, output.axis)
    spreads = squared_spreads(channels)
    return lambda after: float(_channel_errors(channels, as_channels(after, output.axis), spreads).mean())


def _kl(value: np.ndarray, output: Output) -> Callable[[np.ndarray], float]:
    z = _logits(value, output)
    temperature, p = 1.0, _log_softmax(z.copy())
    while np.exp(p.max(axis=1)).mean() > SURE:
        temperature *= 2
        p = _log_softmax(z / temperature)
    weights = np.exp(p)
    entropy = float(-np.einsum("ij,ij->", weights, p, dtype=np.float64) / len(p))

    def measure(after: np.ndarray) -> float:
        q = _log_softmax(_logits(after, output) / temperature)
        cross = float(-np.einsum("ij,ij->", weights, q, dtype=np.float64) / len(q))
        return max(0.0, cross - entropy)

    return measure


def probabilities(value: np.ndarray, output: Output) -> np.ndarray:
    """Of SCORES or PROBABILITIES, as (places, classes)."""
    z = as_channels(value, output.axis)
    return z if output.kind is OutputKind.PROBABILITIES else np.exp(_log_softmax(z.copy()))


def _logits(value: np.ndarray, output: Output) -> np.ndarray:
    """Scores, or the logarithms of probabilities, as (places, classes)."""
    z = as_channels(value, output.axis)
    return np.log(np.maximum(z, _TINY)) if output.kind is OutputKind.PROBABILITIES else z


@np.errstate(invalid="ignore")  # of infinite scores nothing is told
def _log_softmax(z: np.ndarray) -> np.ndarray:
    """In place."""
    z -= z.max(axis=1, keepdims=True)
    z -= np.log(np.exp(z).sum(axis=1, keepdims=True, dtype=np.float64)).astype(z.dtype)
    return z


def agreement_of(before: Value, after: Value, output: Output) -> float:
    """How much of one output stayed the same, 0 to 1; see the module."""
    if isinstance(before, list) or isinstance(after, list) or output.kind is OutputKind.ITEMS:
        pairs = list(zip(runs_of(before), runs_of(after), strict=False))
        return float(np.mean([items_agree(a, b, item_axis(a, b, output)) for a, b in pairs])) if pairs else 0.0
    if before.shape != after.shape:
        return items_agree(before, after, item_axis(before, after, output))
    if not before.size:
        return 1.0
    if output.chooses:
        return float(np.mean(before.argmax(output.axis) == after.argmax(output.axis)))
    if output.kind is OutputKind.UNIT_VECTORS:
        a, b = as_channels(before, output.axis), as_channels(after, output.axis)
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosine = np.einsum("ij,ij->i", a, b) / np.maximum(lengths, _TINY)
        return float(np.clip(np.nan_to_num(cosine).mean(), 0, 1))
    if output.has_channels:
        return float(np.clip(1 - channel_errors(before, after, output.axis).mean(), 0, 1))
    return float(np.mean(before == after))


def item_axis(before: np.ndarray, after: np.ndarray, output: Output) -> int:
    """The axis along which items stand: that of ITEMS, else the first whose size differs."""
    if output.kind is OutputKind.ITEMS:
        return max(0, output.axis)
    sizes = zip(before.shape, after.shape, strict=False)
    return next((axis for axis, (was, now) in enumerate(sizes) if was != now), 0)


def items_agree(before: np.ndarray, after: np.ndarray, axis: int) -> float:
    """How much two sets of items, along an axis, have in common, 0 to 1; see ITEMS in the module."""
    rows = items(before, after, axis)
    if rows is None:
        return 0.0
    a, b = rows
    if not len(a) and not len(b):
        return 1.0
    if not is_float(before):
        first, second = (Counter(map(tuple, side.tolist())) for side in rows)
        return (first & second).total() / (first | second).total()
    scale = np.sqrt(squared_spreads(floats(a)) * a.shape[1])
    errors = [np.minimum(1, squared_distances(x / scale, y / scale, missing=1.0)) for x, y in ((a, b), (b, a))]
    return 1.0 - float(np.concatenate(errors).mean())


def items(before: np.ndarray, after: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Both as (items, entries of one); None where they are no such sets of the same kind."""
    if before.ndim != after.ndim or before.ndim <= axis:
        return None
    a, b = (
        np.moveaxis(value, axis, 0).reshape(value.shape[axis], value.size // max(1, value.shape[axis]))
        for value in (before, after)
    )
    if len(a) and len(b) and a.shape[1] != b.shape[1]:
        return None
    return a, b if len(b) else np.zeros((0, a.shape[1]), b.dtype)


@np.errstate(over="ignore", invalid="ignore")  # squares beyond float32 are infinite
def squared_distances(a: np.ndarray, b: np.ndarray, missing: float | np.ndarray) -> np.ndarray:
    """Of each row of a from the nearest row of b, `missing` where b has none."""
    if not len(b) or not len(a):
        return np.broadcast_to(missing, len(a))
    from scipy.spatial import KDTree

    distances, _ = KDTree(np.nan_to_num(b)).query(np.nan_to_num(a))
    return np.asarray(np.square(distances))
