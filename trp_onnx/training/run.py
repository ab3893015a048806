"""One training as `compress` sees it: a model and its plan in, the model with trained weights and the ranks out."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from trp_onnx.accuracy import as_feed
from trp_onnx.data import Dataset, Preprocessing
from trp_onnx.errors import DataError, OutputError, TrainingError, UsageError
from trp_onnx.layers import Layer, find_layers
from trp_onnx.model import open_model, write_text
from trp_onnx.normalise import normalise
from trp_onnx.planning import Plan, plan_at_ranks
from trp_onnx.planning.options import sites_of
from trp_onnx.runtime import open_session, run_session
from trp_onnx.schemes import Rank
from trp_onnx.training.batches import DataSource, is_function, open_batches
from trp_onnx.training.job import CHECKPOINT, JOB, LOG, MODEL, RESULT, TEACHER, Job
from trp_onnx.training.loop import ranks_of, unpack_result
from trp_onnx.training.losses import OutputLoss
from trp_onnx.training.options import TrainingOptions
from trp_onnx.training.projection import Projection, check_strategy, targets_of
from trp_onnx.training.quarantine import ensure_runtime
from trp_onnx.training.supervisor import Supervisor
from trp_onnx.training.trainable import Trainable, make_trainable, materialise, separate_vectors

_SAMPLES = 4


@dataclass(frozen=True)
class Trained:
    """What training came to, measured on the held-out part of its data.

    Attributes:
        epoch: The epoch whose weights were kept.
        epochs: Epochs in all.
        seconds: Wall time of the training, interruptions not counted.
        samples: Held-out samples.
        score: Accuracy of what was trained, at the ranks; without labels the negative distance to the teacher.
        correct: Samples that it gets right; None without labels.
        written_correct: Samples that the written file gets right.
    """

    epoch: int
    epochs: int
    seconds: float
    samples: int
    score: float
    correct: int | None
    written_correct: int | None = None

    def notes(self) -> list[str]:
        """What the owner should know."""
        if self.correct is None or self.written_correct in (None, self.correct):
            return []
        return [
            f"the written file gets {self.written_correct} of the {self.samples} held-out samples right, the trained "
            f"network {self.correct}: folding BatchNormalization and splitting weights sums in another order, and "
            "samples on the border between two classes may fall on either side"
        ]


class TrainingRun:
    """A run directory with its workers; a context manager."""

    def __init__(
        self,
        folder: Path,
        data: str | PathLike[str] | Dataset,
        preprocessing: Preprocessing | None,
        options: TrainingOptions,
        teacher: Path,
        *,
        resume: bool,
        keep: bool,
    ) -> None:
        """Open the data and the run directory, and start the workers.

        Args:
            folder: The run directory.
            data: A file or folder, an open data set, or "pkg.module:function".
            preprocessing: How samples of a file or folder become inputs.
            options: How to train.
            teacher: The model whose outputs the loss may hold to.
            resume: Whether a run may be there already.
            keep: Whether the directory stays after success.

        Raises:
            TrainingError: There is a run already, or no training runtime.
            DataError: The data cannot be read, or has too few samples.
            OutputError: The folder cannot be made.
        """
        self.folder = folder
        self._options = options
        self._teacher, self._keep = teacher, keep
        self._trained: Trained | None = None
        if self._begun() and not resume:
            raise TrainingError(f"'{folder}' holds a training run: go on with it by --resume, or remove it")
        ensure_runtime()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the run folder '{folder}': {error.strerror}") from error
        try:
            self._source = self._data_source(data, preprocessing)
            self._batches = open_batches(self._source, options)
            first = next(iter(self._batches.validation(_SAMPLES, 0, 1)))
            self._x, self._labelled = first.x[:_SAMPLES], first.y is not None
            self._supervisor = Supervisor(folder / LOG, options.workers)
        except BaseException:
            self._clean()
            raise

    def _data_source(self, data: str | PathLike[str] | Dataset, preprocessing: Preprocessing | None) -> DataSource:
        """What the workers open; a data set in memory is written for them."""
        if not isinstance(data, Dataset):
            path = Path(data)
            name = str(data) if is_function(str(data)) else str(path.resolve())
            return DataSource(name, path.stat().st_size if path.is_file() else 0, preprocessing or Preprocessing())
        if isinstance(data.samples, tuple):
            raise DataError(f"'{data.source}' is an opened image folder: give its path, so that workers can open it")
        path = self.folder / "data.npz"
        arrays = {"x": data.samples} | ({} if data.labels is None else {"y": data.labels})
        try:
            np.savez(path, **arrays)  # type: ignore[arg-type]
        except OSError as error:
            raise OutputError(f"cannot write '{path}': {error.strerror}") from error
        return DataSource(str(path.resolve()), path.stat().st_size, data.preprocessing)

    def samples(self, count: int) -> np.ndarray:
        """Some samples of the training part, model inputs: (b, ...)."""
        return self._batches.samples(count)

    def finds_ranks(self, energy: float | None, budget: float | None) -> bool:
        """Whether training decides on the ranks, and not the planner before it."""
        return bool(self._options.epochs) and self._strategy(energy, budget) != "ranks"

    def _strategy(self, energy: float | None, budget: float | None) -> str:
        return self._options.strategy or ("paper" if energy is not None and budget is None else "ranks")

    def train(
        self, model: ir.Model, layers: Sequence[Layer], chosen: Mapping[str, tuple[str, Rank]],
        kept: Mapping[str, str], *, energy: float | None, budget: float | None, align: int,
    ) -> tuple[list[Layer], Plan]:  # fmt: skip
        """Train with projection; the weights of `model` are replaced.

        Args:
            model: Normalised, BatchNormalization kept; changed in place.
            layers: Its layers.
            chosen: Scheme and rank of the layers to project.
            kept: Why the others are not, by name.
            energy: e of the strategies "paper" and "energy".
            budget: R.
            align: Ranks that are planned again are multiples of this.

        Returns:
            The layers anew, and the plan at the ranks that training ended with.

        Raises:
            TrpOnnxError: See `Supervisor.train`, `make_trainable`.
        """
        strategy = self._strategy(energy, budget)
        check_strategy(strategy, energy, budget)
        if not self._options.epochs:
            return list(layers), plan_at_ranks(layers, chosen, "planned", kept)
        as_feed(model, self._x[: _fixed_batch(model)])  # refuses samples that do not fit
        materialise(model, layers, chosen)
        layers = find_layers(model, self._shapes(model))
        targets = targets_of(layers, chosen)
        total = sum(layer.macs or 0 for layer in layers)
        projection = Projection(
            tuple(targets), strategy, self._options.every, energy, budget, align, total,
            total - sum(target.dense_macs for target in targets), self._options.nuclear,
            self._options.nuclear_every_step,
        )  # fmt: skip
        state = self._run(self.folder, model, projection, self._options)
        ranks = {target.layer: (target.scheme, rank) for target, rank in zip(targets, ranks_of(state), strict=True)}
        for group in sites_of(layers):
            if group[0].name in ranks:
                ranks |= {layer.name: ranks[group[0].name] for layer in group}
        return layers, plan_at_ranks(layers, ranks, "the rank it was trained to", kept)

    def finetune(self, model: ir.Model) -> None:
        """Train the factors of a factorised model, in place, where the options ask for it."""
        options = self._options
        if not options.finetune_epochs:
            return
        options = replace(options, epochs=options.finetune_epochs, rate=options.finetune_rate)
        folder = self.folder / "finetune"
        folder.mkdir(exist_ok=True)
        self._run(folder, model, Projection(), options)

    def _shapes(self, model: ir.Model) -> dict[str, list[int]]:
        return {model.graph.inputs[0].name or "": [1, *self._x.shape[1:]]}

    def _run(
        self, folder: Path, model: ir.Model, projection: Projection, options: TrainingOptions
    ) -> dict[str, Any]:  # fmt: skip
        """One stage: write the run directory, have it worked on, take the weights over."""
        separate_vectors(model)
        trainable = make_trainable(model, self._x)
        outputs = self._losses(trainable.model, options)
        distilled = any(output.distill_weight for output in outputs)
        job = Job(
            options, trainable.model.graph.input[0].name, outputs, trainable.parameters, trainable.no_decay,
            trainable.statistics, projection, self._source, distilled,
        )  # fmt: skip
        self._write(folder, job, trainable, distilled)
        arrays, state = self._supervisor.train(folder)
        shapes = {t.name: tuple(t.dims) for t in trainable.model.graph.initializer}
        for name, array in unpack_result(job, shapes, arrays).items():
            if name in model.graph.initializers:
                model.graph.initializers[name].const_value = ir.tensor(array.copy(), name=name)
        samples = sum(len(micro.x) for micro in self._batches.validation(256, 0, 1))
        correct = None if state["accuracy"] is None else round(state["accuracy"] * samples)
        before = self._trained.seconds if self._trained is not None else 0.0
        self._trained = Trained(
            state["epoch"], options.epochs, before + state["seconds"], samples, state["score"], correct
        )
        return state

    def _write(self, folder: Path, job: Job, trainable: Trainable, distilled: bool) -> None:
        try:
            (folder / MODEL).write_bytes(trainable.model.SerializeToString())
            if distilled:
                teacher = make_trainable(normalise(open_model(self._teacher))[0], self._x).model
                (folder / TEACHER).write_bytes(teacher.SerializeToString())
        except OSError as error:
            raise OutputError(f"cannot write '{folder}': {error.strerror}") from error
        write_text(folder / JOB, job.to_json())

    def _losses(self, model: onnx.ModelProto, options: TrainingOptions) -> tuple[OutputLoss, ...]:
        """What each output is held to."""
        labels = (1.0 if options.distill == 0 else 0.3) if options.labels is None else options.labels
        if not self._labelled:
            if options.labels:
                raise DataError(f"'{self._source.name}' has no labels: train with distillation alone, --labels 0")
            labels = 0.0
        distill = (0.7 if labels else 1.0) if options.distill is None else options.distill
        if not labels and not distill:
            raise UsageError("training: without labels the loss needs --distill")
        unknown = set(options.output_weights) - {value.name for value in model.graph.output}
        if unknown:
            raise UsageError(f"training: the model has no output '{min(unknown)}' to weigh")
        if distill:
            self._check_teacher(model)
        producers = {name: node for node in model.graph.node for name in node.output}
        losses: list[OutputLoss] = []
        for value in model.graph.output:
            weight = options.output_weights.get(value.name, 1.0)
            dims = [d.dim_value for d in value.type.tensor_type.shape.dim[1:]]
            scores = bool(dims) and max(dims) == int(np.prod(dims)) and max(dims) > 1
            takes_labels = scores and labels > 0 and not any(loss.label_weight for loss in losses)
            logits = takes_labels or options.distill_kind == "kl" or (options.distill_kind == "auto" and scores)
            probabilities = logits and _is_softmax(producers, value.name)
            losses.append(
                OutputLoss(
                    value.name, logits, probabilities, labels * weight if takes_labels else 0.0, distill * weight
                )
            )
            if takes_labels:
                self._check_labels(max(dims))
        if labels and not any(loss.label_weight for loss in losses):
            raise DataError("the model has no output with one score a class: train with --labels 0")
        return tuple(losses)

    def _check_teacher(self, model: onnx.ModelProto) -> None:
        """A teacher has as many outputs as the model, each with as many values for a sample."""
        shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim[1:]] for v in model.graph.output]
        teacher = open_model(self._teacher)
        taught = [[d for d in v.shape[1:] if isinstance(d, int)] if v.shape else [] for v in teacher.graph.outputs]
        if [int(np.prod(s)) for s in shapes] != [int(np.prod(s)) for s in taught]:
            raise UsageError(
                f"training: the teacher '{self._teacher}' has outputs of shape {taught}, the model of {shapes}"
            )

    def _check_labels(self, scores: int) -> None:
        labels = self._batches.labels
        if labels is None:
            return
        low, high = int(labels.min()), int(labels.max())
        offset = self._source.preprocessing.label_offset
        if low < 0 or high + offset >= scores:
            raise DataError(
                f"'{self._source.name}' has label {low if low < 0 else high}, but the model has {scores - offset} "
                f"classes (0 to {scores - offset - 1}): see --label-offset"
            )

    def summary(self, path: Path) -> Trained:
        """What training came to, and what the written file makes of the held-out samples."""
        assert self._trained is not None
        if self._trained.correct is None:
            return self._trained
        session, model = open_session(path), open_model(path)
        offset = self._source.preprocessing.label_offset
        correct = 0
        for micro in self._batches.validation(_fixed_batch(model) or 64, 0, 1):
            assert micro.y is not None
            outputs = run_session(session, as_feed(model, micro.x)).values()
            scores = next(o for o in outputs if o.ndim > 1 and o[0].size == max(o.shape[1:]) > 1)
            scores = scores.reshape(len(scores), -1)[: len(micro.x), offset:]
            correct += int((scores.argmax(axis=1) == micro.y).sum())
        return replace(self._trained, written_correct=correct)

    def __enter__(self) -> TrainingRun:
        self._supervisor.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._supervisor.__exit__(kind, error, trace)
        if isinstance(error, KeyboardInterrupt) and self._begun():
            error.add_note(f"the training is kept in '{self.folder}', go on with --resume")
        if kind is not None:
            self._clean()

    def _begun(self) -> bool:
        """Whether there is anything to go on from."""
        names = (CHECKPOINT, RESULT)
        return any((self.folder / part / name).exists() for part in ("", "finetune") for name in names)

    def _clean(self) -> None:
        """A run that came to nothing leaves nothing."""
        if not self._begun() and not self._keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def remove(self) -> None:
        """The result is written: the directory has done its work, unless it is to stay."""
        if not self._keep:
            with contextlib.suppress(OSError):
                shutil.rmtree(self.folder)


def _fixed_batch(model: ir.Model) -> int | None:
    shape = model.graph.inputs[0].shape
    return shape[0] if shape is not None and len(shape) and isinstance(shape[0], int) else None


def _is_softmax(producers: dict[str, onnx.NodeProto], name: str) -> bool:
    node = producers.get(name)
    while node is not None and node.op_type in ("Identity", "Reshape", "Flatten", "Squeeze"):
        node = producers.get(node.input[0])
    return node is not None and node.op_type == "Softmax"
