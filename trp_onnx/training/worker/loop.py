"""The training loop.

    every m steps: project -> forward and backward over the micro-batches -> sum over the workers -> SGD
    every epoch: project a copy -> validate it -> keep the best -> checkpoint

Where wall time is what ends it, epochs may be seconds: then that is done at most `_VALIDATIONS` times.

A checkpoint is taken between two steps and holds all that the next step depends on (`state`). The data depends on
its step alone (`batches`) and the arithmetic on nothing else: a resumed run ends in the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx

from trp_onnx.errors import DataError, TargetError, TrainingError
from trp_onnx.training.batches import MicroBatch, open_batches, prefetch
from trp_onnx.training.checkpoint import load_checkpoint, save_checkpoint
from trp_onnx.training.communicator import Communicator
from trp_onnx.training.job import CHECKPOINT, RESULT, Files, Job
from trp_onnx.training.metrics import Metrics
from trp_onnx.training.worker.buffers import Buffers
from trp_onnx.training.worker.engine import Engine
from trp_onnx.training.worker.objective import Objective
from trp_onnx.training.worker.optimizer import optimizer_of, rate_at
from trp_onnx.training.worker.projector import Projector
from trp_onnx.training.worker.state import State
from trp_onnx.training.worker.teacher import Teacher
from trp_onnx.training.worker.validation import Validation

_EXPLOSION = 10.0
"""A loss so many times that of a network that knows nothing is an explosion."""

_VALIDATIONS = 20
"""Of a training that ends by time."""


class Trainer:
    """One worker's part of a training run.

    Attributes:
        data: The batches.
        spent: Seconds by part of a step.
    """

    def __init__(self, files: Files, run: Path, world: Communicator, engine: Engine) -> None:
        """Open the data and build the network.

        Raises:
            ModelError: The runtime cannot train the model.
            DataError: The data cannot be read, or does not fit.
        """
        self._job = job = Job.from_json(files.job)
        self._options = job.options
        self._run, self._world = run, world
        self._digest = job.digest(files.model, files.teacher)
        self._metrics = Metrics(run, world.rank == 0)
        self.data = open_batches(job.data, job.options)
        if self.data.micro_batches < world.size:
            raise DataError(
                f"a batch is {self.data.micro_batches} micro-batches, fewer than the {world.size} workers: "
                "give a smaller --micro-batch or a larger --batch"
            )
        model = onnx.load_from_string(files.model)
        self._buffers = buffers = Buffers(model, job.parameters, job.statistics)
        self._learner = engine.learner(model, job.outputs, job.options.temperature, buffers)
        teacher = Teacher(engine.network(onnx.load_from_string(files.teacher)), job) if job.teacher else None
        self._objective = Objective(job, teacher)
        self._validation = Validation(job, model, self.data, teacher, world, engine)
        self._projector = Projector(job.projection, buffers.tensors, world)
        decay = np.zeros_like(buffers.weights)
        for name, view in buffers.parameters.views(decay).items():
            view[...] = 0.0 if name in job.no_decay else job.options.weight_decay
        self._state = State(buffers, optimizer_of(job.options, decay), self._projector)
        self._began = self._checkpointed = self._validated = time.perf_counter()
        self._ends = False
        self.spent: dict[str, float] = {}

    def train(self, *, resume: bool) -> None:
        """Run to the end, from the start or from the checkpoint; leaves `result.npz`.

        Raises:
            TrainingError: It diverged, or the checkpoint does not fit.
            TargetError: The ranks never came down to the budget.
            OutputError: A checkpoint cannot be written.
        """
        if resume:
            self._restore()
        self._metrics.start(self._state.step)
        self._began = time.perf_counter() - self._state.seconds
        self._checkpointed = time.perf_counter()
        if self._job.keeps_start and self._state.best is None:
            self._validate(0)
        for epoch in range(self._state.step // self.data.steps, self._options.epochs):
            self._train_epoch(epoch)
            if self._validates(epoch):
                self._validate(epoch + 1)
                self._checkpoint()
            if self._ends:
                break
        self._finish()

    def _train_epoch(self, epoch: int) -> None:
        """The steps of an epoch, or those that are left of it."""
        steps, state = self.data.steps, self._state
        stream = prefetch(self.data.epoch(epoch, state.step % steps, self._world.rank, self._world.size))
        while not self._ends:
            with self.timed("data"):
                batch = next(stream, None)
            if batch is None:
                break
            total = self._total()
            self._ends |= not self.train_on(batch, total)
            state.seconds = time.perf_counter() - self._began
            images, ranks = round(batch[0].run.count / batch[0].part) if batch else 0, self._projector.ranks
            self._metrics.progress(
                images, step=state.step, total=total, epoch=epoch + 1, loss=state.loss, macs=ranks.ratio(),
                ranks=[min(rank) for rank in ranks.current],
            )  # fmt: skip
            due = time.perf_counter() - self._checkpointed >= self._options.checkpoint_seconds
            # Inside an epoch only: its end has a checkpoint of its own.
            if state.step % steps and self._world.share(due):
                self._checkpoint()
        if state.step != (epoch + 1) * steps and not self._ends:
            raise DataError(
                f"epoch {epoch + 1} of '{self._job.data.name}' had {state.step - epoch * steps} batches where the "
                f"first had {steps}: the same split must give as many in every epoch"
            )

    def _total(self) -> int:
        """Steps in all: those of the epochs, or as many as fit into the time at the pace so far."""
        state, minutes = self._state, self._options.minutes
        planned = self.data.steps * self._options.epochs
        if minutes is None or not state.step:
            return planned
        seconds = self._world.share(time.perf_counter() - self._began)
        self._ends |= seconds >= 60 * minutes
        return max(state.step + 1, min(planned, int(state.step * 60 * minutes / seconds)))

    def train_on(self, batch: list[MicroBatch], total: int) -> bool:
        """One step.

        Args:
            batch: This worker's micro-batches.
            total: Steps of the whole run.

        Returns:
            Whether it was taken: False where the loss explodes and the start is kept.

        Raises:
            TrainingError: The loss explodes.
        """
        options, buffers, state = self._options, self._buffers, self._state
        projected = self._projector.due(state.step)
        if projected:
            with self.timed("projection"):
                self._projector.project(state.step / total)
        with self.timed("gradient"):
            buffers.total[:] = 0
            for micro in batch:
                self._differentiate(micro)
        with self.timed("exchange"):
            self._world.sum(buffers.total)
        with self.timed("optimizer"):
            if self._explodes(float(buffers.total[-1])):
                return False
            buffers.take_statistics()
            self._projector.add_nuclear(buffers.parameters.views(buffers.gradient), projected=projected)
            rate = rate_at(state.step, total, options.rate, options.schedule, options.warmup, options.milestones)
            state.optimizer.step(buffers.weights, buffers.gradient, rate)
        state.step += 1
        return True

    def _differentiate(self, micro: MicroBatch) -> None:
        """Add loss, gradients and statistics of one micro-batch to the total."""
        feeds, entropy = self._objective.feeds(micro)
        if self._state.ceiling is None:
            self._state.ceiling = _EXPLOSION * self._objective.chance(feeds)
        self._learner.differentiate(feeds)
        self._buffers.found[-1] -= entropy  # what is reported is the divergence itself: 0 for a perfect pupil
        self._buffers.add_found(micro.part)

    def _explodes(self, loss: float) -> bool:
        """Whether the training has diverged, where it keeps its start then; refuse to go on elsewhere."""
        state = self._state
        state.loss = loss if state.loss is None else 0.98 * state.loss + 0.02 * loss
        if math.isfinite(loss) and state.loss <= self._world.share(state.ceiling):
            return False
        if self._job.keeps_start:
            return True
        saved = f"The checkpoint before that is in '{self._run}'; " if (self._run / CHECKPOINT).exists() else ""
        raise TrainingError(
            f"the training diverged at step {state.step}: the loss is {loss:.4g}. {saved or 'No checkpoint yet; '}"
            "start again with a lower --rate, a longer --warmup or --clip 1"
        )

    def _validates(self, epoch: int) -> bool:
        """Whether the end of an epoch is one at which weights are validated: where time ends it, not each is."""
        minutes, now = self._options.minutes, time.perf_counter()
        last = self._ends or epoch + 1 == self._options.epochs
        if not self._world.share(minutes is None or last or now - self._validated >= 60 * minutes / _VALIDATIONS):
            return False
        self._validated = now
        return True

    def _validate(self, epoch: int) -> None:
        """Measure the weights at their ranks after so many epochs, and keep them where they are the best."""
        state, ranks = self._state, self._projector.ranks
        candidate = self._buffers.weights.copy()
        tensors = self._buffers.tensors | self._buffers.parameters.views(candidate)
        for name, projected in self._projector.projected().items():
            tensors[name][...] = projected
        with self.timed("validation"):
            score, accuracy = self._validation.score(tensors)
        within = ranks.within_budget
        if within:
            state.keep_best(
                candidate, score=score, accuracy=accuracy, epoch=epoch, step=state.step,
                ranks=list(ranks.current), macs=ranks.ratio(),
            )  # fmt: skip
        state.seconds = time.perf_counter() - self._began
        self._metrics.epoch(
            step=state.step, epoch=epoch, epochs=self._options.epochs, loss=state.loss, score=score,
            accuracy=accuracy, metric=None if self._job.chosen_by is None else self._job.chosen_by.metric,
            macs=ranks.ratio(), within_budget=within, seconds=round(state.seconds, 2),
            ranks={t.layer: list(r) for t, r in zip(ranks.targets, ranks.current, strict=True)},
            spent={name: round(value, 3) for name, value in self.spent.items()},
        )  # fmt: skip

    def _checkpoint(self) -> None:
        if self._world.rank == 0:
            arrays, state = self._state.pack()
            save_checkpoint(self._run / CHECKPOINT, arrays, {"job": self._digest} | state)
        self._checkpointed = time.perf_counter()

    def _restore(self) -> None:
        loaded = load_checkpoint(self._run / CHECKPOINT, self._digest) if self._world.rank == 0 else None
        self._state.unpack(*self._world.share(loaded))

    def _finish(self) -> None:
        if self._state.best is None:
            wanted = self._job.projection.schedule.budget
            raise TargetError(
                f"the ranks came down to {self._projector.ranks.ratio():.3f} of the MACs, not to {wanted:g}: "
                "give a larger --energy, more epochs, or --strategy ranks"
            )
        if self._world.rank == 0:
            arrays, facts = self._state.result()
            save_checkpoint(self._run / RESULT, arrays, {"job": self._digest} | facts)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time of what is inside to `spent[name]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - start
