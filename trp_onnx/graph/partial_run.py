"""Run a network in segments, from cut to cut.

A *cut* is a place where all that flows through the network is one value or a few. What comes before it can be run once
and kept, and what changes after it needs only the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from trp_onnx.graph.batching import find_batching
from trp_onnx.graph.inputs import Run, Samples
from trp_onnx.graph.session import Arrays, open_session, run_session

_BATCH, _BATCH_BYTES = 32, 1 << 20
"""Samples of a run, and bytes of what they are at the input: what lies between takes several times that, and more
than fits in the caches takes longer."""

_KEPT_BYTES = 512 << 20
"""What the samples may take at a cut; those where they take more are passed by."""

LIVE = 8
"""Values that a cut goes through at most."""


class Walk:
    """Samples on their way through a network; the model may change behind and before them, its cuts stay.

    Attributes:
        at: The values at which they are: the inputs, or those of a cut.
        runs: What the samples are there.
    """

    def __init__(
        self, model: onnx.ModelProto, samples: Samples, wanted: Sequence[str] = (), *, most: int = _BATCH
    ) -> None:  # fmt: skip
        """Begin at the inputs.

        Args:
            model: A model in one piece.
            samples: As it takes them.
            wanted: Values within the network that are asked for beside its outputs.
            most: Samples of a run at most, where the model leaves that open.

        Raises:
            ModelError: It does not run on them.
        """
        self.at = tuple(samples.inputs)
        most = max(1, min(_BATCH, most, _BATCH_BYTES // samples.bytes_each))
        batching = find_batching(open_session(model), samples.longest, samples.inputs, most=most)
        self.runs = list(batching.split(samples.by_shape()))
        self._cuts = _cuts(model.graph, wanted)

    def advance(self, model: onnx.ModelProto, target: str) -> None:
        """Go to the last cut before the node that makes a value; stay where there is none."""
        made = {name: i for i, node in enumerate(model.graph.node) for name in node.output}

        def place(names: Sequence[str]) -> int:
            return max(made.get(name, -1) for name in names)

        here, there = place(self.at), made.get(target, -1)
        for names in [names for names in self._cuts if here < place(names) < there][::-1]:
            values = self._values(model, names)
            if values is not None:
                self.at, self.runs = names, values
                return
            self._cuts.remove(names)

    def _values(self, model: onnx.ModelProto, names: Sequence[str]) -> list[Run] | None:
        """What the samples are at a cut; None where they take too much."""
        session = open_session(self.rest(model, names))
        found, size = [], 0
        for run in self.runs:
            made = run_session(session, run.feeds)
            feeds = {name: made[name] if name in made else run.feeds[name] for name in names}
            size += sum(array.nbytes for array in feeds.values())
            if size > _KEPT_BYTES:
                return None
            found.append(Run(feeds, run.count, run.filled))
        return found

    def rest(self, model: onnx.ModelProto, outputs: Sequence[str] | None = None) -> onnx.ModelProto:
        """The part of a network from here to some values, or to its outputs: a copy."""
        return part_from(model, {name: self.runs[0].feeds[name].dtype for name in self.at}, outputs)

    def run(self, model: onnx.ModelProto, outputs: Sequence[str]) -> Iterator[tuple[Run, Arrays]]:
        """From here to some values: each run, and what it gives, with that of samples which only fill it up."""
        if set(outputs) <= set(self.at):
            return ((run, {name: run.feeds[name] for name in outputs}) for run in self.runs)
        return self.feed(open_session(self.rest(model, outputs)), outputs)

    def feed(
        self,
        session: Any,
        outputs: Sequence[str],
        runs: slice = slice(None),
        others: Mapping[str, np.ndarray] | None = None,
    ) -> Iterator[tuple[Run, Arrays]]:
        """Run a session of the rest: what `run` gives.

        Args:
            session: Of what `rest` gave.
            outputs: The values that it was made for.
            runs: Which of the runs.
            others: Further inputs.
        """
        for run in self.runs[runs]:
            here = {name: run.feeds[name] for name in outputs if name in run.feeds}
            yield run, here | run_session(session, {**run.feeds, **(others or {})})


def part_from(
    model: onnx.ModelProto, starts: Mapping[str, np.dtype[Any]], outputs: Sequence[str] | None
) -> onnx.ModelProto:
    """The part of a network from some values to others, or to its outputs: a copy.

    What is asked for and is among those that it starts from is none of its outputs.
    """
    whole = model.graph
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    part.graph.name = whole.name
    given = {value.name: value for value in whole.input}
    wanted = list(whole.output) if outputs is None else [onnx.ValueInfoProto(name=name) for name in outputs]
    part.graph.output.extend(value for value in wanted if value.name not in starts)  # the runtime knows their types
    needed = {value.name for value in part.graph.output}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(whole.node):
        if needed.difference(starts).intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
            needed.update(_captured(node))
    part.graph.node.extend(reversed(nodes))
    part.graph.input.extend(
        given.get(name) or onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(dtype), None)
        for name, dtype in starts.items()
        if name in needed
    )
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


def _cuts(graph: onnx.GraphProto, wanted: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """The cuts in running order."""
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in stored]
    uses = [{*node.input, *_captured(node)} for node in graph.node]
    last: dict[str, int] = {}
    for i, names in enumerate(uses):
        last |= dict.fromkeys(names, i)
    last |= dict.fromkeys([*(value.name for value in graph.output), *wanted], len(graph.node))
    depends, live = set(inputs), dict.fromkeys(inputs)
    cuts: list[tuple[str, ...]] = []
    for i, node in enumerate(graph.node):
        if not depends.isdisjoint(uses[i]):  # what depends on no input is made again where it is needed
            depends.update(node.output)
            live |= dict.fromkeys(node.output)
        live = {name: None for name in live if last.get(name, -1) > i}
        if 0 < len(live) <= LIVE and not set(live) <= set(inputs) and (not cuts or cuts[-1] != tuple(live)):
            cuts.append(tuple(live))
    return cuts
