"""How far channels moved, from sums that grow batch by batch.

Of each channel c over all its places the sums of y_c, y_c^2 and (y_c - y'_c)^2 tell the relative error of the whole,
and each channel's error beside its own spread (see `divergence`), so that boxes in pixels do not drown scores.
"""

from __future__ import annotations

import numpy as np

from trp_onnx.evaluation.comparison import SHARE, SMALL
from trp_onnx.evaluation.divergence import CONSTANT, FEW, as_channels, without_shared_infinities


class Channels:
    """Sums over the places of each channel of one output.

    Attributes:
        places: Values of a channel so far.
    """

    def __init__(self, axis: int) -> None:
        """Begin with nothing; `axis` is that of channels, -1 for none."""
        self._axis, self.places = axis, 0
        self._sums: np.ndarray | None = None  # (3, channels): y, y^2, (y - y')^2

    @np.errstate(over="ignore", invalid="ignore")  # what is no number is infinitely far
    def add(self, before: np.ndarray, after: np.ndarray) -> None:
        """Count two arrays of the same shape."""
        a, b = (as_channels(side, self._axis) for side in without_shared_infinities(before, after))
        if not len(a):
            return
        sums = np.stack([np.sum(x, axis=0, dtype=np.float64) for x in (a, np.square(a), np.square(a - b))])
        if self._sums is None:
            self._sums = np.zeros_like(sums)
        if sums.shape != self._sums.shape:  # as many channels as the run is long: they are none
            places = self.places * self._sums.shape[1] + a.size
            self._sums, sums, self._axis = self._sums.sum(axis=1, keepdims=True), sums.sum(axis=1, keepdims=True), -1
            self.places = places
        else:
            self.places += len(a)
        self._sums = self._sums + np.nan_to_num(sums, nan=np.inf, posinf=np.inf, neginf=-np.inf)

    @property
    @np.errstate(over="ignore", invalid="ignore")
    def relative_error(self) -> float:
        """`|y - y'|_2 / |y|_2` of the whole."""
        if self._sums is None:
            return 0.0
        _, square, error = self._sums.sum(axis=1)
        found = float(np.sqrt(error / square)) if square > 0 else float(error > 0)
        return np.inf if np.isnan(found) else found

    @property
    @np.errstate(over="ignore", invalid="ignore")  # of infinite sums
    def errors(self) -> np.ndarray:
        """Mean square error of each channel over the square of its spread: (C,)."""
        if self._sums is None:
            return np.zeros(1)
        total, square, error = self._sums / self.places
        if self.places < FEW:
            spread = np.full_like(square, square.mean())
        else:
            variance = square - total**2
            spread = np.where(variance > CONSTANT * square, variance, square)
        used = spread > 0
        spread = np.where(used, spread, spread[used].mean() if used.any() else 1.0)
        return np.asarray(np.nan_to_num(error / spread, nan=np.inf, posinf=np.inf))

    @property
    @np.errstate(over="ignore", invalid="ignore")
    def hidden_error(self) -> float:
        """Error over spread of the channels that are far smaller than the largest; 0 where there are few of them."""
        if self._sums is None or self._sums.shape[1] < 2 or self.places < FEW:
            return 0.0
        sizes = np.sqrt(self._sums[1] / self.places)
        small = (sizes > 0) & (sizes < SMALL * sizes.max())
        return float(np.sqrt(self.errors[small].mean())) if small.mean() >= SHARE else 0.0
