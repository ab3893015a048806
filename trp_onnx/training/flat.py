"""Tensors in one buffer, and the result of a training, which is stored so."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trp_onnx.lowrank.schemes import Rank
from trp_onnx.training.job import Job

_LINE = 16  # floats: every tensor starts on a cache line of its own


class Flat:
    """Tensors laid out one after the other in a flat float32 buffer."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._places: dict[str, tuple[int, tuple[int, ...]]] = {}
        self.size = 0
        for name, shape in shapes.items():
            self._places[name] = (self.size, shape)
            self.size += -(-math.prod(shape) // _LINE) * _LINE

    def views(self, buffer: np.ndarray) -> dict[str, np.ndarray]:
        """The tensors inside a buffer of `size`, without copying."""
        return {
            name: buffer[start : start + math.prod(shape)].reshape(shape)
            for name, (start, shape) in self._places.items()
        }


def unpack_result(job: Job, shapes: dict[str, tuple[int, ...]], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a result by name."""
    parameters = Flat({name: shapes[name] for name in job.parameters}).views(arrays["weights"])
    return parameters | Flat({name: shapes[name] for name in job.statistics}).views(arrays["statistics"])


def ranks_of(state: dict[str, Any]) -> list[Rank]:
    """The ranks of a result's targets."""
    return [tuple(rank) for rank in state["ranks"]]
