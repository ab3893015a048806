"""The training loop.

    every m steps: project -> forward and backward over the micro-batches -> sum over the workers -> SGD
    every epoch: project a copy -> validate it -> keep the best -> checkpoint

All weights live in one flat float32 buffer, which the runtime's session reads in place; gradients, new
running statistics and the loss arrive in a second one, so that one all-reduce carries everything.

A checkpoint is taken between two steps and holds all that the next step depends on. The data depends on
its step alone (`batches`) and the arithmetic on nothing else: a resumed run ends in the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from trp_onnx.errors import DataError, ModelError, TargetError, TrainingError
from trp_onnx.planning.alignment import simd_block
from trp_onnx.training.batches import MicroBatch, open_batches, prefetch
from trp_onnx.training.checkpoint import load_checkpoint, save_checkpoint
from trp_onnx.training.communicator import Communicator
from trp_onnx.training.flat import Flat
from trp_onnx.training.job import CHECKPOINT, RESULT, Files, Job
from trp_onnx.training.labels import targets_of
from trp_onnx.training.losses import LABELS, LOSS, add_loss
from trp_onnx.training.metrics import Metrics
from trp_onnx.training.projection import project, spectra_of
from trp_onnx.training.schedules import Fixed, Ranks
from trp_onnx.training.worker.engine import Session, has_cuda, training_graph
from trp_onnx.training.worker.optimizer import SGD, rate_at
from trp_onnx.training.worker.rewrites import speed_up
from trp_onnx.training.worker.teacher import Teacher
from trp_onnx.training.worker.validation import Validation

_EXPLOSION = 10.0
"""A loss so many times that of a network that knows nothing is an explosion."""


class Trainer:
    """One worker's part of a training run."""

    def __init__(self, files: Files, run: Path, communicator: Communicator) -> None:
        """Build the graphs and the buffers.

        Raises:
            ModelError: The runtime cannot train the model.
            DataError: The data cannot be read, or does not fit.
        """
        self.job = job = Job.from_json(files.job)
        self.options = job.options
        self._run = run
        self._world = communicator
        self._digest = job.digest(files.model, files.teacher)
        self._metrics = Metrics(run, communicator.rank == 0)
        self.data = open_batches(job.data, job.options)
        if self.data.micro_batches < communicator.size:
            raise DataError(
                f"a batch is {self.data.micro_batches} micro-batches, fewer than the {communicator.size} workers: "
                "give a smaller --micro-batch or a larger --batch"
            )

        model = onnx.load_from_string(files.model)
        initial = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self._parameters = Flat({name: initial[name].shape for name in job.parameters})
        self._statistics = Flat({name: initial[name].shape for name in job.statistics})
        count, updates = self._parameters.size, self._statistics.size
        self.weights = np.zeros(count, np.float32)
        self.statistics = np.zeros(updates, np.float32)
        self._weight_of = self._parameters.views(self.weights)
        self._statistic_of = self._statistics.views(self.statistics)
        for views in (self._weight_of, self._statistic_of):
            for name, view in views.items():
                view[...] = initial[name]
        self._sum = np.zeros(count + updates + 1, np.float32)
        self._work = np.zeros_like(self._sum)
        self.gradient = self._sum[:count]

        self._session = self._build(model)
        self._teacher = Teacher(Session(onnx.load_from_string(files.teacher)), job) if job.teacher else None
        self._validation = Validation(job, model, self.data, self._teacher, communicator)
        decay = np.zeros(count, np.float32)
        for name, view in self._parameters.views(decay).items():
            view[...] = 0.0 if name in job.no_decay else self.options.weight_decay
        self.optimizer = SGD(
            decay, momentum=self.options.momentum, nesterov=self.options.nesterov, clip=self.options.clip
        )
        plan = job.projection
        self.ranks = Ranks(plan.targets, plan.schedule, plan.total_macs, plan.rest_macs)
        self._targets = Flat({target.weight: initial[target.weight].shape for target in job.projection.targets})
        self._direction: np.ndarray | None = None

        self.step = 0
        self._loss: float | None = None  # smoothed
        self._ceiling: float | None = None
        self._best: dict[str, Any] | None = None
        self._best_weights = np.zeros(0, np.float32)
        self._best_statistics = np.zeros(0, np.float32)
        self._seconds = 0.0
        self.spent: dict[str, float] = {}

    def _build(self, model: onnx.ModelProto) -> Session:
        """The training session, reading and writing our buffers."""
        with_loss = onnx.ModelProto()
        with_loss.CopyFrom(model)
        add_loss(with_loss, self.job.outputs, self.options.temperature)
        graph = training_graph(with_loss, self.job.parameters, self.job.statistics)
        shapes = {name: view.shape for name, view in self._weight_of.items()}
        speed_up(graph.model, shapes, 1 if has_cuda() else simd_block())
        session = Session(graph.model)
        session.bind_inputs(self._weight_of | self._statistic_of)
        count = self._parameters.size
        gradients = self._parameters.views(self._work[:count])
        updates = self._statistics.views(self._work[count:-1])
        session.bind_outputs(
            {output: gradients[name] for name, output in graph.gradients.items()}
            | {output: updates[name] for name, output in graph.updates.items()}
            | {LOSS: self._work[-1:].reshape(())}
        )
        if set(graph.updates) != set(self._statistic_of):
            raise ModelError("the training runtime does not update every running statistic")
        return session

    def train(self, *, resume: bool) -> None:
        """Run to the end, from the start or from the checkpoint; leaves `result.npz`.

        Raises:
            TrainingError: It diverged, or the checkpoint does not fit.
            TargetError: The ranks never came down to the budget.
            OutputError: A checkpoint cannot be written.
        """
        if resume:
            self._restore()
        else:
            self._metrics.start(0)
        began = checkpointed = time.perf_counter()
        before = self._seconds
        steps, total = self.data.steps, self.data.steps * self.options.epochs
        for epoch in range(self.step // steps, self.options.epochs):
            batches = self.data.epoch(epoch, self.step % steps, self._world.rank, self._world.size)
            stream = prefetch(batches)
            while True:
                with self.timed("data"):
                    batch = next(stream, None)
                if batch is None:
                    break
                self.train_on(batch, total)
                now = time.perf_counter()
                self._seconds = before + now - began
                images = round(batch[0].run.count / batch[0].part) if batch else 0
                self._metrics.progress(
                    images, step=self.step, total=total, epoch=epoch + 1, loss=self._loss, macs=self.ranks.ratio(),
                    ranks=[min(rank) for rank in self.ranks.current],
                )  # fmt: skip
                due = now - checkpointed >= self.options.checkpoint_seconds
                # Inside an epoch only: its end has a checkpoint of its own.
                if self.step % steps and self._world.share(due):
                    self._checkpoint()
                    checkpointed = time.perf_counter()
            if self.step != (epoch + 1) * steps:
                raise DataError(
                    f"epoch {epoch + 1} of '{self.job.data.name}' had {self.step - epoch * steps} batches where the "
                    f"first had {steps}: the same split must give as many in every epoch"
                )
            self._end_epoch(epoch, began, before)
            self._checkpoint()
            checkpointed = time.perf_counter()
        self._finish()

    def train_on(self, batch: list[MicroBatch], total: int) -> None:
        """One step.

        Args:
            batch: This worker's micro-batches.
            total: Steps of the whole run.
        """
        options, projection = self.options, self.job.projection
        projected = bool(projection.targets) and self.step % projection.every == 0
        if projected:
            with self.timed("projection"):
                self._project(self.step / total)
        with self.timed("gradient"):
            self._sum[:] = 0
            for micro in batch:
                self._forward_backward(micro)
                self._work *= np.float32(micro.part)
                self._sum += self._work
        with self.timed("exchange"):
            self._world.sum(self._sum)
        with self.timed("optimizer"):
            self.statistics[:] = self._sum[self._parameters.size : -1]
            self._check(float(self._sum[-1]))
            if self._direction is not None and (projected or projection.nuclear_every_step):
                self._add_nuclear(projection.nuclear / (projection.every if projection.nuclear_every_step else 1))
            rate = rate_at(self.step, total, options.rate, options.schedule, options.warmup, options.milestones)
            self.optimizer.step(self.weights, self.gradient, rate)
        self.step += 1

    def _forward_backward(self, micro: MicroBatch) -> None:
        """Loss, gradients and statistics of one micro-batch, into the work buffer."""
        feeds = dict(micro.run.feeds)
        if any(output.label_weight for output in self.job.outputs):
            feeds[LABELS] = self._labels_of(micro)
        entropy = 0.0
        if self._teacher is not None:
            targets, entropy = self._teacher.targets(micro.run)
            feeds |= targets
        if self._ceiling is None:
            self._ceiling = _EXPLOSION * self._ignorance(feeds)
        self._session.bind_inputs(feeds)
        self._session.run()
        self._work[-1] -= entropy  # what is reported is the divergence itself: 0 for a perfect pupil

    def _labels_of(self, micro: MicroBatch) -> np.ndarray:
        labels = micro.labels
        if labels is None or labels.dtype.kind not in "iub":
            raise DataError(
                f"some samples of '{self.job.data.name}' have no labels that name classes, or other samples of equal "
                "sizes have more: train with distillation alone, --labels 0"
            )
        return targets_of(labels, self.job.data.preprocessing.label_offset)

    def _ignorance(self, feeds: dict[str, np.ndarray]) -> float:
        """The loss of a network that says nothing: uniform classes, zero everywhere else."""
        loss = 0.0
        for output in self.job.outputs:
            target = feeds.get(output.target)
            if output.logits:
                scale = output.label_weight + output.distill_weight * self.options.temperature**2
                loss += scale * math.log(max(2, output.classes))
            elif target is not None:
                loss += output.distill_weight * float(np.mean(np.square(target)))
        return max(loss, 1e-6)

    def _check(self, loss: float) -> None:
        self._loss = loss if self._loss is None else 0.98 * self._loss + 0.02 * loss
        ceiling = self._world.share(self._ceiling)
        if not math.isfinite(loss) or self._loss > ceiling:
            saved = f"The checkpoint before that is in '{self._run}'; " if (self._run / CHECKPOINT).exists() else ""
            raise TrainingError(
                f"the training diverged at step {self.step}: the loss is {loss:.4g}. {saved or 'No checkpoint yet; '}"
                "start again with a lower --rate, a longer --warmup or --clip 1"
            )

    def _project(self, progress: float) -> None:
        """Decide on ranks, and put every target on its own; each worker does its share."""
        mine = range(self._world.rank, len(self.job.projection.targets), self._world.size)
        targets = self.job.projection.targets
        if not isinstance(self.job.projection.schedule, Fixed):
            own = {i: spectra_of(targets[i], self._weight_of[targets[i].weight]) for i in mine}
            everybody = {i: modes for part in self._world.gather(own) for i, modes in part.items()}
            self.ranks.update([everybody[i] for i in range(len(targets))], progress)
        nuclear = self.job.projection.nuclear > 0
        projected, direction = self._projected(nuclear)
        for name, view in self._targets.views(projected).items():
            self._weight_of[name][...] = view
        self._direction = direction if nuclear else None

    def _projected(self, nuclear: bool) -> tuple[np.ndarray, np.ndarray]:
        """Every target at its current rank, and the nuclear directions there, in flat buffers."""
        both = np.zeros((2, self._targets.size), np.float32)
        weights, directions = (self._targets.views(part) for part in both)
        for i in range(self._world.rank, len(self.job.projection.targets), self._world.size):
            target = self.job.projection.targets[i]
            name = target.weight
            near, direction = project(target, self._weight_of[name], self.ranks.current[i], nuclear=nuclear)
            weights[name][...] = near
            if direction is not None:
                directions[name][...] = direction
        self._world.sum(both)  # everybody else holds zeros there
        return both[0], both[1]

    def _add_nuclear(self, weight: float) -> None:
        assert self._direction is not None
        gradients = self._parameters.views(self.gradient)
        for name, direction in self._targets.views(self._direction).items():
            gradients[name] += np.float32(weight) * direction

    def _end_epoch(self, epoch: int, began: float, before: float) -> None:
        candidate = self.weights.copy()
        if self.job.projection.targets:
            views = self._parameters.views(candidate)
            for name, view in self._targets.views(self._projected(False)[0]).items():
                views[name][...] = view
        with self.timed("validation"):
            score, accuracy = self._validation.score(self._parameters.views(candidate) | self._statistic_of)
        within = self.ranks.within_budget
        # Of equals the later one: its step size was smaller.
        if within and (self._best is None or score >= self._best["score"]):
            self._best = {
                "score": score, "accuracy": accuracy, "epoch": epoch + 1,
                "ranks": list(self.ranks.current), "macs": self.ranks.ratio(),
            }  # fmt: skip
            self._best_weights, self._best_statistics = candidate, self.statistics.copy()
        self._seconds = before + time.perf_counter() - began
        self._metrics.epoch(
            step=self.step, epoch=epoch + 1, epochs=self.options.epochs, loss=self._loss, score=score,
            accuracy=accuracy, metric=None if self.job.chosen_by is None else self.job.chosen_by.metric,
            macs=self.ranks.ratio(), within_budget=within, seconds=round(self._seconds, 2),
            ranks={t.layer: list(r) for t, r in zip(self.job.projection.targets, self.ranks.current, strict=True)},
            spent={name: round(value, 3) for name, value in self.spent.items()},
        )  # fmt: skip

    def _checkpoint(self) -> None:
        if self._world.rank == 0:
            arrays = {
                "weights": self.weights, "statistics": self.statistics, "velocity": self.optimizer.velocity,
                "best_weights": self._best_weights, "best_statistics": self._best_statistics,
                "direction": np.zeros(0, np.float32) if self._direction is None else self._direction,
            }  # fmt: skip
            state = {
                "job": self._digest, "step": self.step, "loss": self._loss, "ceiling": self._ceiling,
                "best": self._best, "ranks": self.ranks.state(), "seconds": self._seconds,
            }  # fmt: skip
            save_checkpoint(self._run / CHECKPOINT, arrays, state)

    def _restore(self) -> None:
        loaded = load_checkpoint(self._run / CHECKPOINT, self._digest) if self._world.rank == 0 else None
        arrays, state = self._world.share(loaded)
        self.weights[:] = arrays["weights"]
        self.statistics[:] = arrays["statistics"]
        self.optimizer.velocity[:] = arrays["velocity"]
        self._best_weights, self._best_statistics = arrays["best_weights"], arrays["best_statistics"]
        self._direction = arrays["direction"] if len(arrays["direction"]) else None
        self.step, self._loss, self._ceiling = state["step"], state["loss"], state["ceiling"]
        self._best, self._seconds = state["best"], state["seconds"]
        self.ranks.restore(state["ranks"])
        self._metrics.start(self.step)

    def _finish(self) -> None:
        if self._best is None:
            wanted = self.job.projection.schedule.budget
            raise TargetError(
                f"the ranks came down to {self.ranks.ratio():.3f} of the MACs, not to {wanted:g}: "
                "give a larger --energy, more epochs, or --strategy ranks"
            )
        if self._world.rank == 0:
            arrays = {"weights": self._best_weights, "statistics": self._best_statistics}
            save_checkpoint(self._run / RESULT, arrays, {"job": self._digest, "seconds": self._seconds} | self._best)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time of what is inside to `spent[name]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - start
