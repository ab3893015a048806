"""How wide layers are when the spaces between them are cut.

A space that keeps fewer of its units leaves its producers fewer outputs and its consumers fewer inputs; a layer may
stand at several spaces, so what one space saves depends on the others.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.layers import Layer
from trp_onnx.graph.spaces import Space, outputs_of
from trp_onnx.lowrank.schemes import Geometry

if TYPE_CHECKING:
    from trp_onnx.latency.table import LatencyTable

Kept = Mapping[str, int]
"""Units that stay, by the name of their space; all of a space that is not named."""


@dataclass(frozen=True)
class _Touch:
    """What one unit of a space is to a layer: so many of its inputs and outputs, all groups counted."""

    space: Space
    inputs: float
    outputs: float


class Widths:
    """How wide the layers of a network are when its spaces are cut."""

    def __init__(self, spaces: Sequence[Space]) -> None:
        """Of open spaces."""
        self.spaces = spaces
        self._touches: dict[str, list[_Touch]] = {}
        self._layers: dict[str, Layer] = {}
        self._within = Counter(node for space in spaces for node in _nodes(space))
        for space in spaces:
            for layer, inputs, outputs in _touched(space):
                self._layers[layer.name] = layer
                self._touches.setdefault(layer.name, []).append(_Touch(space, inputs, outputs))

    @property
    def layers(self) -> list[Layer]:
        """All that stand at a space."""
        return list(self._layers.values())

    def knows(self, layer: Layer) -> bool:
        """Whether a layer stands at one of the spaces."""
        return layer.name in self._touches

    def around(self, layer: Layer) -> list[str]:
        """Names of the spaces at which a layer stands."""
        return [touch.space.name for touch in self._touches.get(layer.name, ())]

    def node_time(self, spaces: Sequence[Space], kept: Kept, table: LatencyTable) -> float:
        """Part of the network's time of the nodes within some spaces that are no layers.

        It is in proportion to what a space keeps; that of a node within several is divided among them.
        """
        found = 0.0
        for space in spaces:
            share = sum(table.node_share(node) / self._within[node] for node in _nodes(space))
            found += share * kept.get(space.name, space.size) / space.size
        return found

    def at(self, space: Space) -> list[Layer]:
        """Those that stand at one space."""
        return [self._layers[name] for name, touches in self._touches.items() if any(t.space is space for t in touches)]

    def channels(self, layer: Layer, kept: Kept) -> tuple[int, int]:
        """Inputs and outputs that a layer has left, all groups counted."""
        geometry = layer.geometry
        assert geometry is not None
        inputs, outputs = geometry.groups * geometry.in_channels, geometry.groups * geometry.out_channels
        for touch in self._touches.get(layer.name, ()):
            gone = touch.space.size - kept.get(touch.space.name, touch.space.size)
            inputs, outputs = inputs - round(gone * touch.inputs), outputs - round(gone * touch.outputs)
        return inputs, outputs

    def geometry(self, layer: Layer, kept: Kept) -> Geometry:
        """The geometry that a layer has left."""
        geometry = layer.geometry
        assert geometry is not None
        inputs, outputs = self.channels(layer, kept)
        if geometry.depthwise:
            return replace(geometry, groups=inputs)
        return replace(geometry, in_channels=inputs // geometry.groups, out_channels=outputs // geometry.groups)


def _nodes(space: Space) -> list[ir.Node]:
    return [node for node in space.within if isinstance(node, ir.Node)]


def _touched(space: Space) -> list[tuple[Layer, float, float]]:
    """The layers at a space, with the inputs and the outputs that one of its units is to them."""
    inputs: dict[str, float] = defaultdict(float)
    outputs: dict[str, float] = defaultdict(float)
    layers: dict[str, Layer] = {}
    for consumer in space.consumers:
        layer, geometry = consumer.layer, consumer.layer.geometry
        assert geometry is not None
        layers[layer.name] = layer
        inputs[layer.name] += np.count_nonzero(consumer.unit >= 0) / math.prod(geometry.kernel) / space.size
    for layer in space.producers:
        layers[layer.name] = layer
        outputs[layer.name] += _outputs(space, layer) / space.size
    for layer in (passing for passing in space.within if isinstance(passing, Layer)):
        assert layer.geometry is not None
        layers[layer.name] = layer
        own = _outputs(space, layer) / space.size
        outputs[layer.name] += own
        inputs[layer.name] += own / layer.geometry.out_channels
    return [(layer, inputs[name], outputs[name]) for name, layer in layers.items()]


def _outputs(space: Space, layer: Layer) -> int:
    """How many outputs of a layer are units of a space."""
    found = [units for part in space.parts if (units := outputs_of(part, layer)) is not None]
    return sum(int(np.count_nonzero(units >= 0)) for units in found)
