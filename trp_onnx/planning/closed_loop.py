"""A plan for a speed-up that is measured: plan, time what was chosen, time a file with its shapes, and again.

A table adds up layers that were timed alone, and an allocation picks what it errs on. So before a plan is final

1. every point that it chose is timed itself, and it is made again until they all are;
2. a file with its shapes is timed against the original (`Trials`), and while that is off what was asked, the plan is
   made again for another target: savings that are measured are taken for a rising function of those that are predicted,
   and the next target is where it crosses what was asked, on the line through its nearest two values (regula falsi).

Of what was tried, the plan that is nearest to what was asked is taken, and with it the least damage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trp_onnx.errors import TargetError
from trp_onnx.job import Goal
from trp_onnx.latency.table import LatencyTable
from trp_onnx.latency.trial import STEADY, Trial, Trials
from trp_onnx.planning.plan import Plan
from trp_onnx.planning.planner import Planner
from trp_onnx.progress import say

TOLERANCE = 0.03
"""A plan is measured within this part of the speed-up that was asked for."""

GOOD, FAIR = 0.012, 0.02
"""It is not made again when it is within the first part, or within the second and it may be just what was asked."""

MOST_TRIALS, MOST_REFINEMENTS = 6, 4


def plan_for_speedup(planner: Planner, speedup: float, trials: Trials) -> tuple[Plan, tuple[Trial, ...]]:
    """The plan of least damage that makes the network so many times as fast, as measured.

    Args:
        planner: With a latency table.
        speedup: What was asked for, above 1.
        trials: What times its plans.

    Returns:
        The plan, and what was tried, in that order. By a table of another machine nothing can be timed: then it is the
        plan that is predicted to do it, with a note, and no trial.

    Raises:
        TargetError: No plan is measured to do it, or nothing can be measured here.
        UsageError: The per-layer map asks for what its layer cannot be.
        ModelError: A candidate does not run.
    """
    table = planner.evidence.table
    assert table is not None
    if not trials.possible(table):
        plan = planner.plan(Goal(speedup=speedup))
        note = f"--speedup {speedup:g} is predicted, not measured: the latency table is of another machine"
        return replace(plan, notes=(*plan.notes, note)), ()
    wanted, tried = _saving(speedup), list[tuple[float, Plan, Trial]]()
    target: float | None = wanted
    for _ in range(MOST_TRIALS):
        if target is None:
            break
        planner, plan, target = _settled(planner, speedup, target, trials)
        if any((plan.chosen, plan.kept) == (other.chosen, other.kept) for _, other, _ in tried):
            break
        trial = trials.time(_table(planner), plan.speedup or 1.0, plan.chosen, plan.kept)
        if trial.measured.width > 2 * STEADY:
            raise TargetError(_unsteady(speedup, trial))
        say(f"predicted {trial.predicted:.3f}x, measured {trial.measured.median:.3f}x as fast")
        tried = [*(before for before in tried if not trials.stale(before[2])), (target, plan, trial)]
        near = trial.measured.low <= speedup <= trial.measured.high
        if abs(_off(trial, speedup)) <= (FAIR if near else GOOD):
            break
        target = _next(wanted, [(aim, _saving(t.measured.median)) for aim, _, t in tried], _most(planner))
    return _best(speedup, [plan for _, plan, _ in tried], [trial for *_, trial in tried])


def _saving(speedup: float) -> float:
    """The part of the time that a speed-up saves."""
    return 1.0 - 1.0 / speedup


def _off(trial: Trial, speedup: float) -> float:
    """How far a trial is off what was asked: below 0 is too slow."""
    return trial.measured.median / speedup - 1.0


def _table(planner: Planner) -> LatencyTable:
    assert planner.evidence.table is not None
    return planner.evidence.table


def _most(planner: Planner) -> float:
    """The largest saving that can be asked of a planner; a little less than it predicts, for rounding."""
    return _saving(planner.fastest()) - 1e-6


def _settled(planner: Planner, speedup: float, saving: float, trials: Trials) -> tuple[Planner, Plan, float]:
    """The plan for a saving, or for the largest there is, of points that were timed themselves; and that saving."""
    for _ in range(MOST_REFINEMENTS):
        asked = min(saving, _most(planner))
        if asked <= 0:
            raise TargetError(
                f"--speedup {speedup:g} is out of reach: no layer is predicted to take less time in any other way; "
                "nothing was written"
            )
        plan = planner.plan(Goal(speedup=1.0 / (1.0 - asked)))
        table = trials.refined(_table(planner), planner.layers, plan.chosen, planner.widths_of(plan))
        if table is _table(planner):
            break
        planner = planner.retimed(table)
    return planner, plan, asked


def _next(wanted: float, tried: Sequence[tuple[float, float]], most: float) -> float | None:
    """What to ask for next, from pairs of what was asked and measured; None where there is nothing left to ask."""
    short = max((pair for pair in tried if pair[1] < wanted), default=(0.0, 0.0))
    over = min((pair for pair in tried if pair[1] >= wanted), default=None)
    if over is None:
        if short[0] >= most:
            return None
        below = max((pair for pair in tried if pair[0] < short[0]), default=(0.0, 0.0))
        rise = (short[1] - below[1]) / (short[0] - below[0])
        return min(most, short[0] + min((wanted - short[1]) / max(rise, 0.2), 0.5 * (1.0 - short[0])))
    if short[0] >= over[0]:  # not monotone: noise is larger than what is left to gain
        return None
    part = (wanted - short[1]) / (over[1] - short[1])
    return short[0] + min(max(part, 0.05), 0.95) * (over[0] - short[0])


def _best(speedup: float, plans: Sequence[Plan], trials: Sequence[Trial]) -> tuple[Plan, tuple[Trial, ...]]:
    """The plan nearest to what was asked; where none is near, the mildest of those that are faster."""
    pairs = list(zip(plans, trials, strict=True))
    plan, trial = min(pairs, key=lambda pair: abs(_off(pair[1], speedup)))
    if abs(_off(trial, speedup)) <= TOLERANCE:
        return plan, tuple(trials)
    over = [pair for pair in pairs if _off(pair[1], speedup) > 0]
    if not over:
        _, fastest = max(pairs, key=lambda pair: pair[1].measured.median)
        raise TargetError(
            f"--speedup {speedup:g} is out of reach: the fastest of {len(trials)} plans was measured "
            f"{fastest.measured.median:.2f}x as fast ({fastest.predicted:.2f}x predicted), whatever that does to its "
            "outputs; nothing was written"
        )
    plan, trial = min(over, key=lambda pair: pair[1].measured.median)
    note = f"no plan comes nearer to --speedup {speedup:g}: this one is measured {trial.measured.median:.2f}x as fast"
    return replace(plan, notes=(*plan.notes, note)), tuple(trials)


def _unsteady(speedup: float, trial: Trial) -> str:
    low, high = trial.measured.low, trial.measured.high
    return (
        f"--speedup {speedup:g} cannot be measured here: a plan that is predicted {trial.predicted:.2f}x as fast came "
        f"out {low:.2f}x to {high:.2f}x, so busy is this machine; nothing was written. Stop what else runs"
    )
