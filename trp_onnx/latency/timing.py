"""Fair timing on a machine that is neither quiet nor ours alone.

Absolute times drift by half within minutes; ratios of neighbours do not. So contenders take turns, in an
order that flips every round, each sample at least 3 ms long, and what counts is the median over rounds of

    ratio_i(round) = time_0(round) / time_i(round)

the speed-up of contender i over the first. Its confidence interval is that of a median, from order
statistics: with n rounds, ranks n/2 -+ 0.98 sqrt(n) enclose it with 95 % probability whatever the noise is
(Conover, "Practical Nonparametric Statistics", 1999, section 3.2).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SAMPLE_SECONDS = 0.003
WARM_UP = 5
MIN_ROUNDS = 20
LEAST_ROUNDS = 8
"""Even when the time is up."""

PRECISION = 0.01
"""Stop once the interval of every ratio is narrower than this part of it."""


@dataclass(frozen=True)
class Ratio:
    """A speed-up over the first contender, with its 95 % confidence interval."""

    median: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Width of the interval, relative to the median."""
        return (self.high - self.low) / self.median


@dataclass(frozen=True)
class Timing:
    """What an interleaved run found, in the order of its contenders.

    Attributes:
        seconds: Median time of one call of each; drifts with the machine, for orientation only.
        ratios: Speed-up of each over the first, whose own is exactly 1.
        rounds: Rounds that were run.
    """

    seconds: tuple[float, ...]
    ratios: tuple[Ratio, ...]
    rounds: int


def compare(
    contenders: Sequence[Callable[[], object]],
    rounds: int = 100,
    *,
    repeats: int | None = None,
    limit_seconds: float = math.inf,
    on_round: Callable[[int], object] = lambda done: None,
) -> Timing:
    """Time functions against each other.

    Args:
        contenders: What to call; the first is the base.
        rounds: At most so many.
        repeats: Calls in one sample; by default as many as take 3 ms.
        limit_seconds: After so much time no further round begins, but 8 are run.
        on_round: Called after each round with their number so far.
    """
    for call in contenders:
        for _ in range(WARM_UP):
            call()
    calls = [repeats or max(1, math.ceil(SAMPLE_SECONDS / seconds_of(call))) for call in contenders]
    samples: list[list[float]] = []
    collects = gc.isenabled()
    gc.disable()
    began = time.perf_counter()
    try:
        for done in range(1, rounds + 1):
            order = range(len(contenders)) if done % 2 else range(len(contenders) - 1, -1, -1)
            sample = [0.0] * len(contenders)
            for i in order:
                sample[i] = seconds_of(contenders[i], calls[i])
            samples.append(sample)
            on_round(done)
            if done >= min(MIN_ROUNDS, rounds) and all(r.width < PRECISION for r in _ratios(samples)):
                break
            if done >= LEAST_ROUNDS and time.perf_counter() - began > limit_seconds:
                break
    finally:
        if collects:
            gc.enable()
    times = np.array(samples)
    return Timing(tuple(float(t) for t in np.median(times, axis=0)), tuple(_ratios(samples)), len(samples))


def seconds_of(call: Callable[[], object], repeats: int = 1) -> float:
    """Seconds of one call, the mean over so many."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _ratios(samples: Sequence[Sequence[float]]) -> list[Ratio]:
    times = np.array(samples)
    n = len(times)
    half = 0.98 * math.sqrt(n)
    low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half) - 1)
    found = []
    for ratios in np.sort(times[:, :1] / times, axis=0).T:
        found.append(Ratio(float(np.median(ratios)), float(ratios[low]), float(ratios[high])))
    return found
