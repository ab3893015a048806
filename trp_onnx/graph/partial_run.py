"""Run a network in segments, from gate to gate.

A *gate* is a place where all that flows through the network is one value. What comes before it can be run once and
kept, and what changes after it needs only the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from trp_onnx.graph.batching import find_batching
from trp_onnx.graph.session import Arrays, open_session, run_session

_BATCH, _BATCH_BYTES = 32, 1 << 20
"""Samples of a run, and bytes of what they are at the input: what lies between takes several times that, and more
than fits in the caches takes longer."""

_KEPT_BYTES = 512 << 20
"""What the samples may take at a gate; those where they take more are passed by."""


class Walk:
    """Samples on their way through a network; the model may change behind and before them, its gates stay.

    Attributes:
        at: The value at which they are: the input, or a gate.
        x: (b, ...) what they are there.
    """

    def __init__(self, model: onnx.ModelProto, x: np.ndarray, wanted: Sequence[str] = ()) -> None:
        """Begin at the input.

        Args:
            model: With one input, a model in one piece.
            x: (b, ...) samples.
            wanted: Values within the network that are asked for beside its outputs.

        Raises:
            ModelError: It does not run on them.
        """
        self.at, self.x = model.graph.input[0].name, x
        most = max(1, min(_BATCH, _BATCH_BYTES // max(1, x[:1].nbytes)))
        self._batching = find_batching(open_session(model), {self.at: x}, most=most)
        self._gates = _gates(model.graph, wanted)

    def advance(self, model: onnx.ModelProto, target: str) -> None:
        """Go to the last gate before the node that makes a value; stay where there is none."""
        made = {name: i for i, node in enumerate(model.graph.node) for name in node.output}
        here, there = made.get(self.at, -1), made.get(target, -1)
        for gate in [name for name in self._gates if here < made[name] < there][::-1]:
            values = self._values(model, gate)
            if values is not None:
                self.at, self.x = gate, np.concatenate(values)
                return
            self._gates.remove(gate)

    def _values(self, model: onnx.ModelProto, gate: str) -> list[np.ndarray] | None:
        """What the samples are at a gate; None where its first axis is not theirs, or they take too much."""
        values: list[np.ndarray] = []
        for piece, batch in zip(self._batching.pieces(len(self.x)), self.run(model, [gate]), strict=True):
            value = batch[gate]
            count = piece.stop - piece.start
            if len(value) != count or value.nbytes // count * len(self.x) > _KEPT_BYTES:
                return None
            values.append(value)
        return values

    def rest(self, model: onnx.ModelProto, outputs: Sequence[str] | None = None) -> onnx.ModelProto:
        """The part of a network from here to some values, or to its outputs: a copy."""
        return cut(model, self.at, self.x.dtype, outputs)

    def run(self, model: onnx.ModelProto, outputs: Sequence[str] | None = None) -> Iterator[Arrays]:
        """From here to some values, or to the outputs, batch by batch."""
        if outputs is not None and list(outputs) == [self.at]:
            return ({self.at: self.x[piece]} for piece in self._batching.pieces(len(self.x)))
        return self.feed(open_session(self.rest(model, outputs)))

    def feed(
        self, session: Any, samples: slice = slice(None), others: Mapping[str, np.ndarray] | None = None
    ) -> Iterator[Arrays]:
        """Run a session of the rest, batch by batch.

        Args:
            session: Of what `rest` gave.
            samples: Which of them.
            others: Further inputs.
        """
        for feeds, count in self._batching.feeds({self.at: self.x[samples]}):
            values = run_session(session, {**feeds, **(others or {})})
            filled = len(feeds[self.at])
            yield (
                values
                if filled == count
                else {
                    name: value[:count] if np.shape(value)[:1] == (filled,) else value for name, value in values.items()
                }
            )


def cut(
    model: onnx.ModelProto, start: str, dtype: np.dtype[np.generic], outputs: Sequence[str] | None
) -> onnx.ModelProto:
    """The part of a network from one value to others, or to its outputs: a copy."""
    whole = model.graph
    kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    part.graph.name = whole.name
    given = next((value for value in whole.input if value.name == start), None)
    part.graph.input.append(given or onnx.helper.make_tensor_value_info(start, kind, None))
    if outputs is None:
        part.graph.output.extend(whole.output)
    else:
        part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)  # the runtime knows their types
    needed = {value.name for value in part.graph.output}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(whole.node):
        if needed.intersection(node.output) and start not in node.output:
            nodes.append(node)
            needed.update(node.input)
            needed.update(_captured(node))
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(tensor for tensor in whole.initializer if tensor.name in needed)
    return part


def _captured(node: onnx.NodeProto) -> set[str]:
    """What the bodies of a node may take from around them."""
    found: set[str] = set()
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
            for inner in graph.node:
                found.update(inner.input)
                found |= _captured(inner)
            found.update(value.name for value in graph.output)
    return found


def _gates(graph: onnx.GraphProto, wanted: Sequence[str] = ()) -> list[str]:
    """The gates in running order; none in networks with subgraphs or with several inputs."""
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in stored]
    if len(inputs) != 1 or any(_captured(node) for node in graph.node):
        return []
    last: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        last |= dict.fromkeys(node.input, i)
    last |= dict.fromkeys([*(value.name for value in graph.output), *wanted], len(graph.node))
    depends, live = set(inputs), set(inputs)
    gates: list[str] = []
    for i, node in enumerate(graph.node):
        if depends.intersection(node.input):  # what depends on no input is made again where it is needed
            depends.update(node.output)
            live.update(node.output)
        live = {name for name in live if last.get(name, -1) > i}
        if len(live) == 1 and live != {inputs[0]} and (not gates or gates[-1] not in live):
            gates += live
    return gates
