"""The main job: open -> find layers -> measure -> plan -> (train) -> factorise -> save -> verify -> report."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING

import onnx_ir as ir

from trp_onnx._version import __version__
from trp_onnx.commands.assessing import assess
from trp_onnx.commands.choosing import Choice, choose
from trp_onnx.commands.evidence import Known, gather
from trp_onnx.commands.result import Compressed
from trp_onnx.commands.workspace import Workspace, open_workspace
from trp_onnx.data import Data
from trp_onnx.files.made import opened
from trp_onnx.files.paths import MADE_BY
from trp_onnx.graph.fingerprint import file_hash
from trp_onnx.graph.in_memory import ModelLike
from trp_onnx.graph.model import file_bytes
from trp_onnx.job import Device, Goal, NetworkOptions, SearchSpace, Training
from trp_onnx.job.job import Job
from trp_onnx.passes import CleanUpPass, FoldBatchNormPass
from trp_onnx.planning import Plan
from trp_onnx.planning.apply import carry_out
from trp_onnx.report import Report, spectra_of
from trp_onnx.report.record import record_of, write_record

if TYPE_CHECKING:
    from trp_onnx.training.recovery import Recovered


def compress(
    model: ModelLike,
    out: str | PathLike[str] | None = None,
    goal: Goal | Plan | None = None,
    *,
    data: Data | None = None,
    test: Data | None = None,
    search: SearchSpace | None = None,
    device: Device | None = None,
    training: Training | None = None,
    network: NetworkOptions | None = None,
    recover: float | None = None,
) -> Compressed:
    """Factorise the layers of a trained network, and verify the result on the written file.

    With `data`, factors keep the outputs of their layers on those samples instead of the weights. With `training`,
    the network is first trained on `data` with projection (Trained Rank Pruning), so that factorisation costs
    next to no accuracy.

    Without a goal the plan is the fastest one that keeps the outputs: with `data` the file gives the answers of the
    original on 99 % of held-out samples, without it the outputs move by at most 2 % on generated inputs.

    Nothing appears at `out` before the written file has been opened again, checked and run beside the original; the
    input is never modified.

    Args:
        model: The network: a file, its bytes, an `onnx.ModelProto` or an `onnx_ir.Model`.
        out: Where the compressed one goes; weights of a large model into `<out>.data` beside it, or `<out>.1.data`
            while the model that is replaced uses that. Without it the result stays in memory.
        goal: How far to go; a `Plan` makes each layer what it was there.
        data: Samples to fit ranks and factors to, whatever `open_data` takes, labels not needed; with `training`,
            samples to train on, or the name of a function, see `training.batches`, and a part of them is held out.
        test: Samples on which both files are measured once, at the end.
        search: What layers may become.
        device: What it is compressed for.
        training: How to train; no training where not given.
        network: How the network is opened, and how samples become its inputs.
        recover: Minutes in which the compressed network learns from the original on `data`, without labels; what is
            interrupted goes on from `<out>.trp-run` with the same call.

    Returns:
        The compressed network, its plan, and what was gained and lost.

    Raises:
        ModelError: The model cannot be read, run or factorised.
        DataError: The data or the latency table cannot be read or does not fit.
        OutputError: The result cannot be written.
        VerificationError: The written file failed its check; it was removed.
        UsageError: The options contradict each other or the model.
        TrainingError: Training cannot start, or diverged, or a worker died.
        TargetError: The goal is out of reach; nothing was written.
    """
    goal = Goal(rules=goal.rules()) if isinstance(goal, Plan) else Goal() if goal is None else goal
    job = Job(
        goal, data, test, search or SearchSpace(), device or Device(), training, network or NetworkOptions(), recover
    )  # fmt: skip
    with open_workspace(job, model, out) as work:
        known = gather(work)
        choice = choose(work, known)
        spectra = spectra_of(work.network.layers, choice.plan.decisions, known.evidence)
        recovered = _write(work, known, choice)
        report = _recorded(work, *assess(work, known, choice, spectra, recovered))
        work.staging.publish()
        if work.session is not None:
            work.session.remove()
        if work.recovery is not None:
            work.recovery.remove()
        path = work.staging.out
        model = opened(path, in_memory=work.in_memory)
        return Compressed(model, None if work.in_memory else path, choice.plan, report)


def _write(work: Workspace, known: Known, choice: Choice) -> Recovered | None:
    """Carry the plan out, let the network recover, and write the result where it is hidden still."""
    if choice.made is not None:
        work.network.normal = choice.made.model
        work.notes += choice.made.notes
    else:
        work.notes += carry_out(
            choice.plan, work.network.normal, work.network.layers, known.evidence, known.samples, work.staging.keep,
            input_shapes=work.network.input_shapes, asymmetric=work.job.search.asymmetric, untouched=work.untouched,
        )  # fmt: skip
    if work.session is not None:
        work.session.finetune(work.network.normal)
        FoldBatchNormPass()(work.network.normal)
    CleanUpPass()(work.network.normal)
    work.network.normal.metadata_props[MADE_BY] = __version__
    work.clock.lap("factorise")
    recovered = None
    if work.recovery is not None:
        recovered = work.recovery.recover(work.network.normal, choice.plan)
        work.clock.lap("recover")
    work.staging.save(work.network.normal)
    if work.staging.data.exists():
        work.notes.append(
            f"the weights are in '{work.staging.data.name}': it belongs beside '{work.staging.out.name}'"
        )  # fmt: skip
    work.clock.lap("save")
    return recovered


def _recorded(work: Workspace, report: Report, written: ir.Model) -> Report:
    """Write what was measured into the file's metadata; its size in the report is with that."""
    path, source = work.staging.path, work.network.source
    shapes = {name: tuple(shape) for name, shape in (work.network.input_shapes or {}).items()}
    record = record_of(report, file_hash(source, work.network.original), written, work.job.device.threads, shapes)
    write_record(path, record)
    sizes = replace(report.file_bytes, after=file_bytes(path, written))
    files = report.files | ({path.name: path.stat().st_size} if report.files else {})
    return replace(
        report, file_bytes=sizes, files=files, date=record.date, source_sha256=record.source_sha256,
        fingerprint=record.fingerprint,
    )  # fmt: skip
