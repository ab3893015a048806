"""The memory of a training: weights, running statistics and what a step finds, each in one flat float32 buffer.

The engine reads and writes the buffers in place, and one all-reduce carries everything that workers exchange.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from trp_onnx.graph.session import Arrays
from trp_onnx.training.flat import Flat


class Buffers:
    """P numbers of parameters and S of running statistics, with the padding of `Flat`.

    Attributes:
        parameters: How parameters lie in a buffer.
        weights: (P,).
        statistics: (S,).
        tensors: Both by name, views into them.
        found: (P + S + 1,), gradients, new statistics and the loss of one micro-batch.
        total: The same, summed over the micro-batches of a step.
        gradient: (P,), that part of `total`.
    """

    def __init__(self, model: onnx.ModelProto, parameters: Sequence[str], statistics: Sequence[str]) -> None:
        """The initializers of these names."""
        initial = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.parameters = Flat({name: initial[name].shape for name in parameters})
        self._statistics = Flat({name: initial[name].shape for name in statistics})
        self.weights = np.zeros(self.parameters.size, np.float32)
        self.statistics = np.zeros(self._statistics.size, np.float32)
        self.tensors = self.parameters.views(self.weights) | self._statistics.views(self.statistics)
        for name, view in self.tensors.items():
            view[...] = initial[name]
        self.found = np.zeros(self.parameters.size + self._statistics.size + 1, np.float32)
        self.total = np.zeros_like(self.found)
        self.gradient = self.total[: self.parameters.size]

    def found_by_name(self) -> tuple[Arrays, Arrays]:
        """Gradients by parameter and new values by statistic, views into `found`."""
        count = self.parameters.size
        return self.parameters.views(self.found[:count]), self._statistics.views(self.found[count:-1])

    def add_found(self, part: float) -> None:
        """Add a micro-batch, `part` of its batch, to the total."""
        self.found *= np.float32(part)
        self.total += self.found

    def take_statistics(self) -> None:
        """The statistics of the total become the network's."""
        self.statistics[:] = self.total[self.parameters.size : -1]
