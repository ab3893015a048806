"""Stochastic gradient descent on one flat buffer, and the schedule of its step size.

    d <- g + wd W            (no decay on biases and BatchNormalization)
    v <- mu v + d
    W <- W - lr (d + mu v)   with Nesterov's momentum,   W <- W - lr v   without

as in Sutskever et al. 2013 and in every framework's SGD. Gradients are clipped by their global norm first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Flat = NDArray[np.float32]


class SGD:
    """Momentum SGD; `velocity` is its whole state."""

    def __init__(self, decay: Flat, *, momentum: float = 0.9, nesterov: bool = True, clip: float | None = None) -> None:
        """Say how.

        Args:
            decay: (P,) weight decay of each entry.
            momentum: mu.
            nesterov: Whether to look ahead.
            clip: Largest norm of the gradient; None for any.
        """
        self.velocity = np.zeros_like(decay)
        self._decay = decay
        self._momentum = np.float32(momentum)
        self._nesterov = nesterov
        self._clip = clip
        self._work = np.empty_like(decay)

    def step(self, weights: Flat, gradient: Flat, rate: float) -> None:
        """One step, in place; `gradient` is used up.

        Args:
            weights: (P,).
            gradient: (P,).
            rate: lr.
        """
        if self._clip is not None:
            norm = float(np.sqrt(np.dot(gradient, gradient)))
            if norm > self._clip:
                gradient *= np.float32(self._clip / norm)
        np.multiply(self._decay, weights, out=self._work)
        gradient += self._work
        self.velocity *= self._momentum
        self.velocity += gradient
        if self._nesterov:
            np.multiply(self.velocity, self._momentum, out=self._work)
            gradient += self._work
            gradient *= np.float32(rate)
            weights -= gradient
        else:
            np.multiply(self.velocity, np.float32(rate), out=self._work)
            weights -= self._work


def rate_at(
    step: int, total: int, rate: float, schedule: str, warmup: int = 0, milestones: Sequence[float] = (0.5, 0.75)
) -> float:
    """The step size: a linear rise over `warmup` steps, then the schedule.

    Args:
        step: From 0.
        total: Steps in all.
        rate: The peak.
        schedule: "cosine" to 0, "step" by a tenth at each milestone (a part of the whole), or "constant".
        warmup: Steps of the rise.
        milestones: Where "step" steps down.
    """
    if step < warmup:
        return rate * (step + 1) / warmup
    if schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
    if schedule == "step":
        return rate * 0.1 ** sum(step >= part * total for part in milestones)
    return rate
