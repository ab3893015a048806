"""One training as `compress` sees it: a model and its plan in, the model with trained weights and the ranks out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from trp_onnx.data import Data, Dataset, Preprocessing, open_data
from trp_onnx.data.functions import is_function
from trp_onnx.data.stores import Subset, as_arrays
from trp_onnx.errors import DataError, ModelError, TargetError, TrainingError, UsageError
from trp_onnx.evaluation.evaluation import choose_metric
from trp_onnx.evaluation.outputs import ClassLabels, Output, Told, counted, output_kinds
from trp_onnx.files.staging import write_text, written_whole
from trp_onnx.graph.batching import find_batching
from trp_onnx.graph.inputs import Inputs, InputSpec, Run, Samples, inputs_of, part_of
from trp_onnx.graph.layers import Layer, find_layers, network_macs
from trp_onnx.graph.model import open_model
from trp_onnx.graph.session import Arrays, open_session, run_session
from trp_onnx.job import Goal
from trp_onnx.lowrank.schemes import Rank
from trp_onnx.passes.normalise import normalise
from trp_onnx.planning import Plan, plan_at_ranks
from trp_onnx.planning.options import sites_of
from trp_onnx.progress import note
from trp_onnx.training.batches import DataSource, MicroBatch, open_batches
from trp_onnx.training.flat import ranks_of, unpack_result
from trp_onnx.training.isolated_runtime import ensure_runtime
from trp_onnx.training.job import (
    AGAIN,
    CHECKPOINT,
    DATA,
    FINETUNE,
    JOB,
    LOG,
    MODEL,
    RESULT,
    STAGES,
    TEACHER,
    ChosenBy,
    Job,
)
from trp_onnx.training.labels import class_range, count_right, name_classes
from trp_onnx.training.losses import OutputLoss, choose_losses, on_one_scale
from trp_onnx.training.metrics import read_curve
from trp_onnx.training.options import TrainingOptions, View
from trp_onnx.training.projection import Projection
from trp_onnx.training.run_folder import RunFolder
from trp_onnx.training.schedules import Fixed, schedule_of
from trp_onnx.training.supervisor import Supervisor
from trp_onnx.training.targets import targets_of
from trp_onnx.training.trainable import Trainable, make_trainable, materialise, separate_vectors, showing

if TYPE_CHECKING:
    from trp_onnx.latency.table import LatencyTable

_SAMPLES, _VIEWED = 4, 3
"""Samples on which a model is prepared, and steps whose samples are viewed."""

_FOLDED_RATE = 0.002
_NORMALISING = {"BatchNormalization", "LayerNormalization", "GroupNormalization", "InstanceNormalization"}
_INPUTS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class Trained:
    """What training came to, measured on the held-out part of its data.

    Attributes:
        epoch: The epoch whose weights were kept.
        epochs: Epochs in all.
        seconds: Wall time of the training, interruptions not counted.
        samples: Held-out samples; held-out labels, where a sample has several.
        score: Of what was trained, at the ranks: by the metric, negative where lower is better; without one its
            accuracy, and without labels the negative distance to the teacher.
        correct: Samples that it gets right; None without labels, and where a metric chooses.
        written_correct: Samples that the written file gets right.
        curve: Loss, accuracy and part of the MACs after each epoch.
        stays: Why the run directory stays, where it was to be removed.
    """

    epoch: int
    epochs: int
    seconds: float
    samples: int
    score: float
    correct: int | None
    written_correct: int | None = None
    curve: tuple[dict[str, Any], ...] = ()
    stays: str | None = None

    def notes(self) -> list[str]:
        """What the owner should know."""
        stays = [self.stays] if self.stays is not None else []
        if self.correct is None or self.written_correct in (None, self.correct):
            return stays
        return [
            *stays,
            f"the written file gets {self.written_correct} of the {self.samples} held-out samples right, the trained "
            f"network {self.correct}: folding BatchNormalization and splitting weights sums in another order, and "
            "samples on the border between two classes may fall on either side",
        ]


def digest_of(path: Path) -> str:
    """Of a file's bytes, of the names and sizes in a folder; empty for what is neither."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    inside = sorted((str(p.relative_to(path)), p.stat().st_size) for p in path.rglob("*") if p.is_file())
    return hashlib.sha256(repr(inside).encode()).hexdigest() if path.is_dir() else ""


def _counted(micro: MicroBatch, labelled: OutputLoss | None) -> int:
    """Samples, or where training learns from labels, those of them that count."""
    return micro.run.count if labelled is None or micro.labels is None else int(counted(micro.labels).sum())


def _joined(dataset: Dataset) -> Arrays:
    """Samples that were given one by one, as the model takes them."""
    runs = [] if dataset.store.image_files else dataset.take(np.arange(len(dataset)))
    if len(runs) != 1:
        raise DataError(
            f"'{dataset.source}' is no array, and its samples are images or differ in size: give the path of a file or "
            "folder, so that training workers can open it"
        )
    return runs[0].feeds | ({} if dataset.labels is None else {"y": dataset.labels})


def check_training(options: TrainingOptions, goal: Goal) -> None:
    """Refuse a goal that a strategy cannot have, before any work.

    Args:
        options: How to train.
        goal: How far to go.

    Raises:
        UsageError: A target is missing, there is one too many, or a value is out of range.
    """
    if not _finds_ranks(options, goal):
        if not goal.asked:
            raise UsageError("say how far to go: --macs 0.5, --speedup 1.5, --energy 0.02, --vbmf or --config")
        if len(goal.targets) > 1:
            raise UsageError("give only one of --macs, --speedup, --energy and --vbmf")
        return
    strategy = _strategy(options, goal)
    if goal.speedup is not None or goal.vbmf:
        raise UsageError(
            f"training: the strategy {strategy} finds ranks itself: it goes with --macs or --energy, not with "
            f"{'--vbmf' if goal.vbmf else '--speedup'}"
        )
    schedule_of(strategy, goal.energy, goal.macs)


def check_trainable(model: ir.Model, options: TrainingOptions) -> None:
    """Refuse a model that cannot be trained whatever its layers are, before any work.

    Raises:
        ModelError: An input is of a type that the training runtime does not take.
        UsageError: An output that is given a weight is none of its outputs.
    """
    for spec in inputs_of(model).values():
        if spec.dtype not in _INPUTS and not spec.whole:
            raise ModelError(
                f"input '{spec.name}' has type {spec.dtype}: training takes models whose inputs are whole numbers, "
                "booleans, float16, float32 or float64"
            )
    _note_folded(model, options)
    outputs = [value.name or "" for value in model.graph.outputs]
    for name in options.output_weights:
        if name not in outputs:
            raise UsageError(f"training: the model has no output '{name}' to weigh; there are {', '.join(outputs)}")


def _note_folded(model: ir.Model, options: TrainingOptions) -> None:
    """Exporters fold BatchNormalization, and without one the default step size is too large."""
    ops = {node.op_type for node in model.graph}
    if "Conv" in ops and not ops & _NORMALISING and options.clip is None and options.rate > _FOLDED_RATE:
        note(
            "the network has convolutions and no normalisation: if its BatchNormalization was folded by the exporter, "
            f"export it again with that kept, or train with --rate {_FOLDED_RATE:g} --clip 5"
        )


def _strategy(options: TrainingOptions, goal: Goal) -> str:
    return options.strategy or ("paper" if goal.energy is not None and goal.macs is None else "ranks")


def _finds_ranks(options: TrainingOptions, goal: Goal) -> bool:
    return bool(options.epochs) and _strategy(options, goal) != "ranks"


def take_over(model: ir.Model, arrays: Arrays) -> None:
    """Give a model its trained weights and statistics, by name."""
    for name, array in arrays.items():
        if name not in model.graph.initializers:
            raise ModelError(f"the trained weight '{name}' has no place in the model: please report it")
        model.graph.initializers[name].const_value = ir.tensor(array.copy(), name=name)


class TrainingRun:
    """A run directory with its workers; a context manager.

    Attributes:
        few: A few held-out samples.
        labels: What the labels say of the output that they speak of; None where they do not.
    """

    def __init__(
        self,
        folder: Path,
        data: Data,
        preprocessing: Preprocessing | None,
        options: TrainingOptions,
        teacher: Path,
        *,
        resume: bool | None,
        keep: bool,
        inputs: Inputs,
        metric: str | None = None,
        said: Mapping[str, Output] | None = None,
    ) -> None:
        """Open the data and the run directory, and start the workers.

        Args:
            folder: The run directory.
            data: A path, "pkg.module:function", or a data set in arrays.
            preprocessing: How samples of a file or folder become inputs.
            options: How to train.
            teacher: The model whose outputs the loss may hold to.
            resume: Whether a run goes on that is there already; None for either.
            keep: Whether the directory stays after success.
            inputs: The model's.
            metric: What chooses the best epoch, by name; accuracy or the distance to the teacher where not given.
            said: What a user says of outputs.

        Raises:
            TrainingError: There is a run already, or no training runtime.
            DataError: The data cannot be read, or has too few samples.
            UsageError: The folder is somebody else's.
            OutputError: The folder cannot be made.
        """
        self.folder = folder
        self._own = RunFolder(folder)
        self._own.check()
        self._options = options
        self._teacher, self._keep, self._metric, self._said = teacher, keep, metric, said or {}
        self._trained: Trained | None = None
        self._labelled: OutputLoss | None = None  # the output that labels speak of
        if self._begun() and resume is False:
            raise TrainingError(f"'{folder}' holds a training run: go on with it by --resume, or remove it")
        if resume and not self._begun():
            note(f"no training was interrupted in '{folder}': it begins with the first epoch")
        ensure_runtime()
        self._own.make()
        try:
            self._source = self._data_source(data, preprocessing, dict(inputs))
            self._batches = open_batches(self._source, options)
            if 0 < self._batches.steps * options.epochs <= options.warmup:
                note(
                    f"the training has {self._batches.steps * options.epochs} steps, within the warm-up of "
                    f"{options.warmup}: its step size stays below --rate; give more --epochs, or a smaller --batch or "
                    "--warmup"
                )
            first = next(iter(self._batches.validation(_SAMPLES, 0, 1)))
            self.few = part_of(inputs, first.run, slice(_SAMPLES))
            self.labels = self._class_labels(first.labels)
            chosen = None if metric is None else choose_metric(metric, first.labels, self._source.name)
            self._wants_teacher = chosen is not None and chosen.reference == "original"
            self._supervisor = Supervisor(folder / LOG, options.workers)
        except BaseException:
            self._clean()
            raise

    def _data_source(
        self, data: Data, preprocessing: Preprocessing | None, inputs: dict[str, InputSpec]
    ) -> DataSource:  # fmt: skip
        """What the workers open: a part of a file or folder as that, a data set in memory is written for them."""
        if isinstance(data, (str, PathLike)):
            path = Path(data)
            name = str(data) if is_function(str(data)) else str(path.resolve())
            return DataSource(name, digest_of(path), preprocessing or Preprocessing(), inputs)
        opened, path = open_data(data, preprocessing), self.folder / DATA
        if isinstance(opened.store, Subset) and Path(opened.source).exists():
            path, left_out = Path(opened.source).resolve(), opened.store.left_out
            return DataSource(str(path), digest_of(path), opened.preprocessing, inputs, left_out)
        arrays, ready = as_arrays(opened.store), opened.preprocessing
        if arrays is None:
            arrays, ready = _joined(opened.bound(inputs)), Preprocessing(label_offset=ready.label_offset)
        with written_whole(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        return DataSource(str(path.resolve()), digest_of(path), ready, inputs)

    def _class_labels(self, some: np.ndarray | None) -> ClassLabels | None:
        """What the labels say of the output that they speak of, a few of which are given; None where they do not."""
        labels = self._batches.labels
        if labels is None or some is None:
            return None
        if not name_classes(labels) or some.dtype.kind == "O":
            if self._options.labels is None:
                note(f"the labels of '{self._source.name}' name no classes: training learns from the teacher alone")
            return None
        high = class_range(labels)[1]
        return ClassLabels(max(0, high) + 1 + self._source.preprocessing.label_offset, some.shape[1:])

    def viewed(self, names: tuple[View, ...]) -> list[Run]:
        """The samples of the first steps as a training changes them, see `Augmentation`."""
        batches = open_batches(self._source, replace(self._options, augment=names))
        return [micro.run for step in islice(batches.epoch(0, 0, 0, 1), _VIEWED) for micro in step]

    @property
    def held_out(self) -> int:
        """Samples that choose the best epoch."""
        return sum(micro.run.count for micro in self._batches.validation(256, 0, 1))

    def samples(self, count: int) -> Samples:
        """At most so many samples of the training part."""
        return self._batches.samples(count)

    def finds_ranks(self, goal: Goal) -> bool:
        """Whether training decides on the ranks, and not the planner before it."""
        return _finds_ranks(self._options, goal)

    def train(
        self, model: ir.Model, layers: Sequence[Layer], chosen: Mapping[str, tuple[str, Rank]],
        kept: Mapping[str, str], goal: Goal, *, align: int, table: LatencyTable | None = None,
    ) -> tuple[list[Layer], Plan]:  # fmt: skip
        """Train with projection; the weights of `model` are replaced.

        Args:
            model: Normalised, BatchNormalization kept; changed in place.
            layers: Its layers.
            chosen: Scheme and rank of the layers to project.
            kept: Why the others are not, by name.
            goal: With e of the strategies "paper" and "energy", and the MACs to keep.
            align: Ranks that are planned again are multiples of this.
            table: What layers take in time; factors that are no faster are not made.

        Returns:
            The layers anew, and the plan at the ranks that training ended with.

        Raises:
            TargetError: The budget is below what rank 1 everywhere costs.
            TrpOnnxError: See `Supervisor.train`, `make_trainable`.
        """
        budget, schedule = goal.macs, schedule_of(_strategy(self._options, goal), goal.energy, goal.macs, align)
        if not self._options.epochs:
            return list(layers), plan_at_ranks(layers, chosen, "planned", kept, table)
        materialise(model, layers, chosen)
        layers = find_layers(model, self._shapes(model))
        targets = targets_of(layers, chosen)
        total = network_macs((layer, layer.macs) for layer in layers)
        projection = Projection(
            tuple(targets), schedule, self._options.every, total,
            total - sum(target.dense_macs for target in targets), self._options.nuclear,
            self._options.nuclear_every_step,
        )  # fmt: skip
        least = projection.rest_macs + sum(target.macs((1,) * len(target.rank)) for target in targets)
        if budget is not None and least > budget * total:
            raise TargetError(
                f"--macs {budget:g} is out of reach: at rank 1 in every layer {least / max(1, total):.3f} of the MACs "
                "remain; nothing was trained"
            )
        state = self._run(self.folder, model, projection, self._options)
        ranks = {target.layer: (target.scheme, rank) for target, rank in zip(targets, ranks_of(state), strict=True)}
        for group in sites_of(layers):
            if group[0].name in ranks:
                ranks |= {layer.name: ranks[group[0].name] for layer in group}
        by_time = budget is None or isinstance(schedule, Fixed)
        return layers, plan_at_ranks(layers, ranks, "the rank it was trained to", kept, table, by_time=by_time)

    def finetune(self, model: ir.Model) -> None:
        """Train the factors of a factorised model, in place, where the options ask for it."""
        options = self._options
        if not options.finetune_epochs:
            return
        options = replace(options, epochs=options.finetune_epochs, rate=options.finetune_rate)
        self._run(self.folder / FINETUNE, model, Projection(), options)

    def _shapes(self, model: ir.Model) -> dict[str, list[int]]:
        one = part_of(self._source.inputs, self.few, slice(1))
        return {name: list(array.shape) for name, array in one.feeds.items()}

    def _run(
        self, folder: Path, model: ir.Model, projection: Projection, options: TrainingOptions
    ) -> dict[str, Any]:  # fmt: skip
        """One stage: have a model trained, and take its weights over."""
        arrays, state = self.stage(folder, model, options, f"training, {options.epochs} epochs", projection=projection)
        take_over(model, arrays)
        samples = sum(_counted(micro, self._labelled) for micro in self._batches.validation(256, 0, 1))
        correct = None if state["accuracy"] is None else round(state["accuracy"] * samples)
        before = self._trained.seconds if self._trained is not None else 0.0
        self._trained = Trained(
            state["epoch"], options.epochs, before + state["seconds"], samples, state["score"], correct,
            curve=read_curve(folder),
        )  # fmt: skip
        return state

    def stage(
        self, folder: Path, model: ir.Model, options: TrainingOptions, what: str, *,
        projection: Projection | None = None, inner: Sequence[str] = (), keeps_start: bool = False,
    ) -> tuple[Arrays, dict[str, Any]]:  # fmt: skip
        """Write a run directory, and have it worked on.

        Args:
            folder: The directory.
            model: To be trained; its vectors are made its layers' own, its weights stay as they are.
            options: How.
            what: What that is, for people.
            projection: What is projected.
            inner: Values of the model that are held to those of the teacher as its outputs are.
            keeps_start: See `Job`.

        Returns:
            Trained weights and statistics by name, and the state of the result, see `State.result`.

        Raises:
            TrpOnnxError: See `Supervisor.train`, `make_trainable`.
        """
        separate_vectors(model)
        trainable, told = make_trainable(showing(model, inner), self.few), Told(self._said, self.labels)
        outputs = choose_losses(trainable.model, options, self.labels is not None, trainable.outputs, told)
        if inner:
            outputs = on_one_scale(outputs, trainable.outputs, inner)
        self._labelled = next((output for output in outputs if output.label_weight), None)
        if self._labelled is not None:
            self._check_labels(self._labelled.classes)
        teacher = self._teacher_for(trainable, inner) if any(o.distill_weight for o in outputs) else None
        if teacher is None and self._wants_teacher:
            raise UsageError(f"--metric {self._metric} compares with the teacher: train with --distill above 0")
        job = Job(
            options, outputs, trainable.parameters, trainable.no_decay, trainable.statistics,
            projection or Projection(), self._source, teacher is not None, self._chosen_by(trainable.outputs, told),
            keeps_start,
        )  # fmt: skip
        folder.mkdir(exist_ok=True)
        for name, proto in ((MODEL, trainable.model), (TEACHER, teacher)):
            if proto is not None:
                with written_whole(folder / name) as file:
                    file.write(proto.SerializeToString())
        write_text(folder / JOB, job.to_json())
        arrays, state = self._supervisor.train(folder, what)
        shapes = {t.name: tuple(t.dims) for t in trainable.model.graph.initializer}
        return unpack_result(job, shapes, arrays), state

    def _chosen_by(self, outputs: Arrays, told: Told) -> ChosenBy | None:
        if self._metric is None:
            return None
        return ChosenBy(self._metric, output_kinds(None, outputs, told), self.held_out, self._source.name)

    def _teacher_for(self, pupil: Trainable, inner: Sequence[str] = ()) -> onnx.ModelProto:
        """The teacher, BatchNormalization folded: its inputs and outputs are those of the model, in its order."""
        model, feeds = showing(normalise(open_model(self._teacher)), inner), self.few.feeds
        names = list(inputs_of(model))
        if len(names) == len(feeds) == 1:
            feeds = dict(zip(names, feeds.values(), strict=True))
        if set(names) != set(feeds):
            raise UsageError(
                f"training: the teacher '{self._teacher}' has inputs {', '.join(names)}, the model {', '.join(feeds)}"
            )
        teacher = make_trainable(model, replace(self.few, feeds=feeds))
        sizes, taught = ([array[:1].size for array in one.outputs.values()] for one in (pupil, teacher))
        if sizes != taught:
            raise UsageError(
                f"training: the teacher '{self._teacher}' has outputs of {taught} values a sample, the model of {sizes}"
            )
        return teacher.model

    def _check_labels(self, scores: int) -> None:
        labels = self._batches.labels
        if labels is None:
            return
        low, high = class_range(labels)
        offset = self._source.preprocessing.label_offset
        if low < 0 or high + offset >= scores:
            raise DataError(
                f"'{self._source.name}' has label {low if low < 0 else high}, but the model has {scores - offset} "
                f"classes (0 to {scores - offset - 1}): see --label-offset"
            )

    def summary(self, path: Path) -> Trained:
        """What training came to, and what the written file makes of the held-out samples."""
        assert self._trained is not None
        if not self._keep and (foreign := self._own.foreign()):
            self._trained = replace(
                self._trained, stays=f"the run folder '{self.folder}' stays: it holds '{foreign[0]}', which is not ours"
            )
        if self._trained.correct is None or self._labelled is None:
            return self._trained
        session, loss = open_session(path), self._labelled
        offset = self._source.preprocessing.label_offset
        correct = 0
        batching = find_batching(session, self.few, inputs_of(open_model(path)), most=64)
        for micro in self._batches.validation(batching.size, 0, 1):
            assert micro.labels is not None
            done = 0
            for run in batching.split([micro.run]):  # a function of the user's has batches of its own size
                scores = run.counted(run_session(session, run.feeds))[loss.name]
                correct += count_right(scores, loss.axis, micro.labels[done : done + run.count], offset)[0]
                done += run.count
        return replace(self._trained, written_correct=correct)

    def __enter__(self) -> TrainingRun:
        self._supervisor.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._supervisor.__exit__(kind, error, trace)
        if isinstance(error, KeyboardInterrupt) and self._begun():
            error.add_note(f"the training is kept in '{self.folder}': {AGAIN}")
        if kind is not None:
            self._clean()

    def _begun(self) -> bool:
        """Whether there is anything to go on from."""
        names = (CHECKPOINT, RESULT)
        return any((self.folder / part / name).exists() for part in ("", *STAGES) for name in names)

    def _clean(self) -> None:
        """A run that came to nothing leaves nothing."""
        if not self._begun() and not self._keep:
            self._own.remove()

    def remove(self) -> None:
        """The result is written: the directory has done its work, unless it is to stay."""
        if not self._keep:
            self._own.remove()
