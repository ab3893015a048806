"""A machine whose clock is known: a node takes as long as its multiply-accumulates say, and what a test adds to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

from trp_onnx.latency import pace as latency_pace
from trp_onnx.runners import transport

PACE = 1e9
"""Multiply-accumulates a second."""

Times = Callable[[int, onnx.ModelProto], float]
"""What a contender takes over what its nodes say, by its place in the round and its model."""


class Clockwork:
    """A worker in which no time goes by; see `runs_on`.

    Attributes:
        prepared: The contenders of every measurement so far.
        slowed: What a contender takes more, times.
        disturbed: Whether another process has the core in a round.
        slow_factors: How many times as long factors take in a whole network as in a probe.
        clock: What a profile adds to each node, in seconds.
    """

    prepared: ClassVar[list[list[onnx.ModelProto]]]
    slowed: Times
    disturbed: bool
    slow_factors: float
    clock: float

    def __init__(self) -> None:
        self._models: list[onnx.ModelProto] = []
        self._nodes: list[list[float]] = []

    def describe(self) -> dict[str, Any]:
        return {
            "machine": "clockwork", "runtime": "1", "host": "a test", "providers": ("CPUExecutionProvider",),
            "profiles": True,
        }  # fmt: skip

    def prepare(self, models: Sequence[str | bytes], feeds: object, setting: object) -> None:
        self._models = [onnx.load_from_string(m) if isinstance(m, bytes) else onnx.load(m) for m in models]
        self._nodes = [self._seconds(model, isinstance(m, str)) for model, m in zip(self._models, models, strict=True)]
        type(self).prepared.append(self._models)

    def run(self, rounds: int, repeats: Sequence[int], warm: bool = True) -> dict[str, Any]:
        more = [type(self).slowed(i, model) for i, model in enumerate(self._models)]
        sample = [sum(nodes) * by for nodes, by in zip(self._nodes, more, strict=True)]
        return {"seconds": [sample] * rounds, "disturbed": [type(self).disturbed] * rounds}

    def profile(self, models: Sequence[int], rounds: int) -> dict[str, Any]:
        names = [self._models[i].graph.node for i in models]
        times = [self._nodes[i] for i in models]
        return {
            "plain": [[sum(nodes) for nodes in times]] * rounds,
            "nodes": [[[node.name, node.op_type, "CPUExecutionProvider"] for node in nodes] for nodes in names],
            "seconds": [[[s + type(self).clock for s in nodes]] * rounds for nodes in times],
            "lost": [[0.0] * len(times)] * rounds,
        }

    def _seconds(self, model: onnx.ModelProto, whole: bool) -> list[float]:
        graph = onnx.shape_inference.infer_shapes(model).graph
        sizes = {tensor.name: float(np.prod(tensor.dims)) for tensor in graph.initializer}
        sizes |= {node.output[0]: sizes[node.input[0]] for node in graph.node if node.input and node.input[0] in sizes}
        pixels = {
            value.name: float(np.prod([d.dim_value or 1 for d in value.type.tensor_type.shape.dim[2:]]))
            for value in (*graph.value_info, *graph.output)
        }
        return [
            1e-7
            + sum(sizes.get(name, 0) for name in node.input[1:2]) * pixels.get(node.output[0], 1.0) / PACE
            * (type(self).slow_factors if whole and "/" in node.name else 1.0)
            for node in graph.node
        ]  # fmt: skip


def runs_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, **changes: Any) -> type[Clockwork]:
    """Have everything timed by clockwork, with an empty cache."""

    class Machine(Clockwork):
        prepared: ClassVar[list[list[onnx.ModelProto]]] = []
        slowed = staticmethod(changes.get("slowed", lambda index, model: 1.0))
        disturbed = changes.get("disturbed", False)
        slow_factors = changes.get("slow_factors", 1.0)
        clock = changes.get("clock", 0.0)

    monkeypatch.setattr(transport, "Worker", Machine)
    monkeypatch.setattr(latency_pace, "APART", 1e-9)
    monkeypatch.setenv("TRP_ONNX_CACHE", str(tmp_path / "cache"))
    return Machine
