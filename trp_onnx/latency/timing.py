"""Fair timing on a machine that is neither quiet nor ours alone.

Absolute times drift by half within minutes; ratios of neighbours do not. So contenders take turns, in an
order that flips every round; each begins its turn with a call that is not timed, for the caches are still another's
(long ones may do without where little hangs on it: the flips do the same to two); each sample is at least 3 ms long;
and what counts is the median over rounds of

    ratio_i(round) = time_0(round) / time_i(round)

the speed-up of contender i over the first. A round in which another process took the core counts by processor time
(see `take_turns`), and is left out where enough are left; so is one in which either of the two was slowed down. What
runs on the other thread of the same core, of a neighbour of a virtual machine too, does that in spells of seconds, and
a network of many small nodes suffers more of it: in such a spell the ratio is another. So rounds may be spread over
some seconds, and the pace of the base may be known from before.

The confidence interval is that of a median, from order statistics: with n rounds, ranks n/2 -+ 0.98 sqrt(n) enclose it
with 95 % probability whatever the noise is (Conover, "Practical Nonparametric Statistics", 1999, section 3.2).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trp_onnx.runners import Rounds
from trp_onnx.runners.worker import take_turns

SAMPLE_SECONDS = 0.003
WARM_UP, LONG = 5, 0.02
"""Rounds before the first that counts; two do where one takes so many seconds."""

MIN_ROUNDS = 20
LEAST_ROUNDS = 8
"""Even when the time is up."""

_AT_ONCE = 4
"""Rounds between two looks at the interval; even, so that the order flips on."""

_QUIET_PART, _SLOWED = 0.1, 1.15
"""A sample is slowed down when it takes so many times what this part of a contender's samples stay below."""

APART = 0.03
"""Seconds of a round that make a hundred of them last longer than most slow spells. Nothing sleeps meanwhile: a core
that wakes is slow at first."""

PATIENCE = 3
"""Times as many rounds more, where a spell is slow."""

BUSY = 0.2
"""Part of the machine that others may keep busy before times are doubted."""

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
        disturbed: Part of them in which another process took the core.
        pace: Seconds of one call of the base in the quiet rounds.
        slow: Whether nearly all rounds fell into a slow spell: the base is known to be faster.
        others: Part of the machine that other processes kept busy meanwhile; None where it is not known.
    """

    seconds: tuple[float, ...]
    ratios: tuple[Ratio, ...]
    rounds: int
    disturbed: float = 0.0
    pace: float = 0.0
    slow: bool = False
    others: float | None = None

    def notes(self) -> tuple[str, ...]:
        """Why the times may not be those of a quiet machine."""
        found = []
        if self.others is not None and self.others > BUSY:
            found.append(
                f"other processes kept {self.others:.0%} of this machine busy while times were taken: on a quiet one "
                "the ratio may be another"
            )
        if self.slow:
            found.append("the machine was slower than before while times were taken: the ratio may be another")
        return tuple(found)


def compare(
    contenders: Sequence[Callable[[], object]],
    rounds: int = 100,
    *,
    on_round: Callable[[int], object] = lambda done: None,
) -> Timing:
    """Time functions of this process against each other.

    Args:
        contenders: What to call; the first is the base.
        rounds: At most so many.
        on_round: Called now and then with the number of rounds so far.
    """

    def turns(rounds: int, repeats: Sequence[int], warm: bool) -> Rounds:
        return Rounds(*take_turns(contenders, rounds, repeats, warm))

    return measure(turns, len(contenders), rounds, on_round=on_round)


def measure(
    turns: Callable[[int, Sequence[int], bool], Rounds],
    count: int,
    rounds: int = 100,
    *,
    repeats: float = math.inf,
    limit_seconds: float = math.inf,
    apart: float = 0.0,
    pace: float = math.inf,
    warms: bool = True,
    on_round: Callable[[int], object] = lambda done: None,
) -> Timing:
    """Time what a runner has prepared, or anything else that takes turns.

    Args:
        turns: Rounds, calls of each contender in a turn, and whether one that is not timed goes before them ->
            seconds of one call; `Runner.run` is one.
        count: Contenders; the first is the base.
        rounds: At most so many, but for `apart`.
        repeats: Calls in one sample at most, of as many as take 3 ms.
        limit_seconds: After so much time it ends, but not before `LEAST_ROUNDS`.
        apart: Seconds of a round, at least, for the sake of `APART`: there are more of them where they are short, and a
            few times as many where nearly all fall into a slow spell.
        pace: Seconds of one call of the base, if it is known how fast it is when nothing slows it down.
        warms: Whether a call that is not timed begins each turn of long contenders, too; it takes as long as a round.
        on_round: Called now and then with the number of rounds so far.
    """
    first = np.array(turns(1, [1] * count, False).seconds[0])
    long = bool(first.sum() > LONG)
    first = np.min(turns(1 if long else WARM_UP - 1, [1] * count, False).seconds, axis=0)
    calls = [int(min(repeats, max(1, math.ceil(SAMPLE_SECONDS / max(seconds, 1e-9))))) for seconds in first]
    samples, disturbed, others = list[Sequence[float]](), list[bool](), list[float | None]()
    least, longer = min(MIN_ROUNDS, rounds // 2), 1 + PATIENCE if apart and math.isfinite(pace) else 1
    began, span, ends = time.perf_counter(), apart * rounds, False
    while not ends:
        left = rounds - len(samples)
        found = turns(min(_AT_ONCE, left) if left > 0 else _AT_ONCE, calls, warms or not long)
        samples += found.seconds
        disturbed += found.disturbed
        others.append(found.others)
        times, quiet, allowed = _quiet(samples, disturbed, pace)
        done, calm, passed = len(samples), int(quiet[:, 0].sum()), time.perf_counter() - began
        on_round(min(done, rounds))
        many = 1 if calm >= least else longer
        precise = done >= MIN_ROUNDS <= calm and all(r.width < PRECISION for r in _ratios(times, quiet, allowed))
        ends = (
            (done >= many * rounds and passed >= many * span)
            or (done >= LEAST_ROUNDS and passed > many * limit_seconds)
            or (precise and passed >= span)
        )
    known = [part for part in others if part is not None]
    return Timing(
        seconds=tuple(float(t) for t in np.median(times, axis=0)),
        ratios=tuple(_ratios(times, quiet, allowed)),
        rounds=len(samples),
        disturbed=sum(disturbed) / len(samples),
        pace=float(np.median(times[quiet[:, 0], 0] if calm else times[:, 0])),
        slow=calm < least,
        others=float(np.mean(known)) if known else None,
    )


def _quiet(
    samples: Sequence[Sequence[float]], disturbed: Sequence[bool], pace: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times and whether nothing slowed them down, (rounds, contenders), and rounds that no process disturbed."""
    times, allowed = np.array(samples), ~np.array(disturbed)
    paces = np.quantile(times, _QUIET_PART, axis=0)
    base = times[:, 0] <= _SLOWED * min(pace, paces[0])
    if base.any():  # of the others, too, only these tell how fast they are
        paces = np.quantile(times[base], _QUIET_PART, axis=0)
    return times, allowed[:, None] & base[:, None] & (times <= _SLOWED * paces), allowed


def _ratios(times: np.ndarray, quiet: np.ndarray, allowed: np.ndarray) -> list[Ratio]:
    """The speed-up of each contender, over the rounds that were quiet for it and the first."""
    return [_ratio(times[:, 0] / times[:, i], [quiet[:, 0] & quiet[:, i], allowed]) for i in range(times.shape[1])]


def _ratio(ratios: np.ndarray, choices: Sequence[np.ndarray]) -> Ratio:
    """The median over the first choice of rounds that are enough, else over all."""
    for chosen in choices:
        if chosen.sum() >= LEAST_ROUNDS:
            ratios = ratios[chosen]
            break
    n = len(ratios)
    half = 0.98 * math.sqrt(n)
    low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half) - 1)
    ratios = np.sort(ratios)
    return Ratio(float(np.median(ratios)), float(ratios[low]), float(ratios[high]))
