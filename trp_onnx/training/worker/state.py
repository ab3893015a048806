"""Where a training stands: all that its next step depends on, as a checkpoint holds it."""

from __future__ import annotations

from typing import Any

import numpy as np

from trp_onnx.graph.session import Arrays
from trp_onnx.training.worker.buffers import Buffers
from trp_onnx.training.worker.optimizer import Optimizer
from trp_onnx.training.worker.projector import Projector


class State:
    """What training changes.

    Attributes:
        buffers: Weights and statistics.
        optimizer: With its state.
        projector: With the ranks.
        step: Steps that are done.
        loss: Smoothed over steps; None before the first.
        ceiling: The loss from which on it has diverged; None before the first step.
        seconds: Wall time, interruptions not counted.
        best: Score, accuracy, epoch, step, ranks and part of the MACs of the best epoch within the budget, if any.
        first: The score that was measured first: of the start, where that is kept.
    """

    def __init__(self, buffers: Buffers, optimizer: Optimizer, projector: Projector) -> None:
        """Before the first step."""
        self.buffers, self.optimizer, self.projector = buffers, optimizer, projector
        self.step = 0
        self.loss: float | None = None
        self.ceiling: float | None = None
        self.seconds = 0.0
        self.best: dict[str, Any] | None = None
        self.first: float | None = None
        self._best_weights = self._best_statistics = np.zeros(0, np.float32)

    def keep_best(self, weights: np.ndarray, **facts: Any) -> None:
        """Keep the weights of an epoch, (P,), with the statistics as they are, unless an earlier one scored higher."""
        self.first = facts["score"] if self.first is None else self.first
        # Of equals the later one: its step size was smaller.
        if self.best is None or facts["score"] >= self.best["score"]:
            self.best = facts
            self._best_weights, self._best_statistics = weights, self.buffers.statistics.copy()

    def result(self) -> tuple[Arrays, dict[str, Any]]:
        """The best weights and statistics, and the facts of their epoch."""
        assert self.best is not None
        arrays = {"weights": self._best_weights, "statistics": self._best_statistics}
        return arrays, {"seconds": self.seconds, "steps": self.step, "first": self.first} | self.best

    def pack(self) -> tuple[Arrays, dict[str, Any]]:
        """Arrays, and everything else as JSON values."""
        direction = self.projector.direction
        arrays = self.optimizer.state | {
            "weights": self.buffers.weights, "statistics": self.buffers.statistics,
            "best_weights": self._best_weights, "best_statistics": self._best_statistics,
            "direction": np.zeros(0, np.float32) if direction is None else direction,
        }  # fmt: skip
        state = {
            "step": self.step, "loss": self.loss, "ceiling": self.ceiling, "best": self.best,
            "ranks": self.projector.ranks.state(), "seconds": self.seconds,
            "first": self.first,
        }  # fmt: skip
        return arrays, state

    def unpack(self, arrays: Arrays, state: dict[str, Any]) -> None:
        """The inverse of `pack`, in place."""
        self.buffers.weights[:] = arrays["weights"]
        self.buffers.statistics[:] = arrays["statistics"]
        for name, array in self.optimizer.state.items():
            array[:] = arrays[name]
        self._best_weights, self._best_statistics = arrays["best_weights"], arrays["best_statistics"]
        self.projector.direction = arrays["direction"] if len(arrays["direction"]) else None
        self.projector.ranks.restore(state["ranks"])
        self.step, self.loss, self.ceiling = state["step"], state["loss"], state["ceiling"]
        self.best, self.seconds, self.first = state["best"], state["seconds"], state["first"]
