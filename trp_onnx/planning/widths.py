"""What layers cost when the spaces between them are cut: MACs, time or parameters.

A space that keeps fewer of its units leaves its producers fewer outputs and its consumers fewer inputs; a layer may
stand at several spaces, so what one space saves depends on the others. With i inputs and o outputs left,

    MACs(scheme, rank)    those of the thinner layer, as `schemes` counts them
    time(dense)           share * part(i, o), see `LatencyTable`
    time(scheme, rank)    share * part(scheme, rank) * MACs(i, o, rank) / MACs(rank)

a factor's time being in proportion to its MACs where its neighbours get thinner.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.layers import Layer
from trp_onnx.graph.spaces import Space, outputs_of
from trp_onnx.lowrank.schemes import SCHEMES, Geometry
from trp_onnx.planning.options import Option, Site

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

    def rest(self, layers: Sequence[Layer], spaces: Sequence[Space], kept: Kept, table: LatencyTable) -> float:
        """Part of the network's time of some layers, as they are, and of the nodes within some spaces that are none.

        The time of such nodes is in proportion to what the space keeps.
        """
        found = sum(table.share(layer) * table.width_part(layer, *self.channels(layer, kept)) for layer in layers)
        for space in spaces:
            nodes = (node for node in space.within if isinstance(node, ir.Node))
            found += sum(map(table.node_share, nodes)) * kept.get(space.name, space.size) / space.size
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


def narrowed(site: Site, widths: Widths, kept: Kept, table: LatencyTable | None) -> Site:
    """A site whose layers stand at cut spaces: what its options cost there, without ranks that are none any more."""
    geometries = [widths.geometry(layer, kept) for layer in site.layers]
    if all(geometry == layer.geometry for geometry, layer in zip(geometries, site.layers, strict=True)):
        return site
    found = [other for option in site.options if (other := _narrow(option, site, geometries, table)) is not None]
    channels = [widths.channels(layer, kept) for layer in site.layers]
    time = None
    if table is not None:
        time = sum(
            table.share(layer) * table.width_part(layer, *at) for layer, at in zip(site.layers, channels, strict=True)
        )
    macs = sum(layer.times * geometry.macs for layer, geometry in zip(site.layers, geometries, strict=True))
    if site.dense.scheme is not None:  # the map gives it: there is no other
        return replace(site, dense=_narrow(site.dense, site, geometries, table) or site.dense)
    dense = replace(site.dense, macs=macs, parameters=geometries[0].parameters, time=time)
    paying = [o for o in found if o.macs < macs and (o.time is None or time is None or o.time < time)]
    return replace(site, dense=dense, options=tuple(paying), surveyed=tuple(found))


def _narrow(option: Option, site: Site, geometries: Sequence[Geometry], table: LatencyTable | None) -> Option | None:
    assert option.scheme is not None
    scheme = SCHEMES[option.scheme]
    if any(r >= full for r, full in zip(option.rank, scheme.full_rank(geometries[0]), strict=True)):
        return None
    macs, time = 0, 0.0
    for layer, geometry in zip(site.layers, geometries, strict=True):
        assert layer.geometry is not None
        mine = int(scheme.macs(geometry, option.rank))
        macs += layer.times * mine
        if table is not None:
            whole = max(1, int(scheme.macs(layer.geometry, option.rank)))
            time += table.share(layer) * table.part(layer, scheme, option.rank) * mine / whole
    parameters = int(scheme.parameters(geometries[0], option.rank))
    return replace(option, macs=macs, parameters=parameters, time=None if table is None else time)
