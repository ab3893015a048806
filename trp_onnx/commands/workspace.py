"""What is open while a network is compressed: the network as it was and normalised, samples, the hidden result."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trp_onnx.calibration.samples import CalibrationSplit
from trp_onnx.data import Dataset, open_data
from trp_onnx.data.feeding import read_inputs
from trp_onnx.evaluation.built_in import AGREEMENT
from trp_onnx.evaluation.evaluation import Evaluation
from trp_onnx.evaluation.judging import Judge, judge, judge_by_error
from trp_onnx.evaluation.outputs import ClassLabels, Output, Told, read_said
from trp_onnx.evaluation.verify import MAPPED_FROM, reference_outputs
from trp_onnx.files.paths import guard
from trp_onnx.files.staging import Staging, files_of
from trp_onnx.graph.batching import find_batching
from trp_onnx.graph.generating import generate
from trp_onnx.graph.in_memory import IN_MEMORY, ModelLike, model_file, shown
from trp_onnx.graph.inputs import Run, inputs_of
from trp_onnx.graph.model import open_model, weight_bytes
from trp_onnx.graph.session import Arrays, open_session
from trp_onnx.graph.sizes import sizes_from
from trp_onnx.job import Goal
from trp_onnx.job.job import Job
from trp_onnx.latency.table import LatencyTable, read_table
from trp_onnx.passes.network import Network
from trp_onnx.planning.rules import first_match
from trp_onnx.progress import at_work, note
from trp_onnx.schema import check_type, path_of
from trp_onnx.training.job import RUN_FILES

if TYPE_CHECKING:
    from trp_onnx.training.recovery import Recovery
    from trp_onnx.training.run import TrainingRun

logger = logging.getLogger(__name__)

VERIFY_SAMPLES = 16
"""Samples of the data on which outputs are compared, when there is data."""

SCORED_SAMPLES = 64
"""Samples of the data on which both files are measured, where there are no test samples."""


class Clock:
    """Wall seconds of each phase.

    Attributes:
        laps: By name.
    """

    def __init__(self) -> None:
        """Start."""
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a phase, and begin the next."""
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now
        logger.info("%s: %.2f s", name, self.laps[name])


@dataclass
class Workspace:
    """What is open while a network is compressed.

    Attributes:
        job: What was asked for.
        names: What the report calls the network and the result.
        network: What is compressed; factorised in place in the end.
        feeds: What the result is verified on.
        expected: What the original gives for that.
        verified_on: What that is, for people.
        staging: Where the result is built.
        samples: What ranks and factors are fitted to, where nothing is trained.
        tested: What both files are measured on, once, at the end.
        said: What the user says of outputs.
        evaluation: What both files are measured by at the end, where there are samples.
        judge: What candidates lose, where that is limited.
        session: The training.
        recovery: What the compressed network learns in afterwards.
        table: The latency table that was given.
        notes: What the owner should know.
        clock: Seconds of each phase.
    """

    job: Job
    names: tuple[str, str]
    network: Network
    feeds: Arrays
    expected: Arrays
    verified_on: str
    staging: Staging
    samples: CalibrationSplit | None
    tested: Dataset | None
    said: Mapping[str, Output]
    evaluation: Evaluation | None
    judge: Judge | None
    session: TrainingRun | None
    recovery: Recovery | None
    table: LatencyTable | None
    notes: list[str]
    clock: Clock = field(default_factory=Clock)

    @property
    def in_memory(self) -> bool:
        """Whether the result stays in memory."""
        return self.names[1] == IN_MEMORY

    @property
    def told(self) -> Told:
        """What is known of outputs beside their values; what labels name is the same in the test."""
        sets = (self.samples.dataset if self.samples is not None else None, self.tested)
        named = [ClassLabels.of(data.labels, data.preprocessing.label_offset) for data in sets if data is not None]
        return Told(self.said, next((labels for labels in named if labels is not None), None))

    @property
    def untouched(self) -> set[str]:
        """Names of the layers that the map keeps as they are."""
        rules = self.job.goal.rules
        return {layer.name for layer in self.network.layers if (match := first_match(rules, layer.name)) and match.keep}


@contextmanager
def open_workspace(job: Job, model: ModelLike, out: str | PathLike[str] | None) -> Iterator[Workspace]:
    """Open everything, and refuse what cannot be done, before any work.

    Args:
        job: What is asked for.
        model: The network.
        out: Where the result goes; None for one that stays in memory.

    Raises:
        ModelError: The model cannot be read or run.
        DataError: The data or the latency table cannot be read or does not fit.
        OutputError: The result cannot be written.
        UsageError: The options contradict the model.
        TrainingError: Training cannot start.
    """
    clock = Clock()
    with at_work() as notes, ExitStack() as stack:
        source, place = stack.enter_context(model_file(model, out))
        folder = job.folder(place)
        _guard(job, source, place, folder)
        _check_training(job)
        table = _read_table(job.device.latency_table)
        original = open_model(source)
        samples, tested = _open_samples(job, original)
        if job.training is not None:
            from trp_onnx.training.run import check_trainable

            check_trainable(original, job.training.options)
        said = read_said(job.network.output_kinds)
        evaluation = _evaluation(job, source, samples, tested, said)
        staging = stack.enter_context(Staging(place, original, job.network.external_data))
        session = _training_run(job, source, original, folder, said)
        if session is not None:
            stack.enter_context(session)
        recovery = _recovery(job, source, original, folder, samples, tested, said)
        if recovery is not None:
            stack.enter_context(recovery)
            if recovery.planned is not None:
                note("the recovery that was interrupted goes on, with the plan that it began with")
                job = replace(job, goal=Goal(rules=recovery.planned, metric=job.goal.metric))
        feeds, verified_on = _feeds(job, source, original, tested, samples, session)
        judge = _judge(job, source, samples, feeds, verified_on, said)
        shapes = job.network.input_shapes
        if job.network.inputs is not None or tested is not None or job.data is not None:  # what is generated is guessed
            shapes = sizes_from(original, feeds, shapes, samples=job.network.inputs is None)
        expected = reference_outputs(source, original, feeds)
        clock.lap("open")
        network = Network.of(
            source, original, shapes, simplify=job.network.simplify, fold_batch_norm=job.training is None
        )  # fmt: skip
        clock.lap("normalise")
        names = shown(model), IN_MEMORY if out is None else str(out)
        yield Workspace(
            job, names, network, feeds, expected, verified_on, staging, samples,
            tested, said, evaluation, judge, session, recovery, table, notes, clock,
        )  # fmt: skip


def _guard(job: Job, source: Path, out: Path, folder: Path | None) -> None:
    teacher = None if job.training is None else job.training.teacher
    guard(
        writes=files_of(out),
        folders=[(folder, RUN_FILES)],
        reads=[source, job.device.latency_table, job.network.inputs, job.data, job.test, teacher],
    )


def _check_training(job: Job) -> None:
    if job.training is not None:
        from trp_onnx.training.options import TrainingOptions
        from trp_onnx.training.run import check_training

        check_type(job.training.options, TrainingOptions, "options of the training")
        check_training(job.training.options, job.goal)


def _read_table(given: LatencyTable | str | PathLike[str] | None) -> LatencyTable | None:
    if given is None or isinstance(given, LatencyTable):
        return given
    return read_table(path_of(given, "latency_table"))


def _open_samples(job: Job, original: ir.Model) -> tuple[CalibrationSplit | None, Dataset | None]:
    """What is fitted to, where nothing is trained, and what is tested on."""
    known, preprocessing, dropped = inputs_of(original), job.network.preprocessing, job.goal.max_drop is not None
    samples = None
    if job.data is not None and job.training is None:
        samples = CalibrationSplit(job.data, preprocessing, known, holds_out=job.searched or dropped, by_labels=dropped)
    tested = None if job.test is None else open_data(job.test, preprocessing).bound(known)
    return samples, tested


def _evaluation(
    job: Job, source: Path, samples: CalibrationSplit | None, tested: Dataset | None, said: Mapping[str, Output]
) -> Evaluation | None:
    """What both files are measured by: the test samples, else samples that factors are not fitted to."""
    metric = job.goal.metric
    if tested is not None:
        if tested.labels is None and metric is None:
            note(f"'{tested.source}' has no labels: agreement with the original is measured, not accuracy")
        return Evaluation(metric, source, tested, said)
    if samples is None:
        return None
    return Evaluation(AGREEMENT if metric is None else metric, source, samples.unfitted(SCORED_SAMPLES), said)


def _judge(
    job: Job, source: Path, samples: CalibrationSplit | None, feeds: Arrays, fed: str, said: Mapping[str, Output]
) -> Judge | None:
    """What candidates lose by the metric; without a limit that the user gave, of the original's answers."""
    if not job.searched and job.goal.max_drop is None:
        return None
    if samples is None:
        return judge_by_error(source, feeds, fed, said)
    return judge(AGREEMENT if job.goal.max_drop is None else job.goal.metric, source, samples.held_out, said)


def _training_run(
    job: Job, source: Path, original: ir.Model, folder: Path | None, said: Mapping[str, Output]
) -> TrainingRun | None:
    if job.training is None or job.data is None or folder is None:
        return None
    from trp_onnx.training.run import TrainingRun

    training = job.training
    return TrainingRun(
        folder, job.data, job.network.preprocessing, training.options,
        source if training.teacher is None else Path(training.teacher),
        resume=training.resume, keep=training.run is not None, inputs=inputs_of(original),
        metric=job.goal.metric if isinstance(job.goal.metric, str) else None, said=said,
    )  # fmt: skip


def _recovery(
    job: Job, source: Path, original: ir.Model, folder: Path | None, samples: CalibrationSplit | None,
    tested: Dataset | None, said: Mapping[str, Output],
) -> Recovery | None:  # fmt: skip
    if job.recover is None or samples is None or folder is None:
        return None
    from trp_onnx.training.recovery import Recovery

    request = repr((replace(job.goal, metric=None), job.search, job.network.preprocessing))
    dataset = samples.learnable(0 if tested is not None else SCORED_SAMPLES)
    return Recovery(folder, dataset, job.recover, source, original, request, said)


def _feeds(
    job: Job,
    source: Path,
    model: ir.Model,
    tested: Dataset | None,
    samples: CalibrationSplit | None,
    session: TrainingRun | None,
) -> tuple[Arrays, str]:
    """Inputs for the comparison: given ones, else samples of the data, else generated."""
    inputs = job.network.inputs
    if inputs is not None:
        named = f" in {Path(inputs).name}" if isinstance(inputs, (str, PathLike)) else ""
        return read_inputs(model, inputs), f"the inputs{named}"
    dataset = tested or (samples.dataset if samples is not None else None)
    if dataset is None and session is None:
        made = generate(model, job.network.input_shapes)
        return made.arrays, f"generated inputs ({made.description})"

    known = inputs_of(model)

    def first(count: int) -> Run:
        if dataset is not None:
            return dataset.take(np.arange(min(count, len(dataset))))[0]
        assert session is not None
        return session.samples(count).longest

    opened = open_session(source, mapped=weight_bytes(model) > MAPPED_FROM)
    batching = find_batching(opened, first(2), known, most=VERIFY_SAMPLES)
    run = next(batching.split([first(batching.size)]))
    where = Path(dataset.source).name if dataset is not None else "the training data"
    return run.feeds, f"{run.count} sample{'s' * (run.count > 1)} of {where}"
