"""One training as `compress` sees it: a model and its plan in, the model with trained weights and the ranks out."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from trp_onnx.accuracy import as_feed
from trp_onnx.data import Augmentation, Dataset, Preprocessing
from trp_onnx.errors import DataError, OutputError, TrainingError, UsageError
from trp_onnx.layers import Layer, find_layers
from trp_onnx.model import open_model, write_text
from trp_onnx.normalise import normalise
from trp_onnx.planning import Plan, plan_at_ranks
from trp_onnx.planning.options import sites_of
from trp_onnx.runtime import open_session, run_session
from trp_onnx.schemes import Rank
from trp_onnx.training.batches import Batches, CallableBatches
from trp_onnx.training.job import CHECKPOINT, JOB, LOG, MODEL, RESULT, TEACHER, Job
from trp_onnx.training.loop import ranks_of, unpack_result
from trp_onnx.training.losses import OutputLoss
from trp_onnx.training.options import TrainingOptions
from trp_onnx.training.projection import Target
from trp_onnx.training.supervisor import Supervisor
from trp_onnx.training.trainable import Trainable, make_trainable, materialise

_SAMPLES = 4


@dataclass(frozen=True)
class Trained:
    """What training came to, on the held-out part of its data.

    Attributes:
        epoch: The epoch whose weights were kept.
        epochs: Epochs in all.
        seconds: Wall time of the training, interruptions not counted.
        correct: Held-out samples that the trained dense network gets right, at the ranks; None without labels.
        samples: Held-out samples.
        score: Accuracy, or without labels the negative distance to the teacher.
    """

    epoch: int
    epochs: int
    seconds: float
    correct: int | None
    samples: int
    score: float


class TrainingRun:
    """A run directory with its workers; a context manager."""

    def __init__(
        self,
        folder: Path,
        data: str,
        dataset: Dataset | None,
        preprocessing: Preprocessing,
        options: TrainingOptions,
        *,
        teacher: ir.Model | None,
        resume: bool,
        keep: bool,
    ) -> None:
        """Open the run directory and start the workers.

        Args:
            folder: The run directory.
            data: Path of the training data, or `pkg.module:function`.
            dataset: That data, unless it is a function.
            preprocessing: How samples become inputs.
            options: How to train.
            teacher: Normalised model whose outputs the loss may hold to.
            resume: Whether a run may be there already.
            keep: Whether the directory stays after success.

        Raises:
            TrainingError: There is a run already, or none to resume, or no training runtime.
            DataError: The data has too few samples.
            OutputError: The folder cannot be made.
        """
        self.folder = folder
        self._data, self._preprocessing, self._options = data, preprocessing, options
        self._teacher, self._keep = teacher, keep
        self._labelled = dataset is None or dataset.labels is not None
        self._dataset = dataset
        self._bytes = Path(data).stat().st_size if dataset is not None and Path(data).is_file() else 0
        self._batches: Batches | CallableBatches = (
            CallableBatches(data, micro_batch=options.micro_batch)
            if dataset is None
            else Batches(
                dataset, batch=options.batch, micro_batch=options.micro_batch, validation=options.validation,
                seed=options.seed, augmentation=Augmentation(),
            )
        )  # fmt: skip
        first = next(iter(self._batches.validation(_SAMPLES, 0, 1)))
        self._x = first.x[:_SAMPLES]
        if dataset is None:
            self._labelled = first.y is not None
        begun = any((folder / part / name).exists() for part in ("", "finetune") for name in (CHECKPOINT, RESULT))
        if begun and not resume:
            raise TrainingError(f"'{folder}' holds a training run: go on with it by --resume, or remove it")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the run folder '{folder}': {error.strerror}") from error
        self._supervisor = Supervisor(folder / LOG, options.workers)

    def train(
        self, model: ir.Model, layers: Sequence[Layer], chosen: dict[str, tuple[str, Rank]], *,
        energy: float | None, budget: float | None, align: int,
    ) -> tuple[list[Layer], Plan, Trained]:  # fmt: skip
        """Train with projection; the weights of `model` are replaced.

        Args:
            model: Normalised, BatchNormalization kept; changed in place.
            layers: Its layers.
            chosen: Scheme and rank of the layers to project.
            energy: e of the strategies "paper" and "energy".
            budget: R.
            align: Ranks that are planned again are multiples of this.

        Returns:
            The layers anew, the plan at the ranks that training ended with, and what it came to.

        Raises:
            TrpOnnxError: See `Supervisor.train`, `make_trainable`.
        """
        materialise(model, layers, chosen)
        layers = find_layers(model, self._shapes(model))
        targets = _targets(layers, chosen)
        strategy = self._options.strategy or ("ranks" if budget is not None else "paper")
        found, state = self._run(self.folder, model, layers, targets, strategy, energy, budget, align, self._options)
        ranks = {target.layer: (target.scheme, rank) for target, rank in zip(targets, ranks_of(state), strict=True)}
        for group in sites_of(layers):
            if group[0].name in ranks:
                ranks |= {layer.name: ranks[group[0].name] for layer in group}
        return layers, plan_at_ranks(layers, ranks, "the rank it was trained to"), found

    def finetune(self, model: ir.Model) -> Trained:
        """Train the factors of a factorised model, in place."""
        options = self._options
        from dataclasses import replace

        options = replace(options, epochs=options.finetune_epochs, rate=options.finetune_rate, nuclear=0.0)
        folder = self.folder / "finetune"
        folder.mkdir(exist_ok=True)
        return self._run(folder, model, find_layers(model), [], "ranks", None, None, 1, options)[0]

    def _shapes(self, model: ir.Model) -> dict[str, list[int]]:
        return {model.graph.inputs[0].name or "": [1, *self._x.shape[1:]]}

    def _run(
        self, folder: Path, model: ir.Model, layers: Sequence[Layer], targets: list[Target], strategy: str,
        energy: float | None, budget: float | None, align: int, options: TrainingOptions,
    ) -> tuple[Trained, dict[str, Any]]:  # fmt: skip
        as_feed(model, self._x[: _fixed_batch(model)])
        trainable = make_trainable(model, self._x)
        outputs = self._losses(trainable.model, options)
        distilled = any(output.distill_weight for output in outputs)
        total = sum(layer.macs or 0 for layer in layers)
        job = Job(
            options, trainable.model.graph.input[0].name, outputs, trainable.parameters, trainable.no_decay,
            trainable.statistics, tuple(targets), total, total - sum(target.dense_macs for target in targets),
            strategy, energy, budget, align, self._data, self._bytes, self._preprocessing, distilled,
        )  # fmt: skip
        self._write(folder, job, trainable, distilled)
        arrays, state = self._supervisor.train(folder)
        shapes = {t.name: tuple(t.dims) for t in trainable.model.graph.initializer}
        for name, array in unpack_result(job, shapes, arrays).items():
            if name in model.graph.initializers:
                model.graph.initializers[name].const_value = ir.tensor(array.copy(), name=name)
        samples = sum(len(micro.x) for micro in self._batches.validation(256, 0, 1))
        correct = None if state["accuracy"] is None else round(state["accuracy"] * samples)
        return Trained(state["epoch"], options.epochs, state["seconds"], correct, samples, state["score"]), state

    def _write(self, folder: Path, job: Job, trainable: Trainable, distilled: bool) -> None:
        try:
            (folder / MODEL).write_bytes(trainable.model.SerializeToString())
            if distilled:
                assert self._teacher is not None
                teacher = make_trainable(self._teacher, self._x).model
                (folder / TEACHER).write_bytes(teacher.SerializeToString())
        except OSError as error:
            raise OutputError(f"cannot write '{folder}': {error.strerror}") from error
        write_text(folder / JOB, job.to_json())

    def _losses(self, model: onnx.ModelProto, options: TrainingOptions) -> tuple[OutputLoss, ...]:
        """What each output is held to."""
        labels = (1.0 if options.distill == 0 else 0.3) if options.labels is None else options.labels
        if not self._labelled:
            if options.labels:
                raise DataError(f"'{self._data}' has no labels: train with distillation alone, --labels 0")
            labels = 0.0
        distill = (0.7 if labels else 1.0) if options.distill is None else options.distill
        if not labels and not distill:
            raise UsageError("training: without labels the loss needs --distill")
        unknown = set(options.output_weights) - {value.name for value in model.graph.output}
        if unknown:
            raise UsageError(f"training: the model has no output '{min(unknown)}' to weigh")
        if distill and self._teacher is not None and len(self._teacher.graph.outputs) != len(model.graph.output):
            raise UsageError("training: the teacher has another number of outputs than the model")
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
                OutputLoss(value.name, logits, probabilities, labels * weight if takes_labels else 0.0, distill * weight)
            )
            if takes_labels:
                self._check_labels(max(dims))
        if labels and not any(loss.label_weight for loss in losses):
            raise DataError("the model has no output with one score a class: train with --labels 0")
        return tuple(losses)

    def _check_labels(self, scores: int) -> None:
        if self._dataset is None or self._dataset.labels is None:
            return
        low, high = int(self._dataset.labels.min()), int(self._dataset.labels.max())
        offset = self._preprocessing.label_offset
        if low < 0 or high + offset >= scores:
            raise DataError(
                f"'{self._data}' has label {low if low < 0 else high}, but the model has {scores - offset} classes "
                f"(0 to {scores - offset - 1}): see --label-offset"
            )

    def validate(self, path: Path) -> int | None:
        """Held-out samples that a written file gets right; None without labels."""
        session = open_session(path)
        model = open_model(path)
        correct = 0
        batch = _fixed_batch(model) or 64
        offset = self._preprocessing.label_offset
        for micro in self._batches.validation(batch, 0, 1):
            if micro.y is None:
                return None
            outputs = run_session(session, as_feed(model, micro.x))
            scores = next(o for o in outputs.values() if o.ndim > 1 and o[0].size == max(o.shape[1:]) > 1)
            scores = scores.reshape(len(scores), -1)[: len(micro.x), offset:]
            correct += int((scores.argmax(axis=1) == micro.y).sum())
        return correct

    def __enter__(self) -> TrainingRun:
        self._supervisor.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._supervisor.__exit__(kind, error, trace)
        begun = any(self.folder.rglob(CHECKPOINT))
        if not begun and not self._keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def remove(self) -> None:
        """The result is written: the directory has done its work, unless it is to stay."""
        if not self._keep:
            with contextlib.suppress(OSError):
                shutil.rmtree(self.folder)


def _fixed_batch(model: ir.Model) -> int | None:
    shape = model.graph.inputs[0].shape
    return shape[0] if shape is not None and len(shape) and isinstance(shape[0], int) else None


def _targets(layers: Sequence[Layer], chosen: dict[str, tuple[str, Rank]]) -> list[Target]:
    targets = []
    for group in sites_of(layers):
        owner = group[0]
        if owner.name not in chosen:
            continue
        scheme, rank = chosen[owner.name]
        assert owner.constant is not None and owner.layout is not None
        geometries = tuple(layer.geometry for layer in group if layer.geometry is not None and layer.sized)
        targets.append(
            Target(owner.name, owner.constant.value.name or "", owner.layout, scheme, geometries, rank)
        )
    return targets


def _is_softmax(producers: dict[str, onnx.NodeProto], name: str) -> bool:
    node = producers.get(name)
    while node is not None and node.op_type in ("Identity", "Reshape", "Flatten", "Squeeze"):
        node = producers.get(node.input[0])
    return node is not None and node.op_type == "Softmax"


def open_teacher(path: Path) -> ir.Model:
    """A model to learn from, BatchNormalization folded."""
    return normalise(open_model(path), simplify=True)[0]


