"""Moments of the patches of wide kernels as a product (see `lowrank.separable`), and whether they are one.

Only marginals are summed. Some patches are held out; on these a plain split of the weight shows what the product's
prediction of the error of the outputs is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.schemes import SCHEMES, Geometry
from trp_onnx.lowrank.separable import Separable

TRUSTED = 0.5
"""Part of the true error by which the predicted one may be off."""

_FAR = 1e15  # from here on squares near the end of float32

HELD_OUT, HELD_OUT_OF_EACH = 256, 8
"""Patches that judge the product, about, and of each run at most."""

_KEPT = 0.25
"""Part of the ranks that the split keeps by which the product is judged."""

_Marginals = tuple[Array, tuple[Array, ...]]


@dataclass(frozen=True)
class Marginals:
    """Of the patches of one layer, over the square of their scale.

    Attributes:
        spread: Those of the covariance: (G, C, C), and (k, k) of each axis.
        mean: Those of the product of the mean with itself.
        held_out: Patches that are in neither, about the mean: (G, p, D).
        middle: The mean itself, (G, D).
        floor: Part of the mean variance that every direction is given.
    """

    spread: _Marginals
    mean: _Marginals
    held_out: np.ndarray
    middle: Array
    floor: float

    def moment(self, *, centred: bool) -> Separable:
        """The second moment about the mean or about zero."""
        (channels, axes), (of_mean, along) = self.spread, self.mean
        if not centred:
            channels, axes = channels + of_mean, tuple(a + b for a, b in zip(axes, along, strict=True))
        return Separable(self._raised(channels), tuple(self._raised(axis) for axis in axes))

    def _raised(self, moment: Array) -> Array:
        power = np.trace(moment, axis1=-2, axis2=-1) / moment.shape[-1]
        floor = np.where(power > np.finfo(np.float64).tiny, self.floor * power, 1.0)
        return np.asarray(moment + floor[..., None, None] * np.eye(moment.shape[-1]))

    def judged(self, weight: Array, *, centred: bool) -> tuple[float, float, float]:
        """Relative squared errors of the outputs of a weight, (G, N, C, *k), at a low rank.

        Returns:
            That which the product predicts, the true one on the patches held out, and that of the weight's own factors.
        """
        scheme, product = SCHEMES["channel"], self.moment(centred=centred)
        groups, n, c, *kernel = weight.shape
        rank = (max(1, round(_KEPT * scheme.full_rank(Geometry(groups, n, c, tuple(kernel)))[0])),)
        patches = self.held_out if centred else self.held_out + self.middle[:, None]

        def felt(w: Array) -> float:
            return float(np.square(patches @ np.swapaxes(w.reshape(groups, n, -1), 1, 2)).sum())

        step = scheme.merge(scheme.split_by(weight, rank, product)) - weight
        blind = scheme.merge(scheme.split(weight, rank)) - weight
        tiny = np.finfo(np.float64).tiny
        predicted, expected = (float(np.square(product.whitened(w)).sum()) for w in (step, weight))
        whole = max(felt(weight), tiny)
        return predicted / max(expected, tiny), felt(step) / whole, felt(blind) / whole


def countable(patches: np.ndarray) -> bool:
    """Whether sums of squares of patches on the scale of the first ones stay within float32."""
    return bool(np.abs(patches).max(initial=0.0) < _FAR)


def alike(value: np.ndarray) -> bool:
    """Whether none of the samples, (b, ...), is so large that the others would not count beside it."""
    largest = np.abs(value).max(axis=tuple(range(1, value.ndim))).astype(np.float64)
    some = largest[largest > 0]
    return not some.size or bool(some.max() < _FAR * np.median(some))


def bearable(value: np.ndarray, scale: np.float32) -> bool:
    """Whether a value of other samples is countable on the scale of the first patches."""
    with np.errstate(over="ignore", invalid="ignore"):
        return countable(np.asarray(value, np.float32) / scale)


class MarginalSums:
    """Running sums of one layer's shifted patches."""

    def __init__(self, kernel: Sequence[int], floor: float) -> None:
        """Start with none."""
        self.count = 0
        self.finite = True
        self._kernel, self._floor = tuple(kernel), floor
        self._scale = np.float32(1)
        self._shift = self._first = np.zeros(0)
        self._second: _Marginals | None = None
        self._held_out: list[np.ndarray] = []
        self._alone = 0

    def add(self, patches: np.ndarray) -> None:
        """`patches`: (G, p, D); some of them are held out."""
        if not self.finite:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            if not self.count:
                self._scale = np.float32(np.abs(patches).max(initial=0.0) or 1.0)
                self._shift = patches.mean(axis=1, keepdims=True)
            patches = (patches - self._shift) / self._scale
        self.finite = countable(patches)
        if not self.finite:
            return
        if patches.shape[1] > 1:
            held_out = slice(0, None, max(2, patches.shape[1] // HELD_OUT_OF_EACH))
        else:  # one patch a run: every eighth
            self._alone += 1
            held_out = slice(0, 0 if self._alone % HELD_OUT_OF_EACH else None)
        self._hold_out(patches[:, held_out])
        patches = np.delete(patches, held_out, axis=1)
        first, second = patches.sum(axis=1, dtype=np.float64), self._marginals(patches)
        self.count += patches.shape[1]
        self._first = self._first + first if self._first.size else first
        self._second = second if self._second is None else _added(self._second, second, 1.0)

    def beside(self, value: np.ndarray) -> None:
        """What other samples bring, which is not summed; see `bearable`."""
        self.finite = self.finite and bearable(value, self._scale)

    def _hold_out(self, patches: np.ndarray) -> None:
        self._held_out.append(patches)
        if sum(held.shape[1] for held in self._held_out) > HELD_OUT:
            self._held_out = [np.concatenate(self._held_out, axis=1)[:, ::2]]

    def _marginals(self, patches: np.ndarray) -> _Marginals:
        groups, count, _ = patches.shape
        shaped = patches.reshape(groups, count, -1, *self._kernel)
        rows = np.moveaxis(shaped, 2, 1).reshape(groups, shaped.shape[2], -1)
        channels = (rows @ np.swapaxes(rows, 1, 2)).astype(np.float64)
        axes = []
        for place, size in enumerate(self._kernel, start=3):
            along = np.moveaxis(shaped, place, 0).reshape(size, -1)
            axes.append((along @ along.T).astype(np.float64))
        return channels, tuple(axes)

    def marginals(self) -> tuple[Array, Marginals]:
        """The mean, (G, D), and what the sums come to."""
        assert self._second is not None
        shifted = self._first / self.count
        spread = _added(_scaled(self._second, 1 / self.count), self._marginals(shifted[:, None]), -1.0)
        middle = self._shift[:, 0].astype(np.float64) / self._scale + shifted
        held_out = np.concatenate(self._held_out, axis=1) - shifted[:, None].astype(np.float32)
        found = Marginals(spread, self._marginals(middle[:, None]), held_out, middle, self._floor)
        return float(self._scale) * middle, found


def _added(one: _Marginals, other: _Marginals, part: float) -> _Marginals:
    return one[0] + part * other[0], tuple(a + part * b for a, b in zip(one[1], other[1], strict=True))


def _scaled(one: _Marginals, part: float) -> _Marginals:
    return part * one[0], tuple(part * axis for axis in one[1])
