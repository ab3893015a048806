"""What the written file came to: verified, evaluated and timed beside the original."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from trp_onnx.commands.choosing import Choice
from trp_onnx.commands.evidence import Known
from trp_onnx.commands.workspace import Workspace
from trp_onnx.errors import TargetError
from trp_onnx.evaluation.metric import Scores
from trp_onnx.evaluation.verify import verify
from trp_onnx.graph.model import count_parameters, file_bytes, weight_files
from trp_onnx.latency.measured import Latency, realise
from trp_onnx.planning import Plan
from trp_onnx.planning.plan import notes_on_growth
from trp_onnx.planning.search import LEAST
from trp_onnx.report import Report, Size, alarms
from trp_onnx.report.spectra import Spectrum

if TYPE_CHECKING:
    from trp_onnx.training.recovery import Recovered


def assess(
    work: Workspace, known: Known, choice: Choice, spectra: dict[str, Spectrum], recovered: Recovered | None
) -> tuple[Report, ir.Model]:
    """Measure the written file, before it is in its place.

    Returns:
        The report, and the file as it was opened again.

    Raises:
        VerificationError: It fails its check.
        TargetError: It is no faster, or loses more than it may.
        ModelError: It does not run.
    """
    source, path, plan = work.network.source, work.staging.path, choice.plan
    written, errors = verify(path, source, work.network.original, work.feeds, work.expected, work.told)
    work.clock.lap("verify")
    score = None if work.evaluation is None else work.evaluation.scores(path)
    limit = _limited(work, choice)
    work.clock.lap("evaluate")
    latency = _latency(work, known, choice)
    work.clock.lap("bench")
    trained = work.session.summary(path) if work.session is not None else None
    sizes = Size(file_bytes(source, work.network.original), file_bytes(path, written))
    report = Report(
        model=work.names[0],
        output=work.names[1],
        macs=Size(plan.macs_before, plan.macs_after, plan.unknown),
        parameters=Size(count_parameters(work.network.original), count_parameters(written)),
        file_bytes=sizes,
        files={} if work.in_memory else {file.name: file.stat().st_size for file in (path, *weight_files(written))},
        outputs=tuple(errors),
        verified_on=work.verified_on,
        layers=plan.decisions,
        spaces=plan.spaces,
        score=score,
        limit=limit,
        align=known.align,
        latency=latency,
        candidates=choice.candidates,
        spectra=spectra,
        trained=trained,
        recovered=recovered,
        notes=(
            *work.notes,
            *latency.notes(),
            *(error.note for error in errors if error.note),
            *(note for learnt in (trained, recovered) if learnt is not None for note in learnt.notes()),
            *plan.notes,
            *notes_on_growth(plan, sizes.before, sizes.after),
            *_notes_on_ends(plan),
        ),
        seconds=work.clock.laps,
    )
    return replace(report, warnings=alarms(report)), written


def _limited(work: Workspace, choice: Choice) -> Scores | None:
    """What the file loses, where that is limited; a search has seen to it, a target has not."""
    limit, goal = choice.limit, work.job.goal
    if limit is None or work.judge is None:
        return None
    scores = work.judge.scores(work.staging.path, limit.allowed)
    if scores.lost > limit.allowed and goal.targets:
        target = goal.targets[0]
        raise TargetError(
            f"--{target} {getattr(goal, target):g} and --max-drop {limit.allowed:g} are out of reach together: the "
            f"plan costs {scores.lost:.2f} {limit.measure}; nothing was written. {limit.advice}"
        )
    return scores


def _latency(work: Workspace, known: Known, choice: Choice) -> Latency:
    plan, limit = choice.plan, choice.limit
    found = realise(
        known.evidence.table,
        plan.speedup,
        work.network.source,
        work.staging.path,
        work.network.input_shapes,
        work.job.device.threads,
        original=work.network.original,
    ).on_the_way(work.job.goal.speedup, choice.trials)
    if work.job.searched and limit is not None and found.measured is not None and found.measured.high < LEAST:
        raise TargetError(
            f"{limit.refusal}: the fastest plan within it is predicted to run {plan.speedup or 1.0:.2f}x as fast "
            f"and was measured at {found.measured.median:.2f}x; nothing was written. {limit.advice}"
        )
    if work.job.device.int8 and found.measured is not None and found.measured.high < LEAST:
        raise TargetError(
            f"in int8 the result runs {found.measured.median:.2f}x as fast as the original does in int8: quantize the "
            "original; nothing was written"
        )
    return found


def _notes_on_ends(plan: Plan) -> list[str]:
    """What the first and the last layer cost: they carry little of the MACs and much of the accuracy."""
    notes = []
    for decision in plan.decisions:
        if not decision.role or decision.scheme is None or not decision.macs_before:
            continue
        end = "first" if decision.role == "stem" else "last"
        saved = (decision.macs_before - (decision.macs_after or 0)) / max(1, plan.macs_before)
        notes.append(
            f"the {end} layer '{decision.name}' was factorised: it saves {saved:.1%} of the network's MACs for a "
            f"weight error of {decision.relative_error:.1%}; keep = true in --config leaves it as it is"
        )
    return notes
