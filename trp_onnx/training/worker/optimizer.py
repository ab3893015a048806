"""Optimizers on one flat buffer, and the schedule of the step size.

SGD, as in Sutskever et al. 2013 and in every framework:

    d <- g + wd W            (no decay on biases and BatchNormalization)
    v <- mu v + d
    W <- W - lr (d + mu v)   with Nesterov's momentum,   W <- W - lr v   without

AdamW (Kingma and Ba 2015, Loshchilov and Hutter 2019), at step t:

    m <- b1 m + (1 - b1) g
    s <- b2 s + (1 - b2) g^2
    W <- W - lr (m / (1 - b1^t) / (sqrt(s / (1 - b2^t)) + e) + wd W)

Gradients are clipped by their global norm first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trp_onnx.training.options import TrainingOptions

Flat = NDArray[np.float32]

_MEMORY, _SQUARE_MEMORY, _TINY = 0.9, 0.99, 1e-8
"""b1, b2 and e of Adam. The squares are forgotten ten times as fast as usual: runs have hundreds of steps."""


class Optimizer(Protocol):
    """What moves the weights.

    Attributes:
        state: All that its next step depends on, by name; restored in place.
    """

    state: dict[str, Flat]

    def step(self, weights: Flat, gradient: Flat, rate: float) -> None:
        """One step, in place; `gradient` is used up.

        Args:
            weights: (P,).
            gradient: (P,).
            rate: lr.
        """


def optimizer_of(options: TrainingOptions, decay: Flat) -> Optimizer:
    """The optimizer that the options name; `decay` (P,) is the weight decay of each entry."""
    if options.optimizer == "adam":
        return Adam(decay, clip=options.clip)
    return SGD(decay, momentum=options.momentum, nesterov=options.nesterov, clip=options.clip)


class SGD:
    """Momentum SGD, see the module and `Optimizer`."""

    def __init__(self, decay: Flat, *, momentum: float = 0.9, nesterov: bool = True, clip: float | None = None) -> None:
        """Say how.

        Args:
            decay: (P,) weight decay of each entry.
            momentum: mu.
            nesterov: Whether to look ahead.
            clip: Largest norm of the gradient; None for any.
        """
        self._velocity = np.zeros_like(decay)
        self.state = {"velocity": self._velocity}
        self._decay = decay
        self._momentum = np.float32(momentum)
        self._nesterov = nesterov
        self._clip = clip
        self._work = np.empty_like(decay)

    def step(self, weights: Flat, gradient: Flat, rate: float) -> None:
        """See `Optimizer`."""
        _clip(gradient, self._clip)
        np.multiply(self._decay, weights, out=self._work)
        gradient += self._work
        self._velocity *= self._momentum
        self._velocity += gradient
        if self._nesterov:
            np.multiply(self._velocity, self._momentum, out=self._work)
            gradient += self._work
            gradient *= np.float32(rate)
            weights -= gradient
        else:
            np.multiply(self._velocity, np.float32(rate), out=self._work)
            weights -= self._work


class Adam:
    """AdamW, see the module and `Optimizer`."""

    def __init__(self, decay: Flat, *, clip: float | None = None) -> None:
        """Say how.

        Args:
            decay: (P,) weight decay of each entry.
            clip: Largest norm of the gradient; None for any.
        """
        self._mean, self._square, self._steps = np.zeros_like(decay), np.zeros_like(decay), np.zeros(1, np.float32)
        self.state = {"mean": self._mean, "square": self._square, "steps": self._steps}
        self._decay = decay
        self._clip = clip
        self._work = np.empty_like(decay)

    def step(self, weights: Flat, gradient: Flat, rate: float) -> None:
        """See `Optimizer`."""
        _clip(gradient, self._clip)
        self._steps += 1
        steps = float(self._steps[0])
        self._mean += np.float32(1 - _MEMORY) * (gradient - self._mean)
        np.square(gradient, out=gradient)
        self._square += np.float32(1 - _SQUARE_MEMORY) * (gradient - self._square)
        np.multiply(self._square, np.float32(1 / (1 - _SQUARE_MEMORY**steps)), out=gradient)
        np.sqrt(gradient, out=gradient)
        gradient += np.float32(_TINY)
        np.divide(self._mean, gradient, out=gradient)
        gradient *= np.float32(rate / (1 - _MEMORY**steps))
        np.multiply(self._decay, weights, out=self._work)
        self._work *= np.float32(rate)
        weights -= gradient
        weights -= self._work


def _clip(gradient: Flat, most: float | None) -> None:
    """Shorten a gradient to a norm, in place."""
    if most is None:
        return
    norm = float(np.sqrt(np.dot(gradient, gradient)))
    if norm > most:
        gradient *= np.float32(most / norm)


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
