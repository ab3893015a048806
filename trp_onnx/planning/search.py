"""The fastest plan that loses no more than is allowed: bisection over the speed-up, with real evaluations.

For each speed-up the planner gives the plan of least estimated damage; what it loses is measured on its file. The loss
grows with the speed-up but for noise of single samples, so the largest speed-up within the limit is found by halving
the interval between one that is within it and one that is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trp_onnx.errors import TargetError
from trp_onnx.job import Goal
from trp_onnx.planning.plan import Plan
from trp_onnx.planning.planner import Planner
from trp_onnx.progress import say, watch

PRECISION = 0.02
"""The search ends when the interval of speed-ups is as narrow as this."""

LEAST = 1.02
"""A speed-up below this is none."""


@dataclass(frozen=True)
class Limit:
    """What a plan may lose.

    Attributes:
        allowed: At most so much, in what `measure` counts.
        measure: What is counted, and on what.
        lost: What a file loses.
        refusal: Begins the sentence of a user whose limit no plan keeps.
        advice: Ends it.
    """

    allowed: float
    measure: str
    lost: Callable[[Path], float]
    refusal: str
    advice: str


@dataclass(frozen=True)
class Candidate:
    """A plan that was tried.

    Attributes:
        speedup: As the latency table predicts it.
        macs: Part of the MACs that remains.
        lost: What it loses, as the limit counts.
    """

    speedup: float
    macs: float
    lost: float


def fastest_within(planner: Planner, limit: Limit, lost: Callable[[Plan], float]) -> tuple[Plan, tuple[Candidate, ...]]:
    """Search.

    Args:
        planner: With a latency table.
        limit: What a plan may lose.
        lost: What a plan loses, measured on its file.

    Returns:
        The plan, and all that were tried, by rising speed-up.

    Raises:
        TargetError: No plan that makes the network faster stays within the limit.
    """
    tried: list[tuple[Candidate, Plan]] = []
    fastest = planner.fastest()
    low, high = 1.0, fastest

    def within(speedup: float) -> bool:
        plan = planner.plan(Goal(speedup=speedup))
        found = Candidate(plan.speedup or 1.0, plan.macs_after / max(1, plan.macs_before), lost(plan))
        tried.append((found, plan))
        say(f"{found.speedup:.2f}x as fast: {found.lost:.2f} {limit.measure}")
        return found.lost <= limit.allowed

    with watch("searching for the fastest plan") as show:
        trial = low + (high - low) / 2
        while high - low > PRECISION and trial >= LEAST:
            show(len(tried), None, f"trying {trial:.2f}x")
            if within(trial):
                low = max(trial, tried[-1][0].speedup)
            else:
                high = trial
            trial = low + (high - low) / 2
    good = [pair for pair in tried if pair[0].lost <= limit.allowed]
    if not good:
        least = min((pair[0] for pair in tried), key=lambda c: c.speedup, default=None)
        best = (
            f"the mildest plan that was tried, {least.speedup:.2f}x as fast, costs {least.lost:.2f}"
            if least is not None
            else f"with every layer at its fastest the network is predicted to run {fastest:.2f}x as fast"
        )
        raise TargetError(f"{limit.refusal}; {best}; nothing was written. {limit.advice}")
    tried.sort(key=lambda pair: pair[0].speedup)
    return max(good, key=lambda pair: pair[0].speedup)[1], tuple(candidate for candidate, _ in tried)
