"""The choice of a plan: one call of the planner, a closed loop over measured time, or a search within a limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from trp_onnx.commands.evidence import Known, time_layers
from trp_onnx.commands.workspace import Workspace
from trp_onnx.errors import TargetError
from trp_onnx.evaluation.comparison import divergence_on
from trp_onnx.evaluation.judging import Judge
from trp_onnx.evaluation.outputs import Told
from trp_onnx.graph.layers import find_layers
from trp_onnx.graph.sizes import shape_options
from trp_onnx.job import Goal
from trp_onnx.latency.predicted import forecast
from trp_onnx.latency.trial import Trial, Trials
from trp_onnx.lowrank.schemes import Rank
from trp_onnx.passes import CleanUpPass
from trp_onnx.planning import Candidate, Plan, Planner, choose_schemes, fastest_within, plan_for_speedup
from trp_onnx.planning.apply import carry_out
from trp_onnx.planning.search import Limit
from trp_onnx.progress import note, track

KEPT_AGREEMENT, KEPT_ERROR = 99.0, 2.0
"""Without a goal: per cent of answers that stay the original's, or where there is no data, of relative output error."""

HOPELESS = 4.0
"""A plan whose damage is predicted to be so many times that of another is not tried beside it."""


@dataclass(frozen=True)
class Choice:
    """A plan, and how it was found.

    Attributes:
        plan: The plan.
        candidates: What was tried to find the fastest plan within the limit.
        trials: What was timed to meet a speed-up.
        limit: What the plan may lose, where that is limited.
    """

    plan: Plan
    candidates: tuple[Candidate, ...] = ()
    trials: tuple[Trial, ...] = ()
    limit: Limit | None = None


def choose(work: Workspace, known: Known) -> Choice:
    """The plan that the goal asks for; where there is training, at the ranks that it ends with.

    Raises:
        TargetError: The goal is out of reach.
        UsageError: The per-layer map asks for what its layer cannot be.
        ModelError: A candidate does not run.
        TrainingError: Training diverged, or a worker died.
    """
    if work.session is not None and work.session.finds_ranks(work.job.goal):
        work.clock.lap("plan")
        return _trained(
            work, known, choose_schemes(work.network.layers, work.job.goal.rules, work.job.search.scheme), {}
        )
    choice = _planned(work, known)
    work.clock.lap("plan")
    if work.session is None:
        return choice
    return _trained(work, known, choice.plan.chosen, {d.name: d.reason for d in choice.plan.decisions})


def _planned(work: Workspace, known: Known) -> Choice:
    goal, network = work.job.goal, work.network
    planner = Planner(
        network.layers, rules=goal.rules, scheme=work.job.search.scheme, align=known.align, evidence=known.evidence,
        spaces=known.spaces, looked_at=known.looked_at,
        progress=lambda groups: track(groups, "spectra"), ask=shape_options(network.normal, network.input_shapes),
    )  # fmt: skip
    limit = None if work.judge is None else _limit(work, work.judge)
    if work.job.searched and limit is not None:
        judged = limit

        def lost(plan: Plan) -> float:
            with _file_of(plan, work, known) as path:
                return judged.lost(path)

        plan, candidates = fastest_within(planner, limit, lost)
        return Choice(plan, candidates, limit=limit)
    timing = Trials(network.source, network.normal, network.feeds(), work.staging.folder, network.input_shapes)
    found = _for_target(goal, planner, timing)
    if found.plan.kept and any(len(site.levels) > 1 for site in known.spaces):
        found = _less_harm(work, known, found, lambda: _for_target(goal, planner.whole(), timing))
    return replace(found, limit=limit)


def _for_target(goal: Goal, planner: Planner, timing: Trials) -> Choice:
    if goal.speedup is None:
        return Choice(planner.plan(goal))
    plan, trials = plan_for_speedup(planner, goal.speedup, timing)
    return Choice(plan, trials=trials)


def _less_harm(work: Workspace, known: Known, cut: Choice, uncut: Callable[[], Choice]) -> Choice:
    """A plan that cuts spaces, or one for the same target that cuts none: what moves the outputs less, as measured.

    What layers in turn make up for is in no prediction, and that is more where they are factorised.
    """
    try:
        whole = uncut()
    except TargetError:
        return cut
    if whole.plan.damage > HOPELESS * cut.plan.damage:
        return cut
    assert known.apart is not None
    harm = []
    for choice in (cut, whole):
        with _file_of(choice.plan, work, known) as path:
            harm.append(divergence_on(known.apart, work.network.source, path, work.network.original, Told(work.said)))
    kept, moved = (cut, "less") if harm[0] <= harm[1] else (whole, "more")
    note(
        f"cutting spaces moves the outputs {moved} than ranks alone, {harm[0]:.3g} against {harm[1]:.3g} on "
        f"{len(known.apart)} samples set apart{'' if kept is cut else ', so none is cut'}"
    )
    return kept


def _trained(
    work: Workspace, known: Known, chosen: Mapping[str, tuple[str, Rank]], kept: Mapping[str, str]
) -> Choice:  # fmt: skip
    """Train with projection: the network gets its trained weights, and the plan the ranks that they have."""
    session, goal, table = work.session, work.job.goal, known.evidence.table
    assert session is not None
    finds = session.finds_ranks(goal)
    note(forecast(table or time_layers(work), work.network.layers, None if finds else chosen))
    work.network.layers, plan = session.train(
        work.network.normal, work.network.layers, chosen, kept, goal, align=known.align, table=table
    )
    work.clock.lap("train")
    return Choice(plan)


def _limit(work: Workspace, judge: Judge) -> Limit:
    """What a plan may lose, and how that is counted."""
    drop, samples = work.job.goal.max_drop, work.samples
    kept = KEPT_ERROR if samples is None else 100 - KEPT_AGREEMENT
    allowed = kept if drop is None else drop
    if drop is not None:
        refusal = f"--max-drop {drop:g} is out of reach: no plan makes the network faster within it"
        advice = "Training (--train) recovers what factorisation alone loses"
    else:
        refusal = f"no plan makes the network faster and keeps its outputs within {allowed:g} {judge.measure}"
        advice = (
            "Say how far to go, for example --macs 0.7 or --speedup 1.3"
            if samples is not None
            else "Give samples by --data, which keep more, or say how far to go, for example --macs 0.7"
        )
    return Limit(allowed, judge.measure, judge.lost, refusal, advice)


@contextmanager
def _file_of(plan: Plan, work: Workspace, known: Known) -> Iterator[Path]:
    """The file of a plan, made as the result would be."""
    copy, path = work.network.normal.clone(), work.staging.folder / "candidate.onnx"
    layers = find_layers(copy, work.network.input_shapes)
    carry_out(
        plan, copy, layers, known.evidence, known.samples,
        input_shapes=work.network.input_shapes, asymmetric=work.job.search.asymmetric, untouched=work.untouched,
    )  # fmt: skip
    CleanUpPass()(copy)
    ir.save(copy, path, format="protobuf", external_data=f"{path.name}.data")  # its own: the input's is elsewhere
    try:
        yield path
    finally:
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()
