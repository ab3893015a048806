"""Run a network in segments, from gate to gate.

A *gate* is a place where all that flows through the network is one value. What comes before it can be run once and
kept, and what changes after it needs only the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx

from trp_onnx.runtime import Arrays, open_session, run_session

BATCH = 32


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
        """
        self.at = model.graph.input[0].name
        declared = model.graph.input[0].type.tensor_type.shape.dim
        self._fixed = bool(declared and declared[0].dim_value)
        self._size = declared[0].dim_value if self._fixed else BATCH
        # A fixed batch is filled up with the first samples again.
        self.x = x if not self._fixed or len(x) >= self._size else np.resize(x, (self._size, *x.shape[1:]))
        self._gates = _gates(model.graph, wanted)

    def advance(self, model: onnx.ModelProto, target: str) -> None:
        """Go to the last gate before the node that makes a value; stay where there is none."""
        made = {name: i for i, node in enumerate(model.graph.node) for name in node.output}
        here, there = made.get(self.at, -1), made.get(target, -1)
        ahead = [name for name in self._gates if here < made[name] < there]
        if not ahead:
            return
        segment = cut(model, self.at, self.x.dtype, ahead[-1:])
        values = [batch[ahead[-1]] for batch in self._batches(segment)]
        if any(len(value) != min(self._size, len(self.x)) for value in values[:1]):
            self._gates = [name for name in self._gates if name not in ahead]  # its first axis is not the samples'
            return
        self.at, self.x = ahead[-1], np.concatenate(values)

    def run(self, model: onnx.ModelProto, outputs: Sequence[str] | None = None) -> Iterator[Arrays]:
        """From here to some values, or to the outputs, batch by batch."""
        if outputs is not None and list(outputs) == [self.at]:
            return ({self.at: self.x[start : start + self._size]} for start in self._starts())
        return self._batches(cut(model, self.at, self.x.dtype, outputs))

    def _batches(self, segment: onnx.ModelProto) -> Iterator[Arrays]:
        session = open_session(segment)
        for start in self._starts():
            yield run_session(session, {self.at: self.x[start : start + self._size]})

    def _starts(self) -> range:
        last = max(1, len(self.x) - self._size + 1) if self._fixed else len(self.x)
        return range(0, last, self._size)


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
