"""The choice of a plan: one call of the planner, a closed loop over measured time, or a search within a limit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from trp_onnx.commands.evidence import Known, time_layers
from trp_onnx.commands.workspace import Workspace
from trp_onnx.errors import TargetError
from trp_onnx.evaluation.comparison import divergences_on
from trp_onnx.evaluation.judging import Judge
from trp_onnx.graph.layers import find_layers
from trp_onnx.graph.sizes import shape_options
from trp_onnx.job import Goal
from trp_onnx.latency.predicted import forecast
from trp_onnx.latency.trial import Trial, Trials
from trp_onnx.lowrank.schemes import Rank
from trp_onnx.passes import CleanUpPass
from trp_onnx.passes.factorise import Keep, in_memory
from trp_onnx.planning import Candidate, Plan, Planner, choose_schemes, fastest_within, plan_for_speedup
from trp_onnx.planning.apply import carry_out
from trp_onnx.planning.search import Limit
from trp_onnx.progress import note, track

KEPT_AGREEMENT, KEPT_ERROR = 99.0, 2.0
"""Without a goal: per cent of answers that stay the original's, or where there is no data, of relative output error."""

HOPELESS, CLEAR = 4.0, 1.5
"""A plan whose damage is predicted to be so many times that of another is not tried beside it, and one that moves the
outputs so many times as far is not timed."""


@dataclass(frozen=True)
class Made:
    """A network that a plan was carried out on.

    Attributes:
        model: The network.
        notes: What the owner should know of it.
    """

    model: ir.Model
    notes: list[str]


@dataclass(frozen=True)
class Choice:
    """A plan, and how it was found.

    Attributes:
        plan: The plan.
        candidates: What was tried to find the fastest plan within the limit.
        trials: What was timed to meet a speed-up.
        limit: What the plan may lose, where that is limited.
        made: What comes of the plan, where that was made to judge it.
    """

    plan: Plan
    candidates: tuple[Candidate, ...] = ()
    trials: tuple[Trial, ...] = ()
    limit: Limit | None = None
    made: Made | None = None


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
            with _written(_made(plan, work, known, in_memory), work) as path:
                return judged.lost(path)

        plan, candidates = fastest_within(planner, limit, lost)
        return Choice(plan, candidates, limit=limit)
    timing = Trials(network.source, network.normal, network.feeds(), work.staging.folder, network.input_shapes)
    found = _for_target(goal, planner, timing)
    if found.plan.kept and any(len(site.levels) > 1 for site in known.spaces):
        found = _less_harm(work, known, found, planner.whole(), timing)
    return replace(found, limit=limit)


def _for_target(goal: Goal, planner: Planner, timing: Trials) -> Choice:
    if goal.speedup is None:
        return Choice(planner.plan(goal))
    plan, trials = plan_for_speedup(planner, goal.speedup, timing)
    return Choice(plan, trials=trials)


def _less_harm(work: Workspace, known: Known, cut: Choice, planner: Planner, timing: Trials) -> Choice:
    """A plan that cuts spaces, or one for the same target that cuts none: what moves the outputs less, as measured.

    What layers in turn make up for is in no prediction, and that is more where they are factorised.

    Args:
        work: What is open.
        known: What is known of the network.
        cut: The plan that cuts spaces.
        planner: Of plans that cut none.
        timing: Times them.
    """
    goal = work.job.goal
    try:
        whole = Choice(planner.plan(goal))
        if whole.plan.damage > HOPELESS * cut.plan.damage:
            return cut
        cut, whole = (
            replace(choice, made=_made(choice.plan, work, known, work.staging.keep)) for choice in (cut, whole)
        )
        harm, other = _harm(work, known, cut, whole)
        if goal.speedup is not None and other <= CLEAR * harm:
            timed = _for_target(goal, planner, timing)
            if timed.plan.chosen != whole.plan.chosen:
                timed = replace(timed, made=_made(timed.plan, work, known, work.staging.keep))
                (other,) = _harm(work, known, timed)
            whole = replace(timed, made=timed.made or whole.made)
    except TargetError:
        return cut
    kept, moved = (cut, "less") if harm <= other else (whole, "more")
    note(
        f"cutting spaces moves the outputs {moved} than ranks alone, {harm:.3g} against {other:.3g} on "
        f"{len(known.apart or ())} samples set apart{'' if kept is cut else ', so none is cut'}"
    )
    return kept


def _harm(work: Workspace, known: Known, *choices: Choice) -> list[float]:
    """How far what was made moves the outputs, on samples that nothing is fitted to."""
    assert known.apart is not None
    with ExitStack() as stack:
        made = [choice.made for choice in choices if choice.made is not None]
        paths = [stack.enter_context(_written(each, work, place)) for place, each in enumerate(made)]
        return divergences_on(known.apart, work.network.source, paths, work.network.original, work.told)


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


def _made(plan: Plan, work: Workspace, known: Known, keep: Keep) -> Made:
    """What comes of a plan, as it would in the end; the network itself stays as it is."""
    copy = work.network.normal.clone()
    notes = carry_out(
        plan, copy, find_layers(copy, work.network.input_shapes), known.evidence, known.samples, keep,
        input_shapes=work.network.input_shapes, asymmetric=work.job.search.asymmetric, untouched=work.untouched,
    )  # fmt: skip
    CleanUpPass()(copy)
    return Made(copy, notes)


@contextmanager
def _written(made: Made, work: Workspace, number: int = 0) -> Iterator[Path]:
    """Its file, for as long as it is looked at."""
    path = work.staging.folder / f"plan{number}.onnx"
    ir.save(made.model, path, format="protobuf", external_data=f"{path.name}.data")  # its own: the input's is elsewhere
    try:
        yield path
    finally:
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()
