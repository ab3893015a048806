"""A network some of whose layers are moved towards other weights, and what that does to its outputs.

Before a moved layer nothing changes, so a run starts at the last cut before it (see `partial_run`). A layer is linear
in its weight, so beside it stands a second one with the step as its weight, and how far it goes is an input: one
session tells all amounts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from trp_onnx.evaluation.divergence import Divergence
from trp_onnx.evaluation.origins import measurable
from trp_onnx.evaluation.outputs import Told, Value, joined, output_kinds
from trp_onnx.graph.inputs import Run, Samples
from trp_onnx.graph.layers import Layer
from trp_onnx.graph.partial_run import Walk
from trp_onnx.graph.session import Arrays, open_session
from trp_onnx.lowrank.linalg import Array

PIECE, LEAST, PIECE_BYTES = 16, 4, 1 << 20
"""Samples that are run at once, and how many at least where they have more than so many bytes together: large ones take
long, and each says more. Two pieces at least."""

_AMOUNT = "trp_onnx/amount"
"""The input that says how far a layer is moved."""


@dataclass(frozen=True)
class Move:
    """Layers on their way to another weight.

    Attributes:
        layers: Those that share it.
        step: What the weight changes by, (G, N, C, *k).
        shift: What their biases change by, (G N,); None where they stay.
    """

    layers: tuple[Layer, ...]
    step: Array
    shift: Array | None = None


@dataclass(frozen=True)
class Point:
    """Moves by some amount, and the relative squared error that they make."""

    error: float
    moves: tuple[Move, ...]
    amount: float


class MovedNetwork:
    """A network that is run from the last cut before whatever was moved.

    Attributes:
        pieces: Of the samples, which are of equal shapes in each: places in the walk's runs.
    """

    def __init__(self, graph: ir.Model, model: onnx.ModelProto, samples: Samples, told: Told) -> None:
        self._graph, self._model, self._told = graph, model, told
        self._measured = measurable(graph)
        size = min(PIECE, max(LEAST, PIECE_BYTES // samples.bytes_each))
        self._walk = Walk(model, samples, self._measured, most=size)
        self.pieces = _pieces(self._walk.runs, size)
        self._divergences: dict[int, Divergence] = {}

    def moved(self, points: Sequence[Point]) -> list[Callable[[slice], float]]:
        """What each does to the outputs, on some samples."""
        layers = [layer for point in points for move in point.moves for layer in move.layers]
        names = {layer.node.outputs[0].name or "" for layer in layers}
        first = next((name for node in self._model.graph.node for name in node.output if name in names), "")
        if not self._divergences:
            self._expect()
        self._walk.advance(self._model, first)
        sessions = {id(point.moves): point.moves for point in points}
        opened = {key: self._open(moves) for key, moves in sessions.items()}
        return [partial(self._damage, opened[id(point.moves)], point.amount) for point in points]

    def _open(self, moves: Sequence[Move]) -> Any:
        rest = self._walk.rest(self._model, self._measured)
        rest.graph.input.append(onnx.helper.make_tensor_value_info(_AMOUNT, onnx.TensorProto.FLOAT, []))
        for number, move in enumerate(moves):
            _put_beside(rest.graph, move, f"{_AMOUNT}/{number}")
        return open_session(rest)

    def _damage(self, session: Any, amount: float, piece: slice) -> float:
        found = self._outputs(session, piece, {_AMOUNT: np.asarray(amount, np.float32)})
        return self._divergences[piece.start](found)

    def _expect(self) -> None:
        session = open_session(self._walk.rest(self._model, self._measured))
        kinds = None
        for piece in self.pieces:
            expected = self._outputs(session, piece)
            kinds = output_kinds(self._graph, expected, self._told) if kinds is None else kinds
            self._divergences[piece.start] = Divergence(expected, kinds)

    def _outputs(self, session: Any, piece: slice, others: Arrays | None = None) -> dict[str, Value]:
        found = list(self._walk.feed(session, self._measured, piece, others))
        return joined([run.counted(values) for run, values in found], [run.count for run, _ in found])


def _pieces(runs: Sequence[Run], size: int) -> list[slice]:
    """Neighbouring runs of equal shapes, until they have so many samples."""
    found, start = [], 0
    for place, run in enumerate(runs, start=1):
        shapes = [[array.shape for array in near.feeds.values()] for near in (run, *runs[place : place + 1])]
        whole = sum(each.count for each in runs[start:place]) >= size
        if whole or place == len(runs) or shapes[0] != shapes[1]:
            found.append(slice(start, place))
            start = place
    return found


def _dtype(layer: Layer) -> np.dtype[Any]:
    """Of a layer's weight."""
    stored = None if layer.constant is None else layer.constant.dtype
    return np.dtype(np.float32 if stored is None else stored.numpy())


def _put_beside(graph: onnx.GraphProto, move: Move, own: str) -> None:
    """Put beside each layer one with the step as its weight; as much of its outputs as the new input says.

    Args:
        graph: Changed in place.
        move: The layers and the step.
        own: What the names of new tensors begin with.
    """
    owner = move.layers[0]
    assert owner.layout is not None
    dtype = _dtype(owner)
    weight, bias, amount = f"{own}/weight", f"{own}/bias", f"{own}/amount"
    stored = {weight: owner.layout.from_canonical(move.step)} | ({} if move.shift is None else {bias: move.shift})
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.ascontiguousarray(array, dtype), name) for name, array in stored.items()
    )
    kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    graph.node.insert(0, onnx.helper.make_node("Cast", [_AMOUNT], [amount], to=kind))
    layers = {layer.node.outputs[0].name: layer for layer in move.layers}

    def beside(node: onnx.NodeProto, index: int) -> list[onnx.NodeProto]:
        output = node.output[0]
        plain, step, part = (f"{output}/{_AMOUNT}/{name}" for name in ("plain", "step", "part"))
        second = onnx.NodeProto()
        second.CopyFrom(node)
        node.output[0], second.output[0], second.name = plain, step, step
        del second.input[2:]
        second.input[index] = weight
        if move.shift is not None:
            second.input.append(bias)
        elif len(node.input) > 2 and node.op_type == "Gemm":  # it has none before opset 11 that can be left out
            second.input.append(node.input[2])
            kept = [attribute for attribute in second.attribute if attribute.name != "beta"]
            del second.attribute[:]
            second.attribute.extend([*kept, onnx.helper.make_attribute("beta", 0.0)])
        return [
            node,
            second,
            onnx.helper.make_node("Mul", [step, amount], [part]),
            onnx.helper.make_node("Add", [plain, part], [output]),
        ]

    for inner in _graphs(graph):
        nodes: list[onnx.NodeProto] = []
        for node in inner.node:
            layer = layers.get(node.output[0] if node.output else "")
            assert layer is None or layer.layout is not None
            nodes += [node] if layer is None or layer.layout is None else beside(node, layer.layout.weight_index)
        if len(nodes) > len(inner.node):
            copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
            del inner.node[:]
            inner.node.extend(copies)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies of its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
