"""What training needs of a runtime. A backend is one class with the methods of `Engine`, chosen in `__main__`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import onnx

from trp_onnx.graph.inputs import Run
from trp_onnx.graph.session import Arrays
from trp_onnx.training.losses import OutputLoss
from trp_onnx.training.worker.buffers import Buffers


class Network(Protocol):
    """A network that runs."""

    def run_on(self, run: Run) -> Arrays:
        """Its outputs for some samples, by name; a network with one input takes it under any name.

        Raises:
            ModelError: The run failed.
        """


class Learner(Protocol):
    """A network with its losses, on the weights and statistics of the buffers that it was made with."""

    def differentiate(self, feeds: Arrays) -> None:
        """Write loss, gradients and new running statistics of some samples to `Buffers.found`.

        Args:
            feeds: The network's inputs, and what its losses take, see `Objective`.

        Raises:
            ModelError: The run failed.
        """


class Engine(Protocol):
    """A training backend."""

    def network(self, model: onnx.ModelProto) -> Network:
        """A network to run.

        Raises:
            ModelError: The runtime refuses it.
        """

    def learner(
        self, model: onnx.ModelProto, losses: Sequence[OutputLoss], temperature: float, buffers: Buffers
    ) -> Learner:
        """A network to train.

        Args:
            model: Without a loss.
            losses: What each output is held to.
            temperature: T of the distillation.
            buffers: Its weights and statistics, read anew in every call.

        Raises:
            ModelError: The runtime cannot train it.
        """
