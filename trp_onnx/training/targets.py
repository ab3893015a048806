"""The weights that are projected, and what they cost at a rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trp_onnx.graph.layers import Layer, Layout
from trp_onnx.lowrank.schemes import SCHEMES, Geometry, Rank
from trp_onnx.planning.options import sites_of


@dataclass(frozen=True)
class Target:
    """A weight that is projected.

    Attributes:
        layer: The layer that gave it its name.
        weight: Name of the initializer.
        layout: How it is stored.
        scheme: Name of the scheme.
        geometries: Of all layers that share it; empty when their MACs are not known.
        rank: The planner's rank, for the schedule `Fixed`.
    """

    layer: str
    weight: str
    layout: Layout
    scheme: str
    geometries: tuple[Geometry, ...]
    rank: Rank

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates as it is."""
        return sum(geometry.macs for geometry in self.geometries)

    @property
    def full_rank(self) -> Rank:
        """The rank of the whole weight; the planner's where its MACs are not known."""
        return SCHEMES[self.scheme].full_rank(self.geometries[0]) if self.geometries else self.rank

    def macs(self, rank: Rank) -> int:
        """Multiply-accumulates at a rank; those of the dense layer where that costs less."""
        scheme = SCHEMES[self.scheme]
        return sum(min(geometry.macs, int(scheme.macs(geometry, rank))) for geometry in self.geometries)


def targets_of(layers: Sequence[Layer], chosen: Mapping[str, tuple[str, Rank]]) -> list[Target]:
    """The weights behind some layers; layers that share one are one target."""
    targets = []
    for group in sites_of(layers):
        owner = group[0]
        if owner.name not in chosen:
            continue
        scheme, rank = chosen[owner.name]
        assert owner.constant is not None and owner.layout is not None
        geometries = tuple(layer.geometry for layer in group if layer.geometry is not None and layer.sized)
        targets.append(Target(owner.name, owner.constant.value.name or "", owner.layout, scheme, geometries, rank))
    return targets
