"""The fastest plan within a drop of accuracy: bisection over the speed-up, with real evaluations.

For each speed-up the planner gives the plan of least estimated damage; its accuracy is measured. The drop grows
with the speed-up but for noise of single samples, so the largest speed-up within the allowed drop is found by halving
the interval between one that is within it and one that is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trp_onnx.accuracy import Accuracy
from trp_onnx.errors import TargetError
from trp_onnx.planning.plan import Plan
from trp_onnx.planning.planner import Planner
from trp_onnx.progress import say, watch

PRECISION = 0.02
"""The search ends when the interval of speed-ups is as narrow as this."""

LEAST = 1.02
"""A speed-up below this is none."""


@dataclass(frozen=True)
class Candidate:
    """A plan that was tried.

    Attributes:
        speedup: As the latency table predicts it.
        macs: Part of the MACs that remains.
        accuracy: On the samples that choose.
    """

    speedup: float
    macs: float
    accuracy: Accuracy


def fastest_within(
    planner: Planner, max_drop: float, before: Accuracy, accuracy: Callable[[Plan], Accuracy]
) -> tuple[Plan, tuple[Candidate, ...]]:
    """Search.

    Args:
        planner: With a latency table.
        max_drop: Points of top-1 accuracy to lose at most, on the samples that choose.
        before: Accuracy of the dense network on them.
        accuracy: Of a plan, on the same.

    Returns:
        The plan, and all that were tried, by rising speed-up.

    Raises:
        TargetError: No plan that makes the network faster stays within the drop.
    """
    tried: list[tuple[Candidate, Plan]] = []
    low, high = 1.0, planner.fastest()
    fastest = high

    def lost(found: Accuracy) -> float:
        """Points; of counts, so that exactly `max_drop` is within."""
        return 100 * (before.correct - found.correct) / found.samples

    def within(speedup: float) -> bool:
        plan = planner.plan(speedup=speedup)
        found = accuracy(plan)
        remaining = plan.macs_after / max(1, plan.macs_before)
        tried.append((Candidate(plan.speedup or 1.0, remaining, found), plan))
        drop = lost(found)
        say(f"{plan.speedup or 1.0:.2f}x as fast: {found.top1:.2%} of {found.samples} held out, {-drop:+.2f} points")
        return drop <= max_drop

    with watch("searching for the fastest plan") as show:
        trial = low + (high - low) / 2
        while high - low > PRECISION and trial >= LEAST:
            show(len(tried), None, f"trying {trial:.2f}x")
            if within(trial):
                low = max(trial, tried[-1][0].speedup)
            else:
                high = trial
            trial = low + (high - low) / 2
    good = [pair for pair in tried if lost(pair[0].accuracy) <= max_drop]
    if not good:
        least = min((pair[0] for pair in tried), key=lambda c: c.speedup, default=None)
        best = (
            f"the mildest plan tried, {least.speedup:.2f}x as fast, loses {lost(least.accuracy):.2f} points"
            if least is not None
            else f"with every layer at its fastest the network is predicted to run {fastest:.2f}x as fast"
        )
        raise TargetError(
            f"--max-drop {max_drop:g} is out of reach: no plan makes the network faster within it; {best}; nothing was "
            "written. Training (--train) recovers what factorisation alone loses"
        )
    tried.sort(key=lambda pair: pair[0].speedup)
    return max(good, key=lambda pair: pair[0].speedup)[1], tuple(candidate for candidate, _ in tried)
