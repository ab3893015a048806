"""Layers with fewer channels: what is left of them, as a rank that a latency table knows the time of.

    width       (inputs, outputs) of one group; in time bilinear, as a kernel's work is
    depthwise   (channels,) of a depthwise convolution: they are its groups

A product of two curves, one for the inputs and one for the outputs, does worse: where maps are wide and a kernel waits
for memory it is off by a tenth of a layer's time, the bilinear fit by a fiftieth.
"""

from __future__ import annotations

import math
from dataclasses import replace

from trp_onnx.graph.layers import Layer
from trp_onnx.lowrank.schemes import SCHEMES, Geometry, Rank, Scheme


class Width:
    """A layer with fewer inputs and outputs; stateless, use `WIDTH`."""

    name, modes = "width", 2

    def full_rank(self, geometry: Geometry) -> Rank:
        """The layer as it is."""
        return (geometry.in_channels, geometry.out_channels)

    def step(self, geometry: Geometry, step: int) -> int:
        """Of so many channels in one step of the kernels' time, those of one group."""
        return step // math.gcd(step, geometry.groups)

    def cut(self, geometry: Geometry, rank: Rank) -> Geometry:
        """What is left."""
        return replace(geometry, in_channels=rank[0], out_channels=rank[1])

    def macs(self, geometry: Geometry, rank: Rank) -> int:
        """MACs of what is left."""
        return self.cut(geometry, rank).macs


class Depthwise(Width):
    """A depthwise convolution with fewer channels; stateless, use `DEPTHWISE`."""

    name, modes = "depthwise", 1

    def full_rank(self, geometry: Geometry) -> Rank:
        """The layer as it is."""
        return (geometry.groups,)

    def step(self, geometry: Geometry, step: int) -> int:
        """Its groups are its channels."""
        return step

    def cut(self, geometry: Geometry, rank: Rank) -> Geometry:
        """What is left."""
        return replace(geometry, groups=rank[0])


WIDTH, DEPTHWISE = Width(), Depthwise()

Way = Scheme | Width
"""What a layer may become: factors, or less of itself."""

WAYS: dict[str, Way] = {**SCHEMES, WIDTH.name: WIDTH, DEPTHWISE.name: DEPTHWISE}


def width_of(geometry: Geometry) -> Width:
    """How a layer's channels are counted."""
    return DEPTHWISE if geometry.depthwise else WIDTH


def rank_of(geometry: Geometry, inputs: int, outputs: int) -> Rank:
    """A width from the channels that are left, those of all groups counted together.

    Of a depthwise convolution they say the same twice; its outputs are the ones that count.
    """
    if width_of(geometry) is DEPTHWISE:
        return (math.ceil(outputs / geometry.out_channels),)
    return (math.ceil(inputs / geometry.groups), math.ceil(outputs / geometry.groups))


def cut(layer: Layer, way: Width, rank: Rank) -> Layer:
    """A layer of that geometry, to be timed: its weight is still the whole one."""
    assert layer.geometry is not None
    return replace(layer, geometry=way.cut(layer.geometry, rank))
