"""What options cost where the spaces around their layers are cut.

With i inputs and o outputs left of a layer,

    MACs(scheme, rank)    those of the thinner layer, as `schemes` counts them
    time(dense)           share * part(i, o), see `LatencyTable`
    time(scheme, rank)    share * part(scheme, rank) * MACs(i, o, rank) / MACs(rank)

a factor's time being in proportion to its MACs where its neighbours get thinner. A rank above the full rank of what is
left is none any more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trp_onnx.graph.layers import Layer
from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.schemes import SCHEMES, Geometry, Scheme
from trp_onnx.planning.options import Cost, Option, Site, in_time
from trp_onnx.planning.widths import Kept, Widths

if TYPE_CHECKING:
    from trp_onnx.latency.table import LatencyTable

DENSE = Option(None, (), 0, 0, 0.0)
"""A layer as it is, where costs are those of what is left of it."""

Front = tuple[Array, Array]
"""Costs and damages of the options that no other one beats in both, by rising cost."""


def layer_macs(layer: Layer, option: Option, left: Geometry) -> int:
    """MACs of one run of what a layer becomes, of what is left of it."""
    return left.macs if option.scheme is None else int(SCHEMES[option.scheme].macs(left, option.rank))


def layer_time(layer: Layer, option: Option, left: Geometry, table: LatencyTable) -> float:
    """Part of the dense network's time of the same."""
    if option.scheme is None:
        channels = left.groups * left.in_channels, left.groups * left.out_channels
        return table.share(layer) * table.width_part(layer, *channels)
    scheme = SCHEMES[option.scheme]
    whole = table.share(layer) * table.part(layer, scheme, option.rank)
    return float(whole * _thinner(layer, scheme, option.rank, left))


def _thinner(layer: Layer, scheme: Scheme, rank: Sequence[Any], left: Geometry) -> Any:
    """MACs of factors of what is left over those of the whole layer's; `rank` may hold arrays."""
    assert layer.geometry is not None
    return scheme.macs(left, rank) / np.maximum(scheme.macs(layer.geometry, rank), 1)


def _possible(scheme: Scheme, rank: Sequence[Any], left: Geometry) -> Any:
    """Whether there are such ranks; `rank` may hold arrays."""
    return np.all([r <= full for r, full in zip(rank, scheme.full_rank(left), strict=True)], axis=0)


@dataclass(frozen=True, eq=False)
class _Group:
    """The options of one scheme.

    Attributes:
        places: Among the site's options.
        rank: One array for each mode.
        times: Of each layer's factors where nothing is cut; None without a latency table.
    """

    scheme: Scheme
    places: NDArray[np.int64]
    rank: tuple[NDArray[np.int64], ...]
    times: list[Array] | None


class Narrowing:
    """The options of sites between cut spaces, by one latency table or none; what was looked up is kept."""

    def __init__(self, widths: Widths, table: LatencyTable | None) -> None:
        self.widths, self.table = widths, table
        self._groups: dict[Site, list[_Group]] = {}
        self._harm: dict[Site, Array] = {}
        self._around: dict[Site, list[str]] = {}
        self._fronts: dict[tuple[object, ...], Front] = {}
        self._places: dict[Layer, list[str]] = {}
        self._alone: dict[tuple[object, ...], float] = {}

    def take_over(self, other: Narrowing, sites: Set[Site]) -> None:
        """What was looked up of some sites, by a table that says the same of them."""
        self._fronts |= {key: front for key, front in other._fronts.items() if key[0] in sites}
        self._groups |= {site: groups for site, groups in other._groups.items() if site in sites}

    def left(self, site: Site, kept: Kept) -> list[Geometry]:
        """The geometries that the layers of a site have left."""
        return [self.widths.geometry(layer, kept) for layer in site.layers]

    def option(self, site: Site, option: Option, kept: Kept) -> Option | None:
        """What an option costs there; None where it has no such rank."""
        left = self.left(site, kept)
        if option.scheme is not None and not _possible(SCHEMES[option.scheme], option.rank, left[0]):
            return None
        return self._narrow(site, option, left)

    def _narrow(self, site: Site, option: Option, left: Sequence[Geometry]) -> Option:
        pairs = list(zip(site.layers, left, strict=True))
        scheme, table = None if option.scheme is None else SCHEMES[option.scheme], self.table
        return replace(
            option,
            macs=sum(layer.times * layer_macs(layer, option, geometry) for layer, geometry in pairs),
            parameters=left[0].parameters if scheme is None else int(scheme.parameters(left[0], option.rank)),
            time=None if table is None else sum(layer_time(layer, option, g, table) for layer, g in pairs),
        )

    def site(self, site: Site, kept: Kept) -> Site:
        """The site there: options that are none any more, or do not pay, are left out.

        The option that is called dense has to be possible.
        """
        left, cheapest = self.left(site, kept), site.cheapest
        if left == [layer.geometry for layer in site.layers]:
            return site
        dense = self.option(site, site.dense, kept)
        assert dense is not None
        macs, times, possible = self._costs(site, kept)
        parameters = self._parameters(site, kept)
        taken = [None] * len(macs) if times is None else times.tolist()
        found = {
            i: replace(site.options[i], macs=int(macs[i]), parameters=int(parameters[i]), time=taken[i])
            for i in np.flatnonzero(possible).tolist()
        }
        paying = np.flatnonzero(_paying(macs, times, dense) & possible)
        if not found and cheapest is not None:  # which says what is missing
            return replace(site, dense=dense, options=(), surveyed=(self._narrow(site, cheapest, left),))
        return replace(
            site, dense=dense, options=tuple(found[i] for i in paying.tolist()), surveyed=tuple(found.values())
        )

    def front(self, site: Site, kept: Kept, cost: Cost) -> Front:
        """Costs and damages of what a site can become there."""
        if site not in self._around:
            self._around[site] = [name for layer in site.layers for name in self.widths.around(layer)]
        key = (site, cost, *(kept.get(name) for name in self._around[site]))
        known = self._fronts.get(key)
        if known is None:
            known = self._fronts[key] = self._front(site, kept, cost)
        return known

    def alone(self, layer: Layer, kept: Kept, cost: Cost) -> float:
        """What a layer costs there that is in no site, as `cost` counts; nothing where its MACs are unknown."""
        if layer not in self._places:
            self._places[layer] = self.widths.around(layer)
        key = (layer, cost, *(kept.get(name) for name in self._places[layer]))
        known = self._alone.get(key)
        if known is None:
            known = self._alone[key] = self._dense(layer, self.widths.geometry(layer, kept), cost)
        return known

    def _dense(self, layer: Layer, left: Geometry, cost: Cost) -> float:
        if cost is in_time:
            assert self.table is not None
            return 1e9 * layer_time(layer, DENSE, left, self.table)
        return float(layer.times * left.macs) if layer.sized else 0.0

    def _front(self, site: Site, kept: Kept, cost: Cost) -> Front:
        dense = self.option(site, site.dense, kept)
        assert dense is not None
        macs, times, possible = self._costs(site, kept)
        use = np.flatnonzero(_paying(macs, times, dense) & possible)
        if cost is in_time:
            assert times is not None
            costs = np.ceil(times * 1e9)
        else:
            costs = macs
        costs = np.append(costs[use], float(cost(dense)))
        damages = np.append(self._damages(site)[use], dense.damage)
        order = np.lexsort((damages, costs))
        costs, damages = costs[order], damages[order]
        best = np.minimum.accumulate(damages)
        first = np.append(True, best[1:] < best[:-1])
        return costs[first], damages[first]

    def _damages(self, site: Site) -> Array:
        if site not in self._harm:
            self._harm[site] = np.array([option.damage for option in site.options])
        return self._harm[site]

    def _costs(self, site: Site, kept: Kept) -> tuple[Array, Array | None, NDArray[np.bool_]]:
        """MACs and times of a site's options, and which of them are possible."""
        count, left = len(site.options), self.left(site, kept)
        macs, times, possible = np.zeros(count), np.zeros(count), np.zeros(count, bool)
        for group in self._grouped(site):
            possible[group.places] = _possible(group.scheme, group.rank, left[0])
            for i, (layer, geometry) in enumerate(zip(site.layers, left, strict=True)):
                macs[group.places] += layer.times * group.scheme.macs(geometry, group.rank)
                if group.times is not None:
                    times[group.places] += group.times[i] * _thinner(layer, group.scheme, group.rank, geometry)
        return macs, None if self.table is None else times, possible

    def _parameters(self, site: Site, kept: Kept) -> NDArray[np.int64]:
        found, left = np.zeros(len(site.options), np.int64), self.left(site, kept)[0]
        for group in self._grouped(site):
            found[group.places] = group.scheme.parameters(left, group.rank)
        return found

    def _grouped(self, site: Site) -> list[_Group]:
        if site not in self._groups:
            places: dict[str, list[int]] = defaultdict(list)
            for place, option in enumerate(site.options):
                assert option.scheme is not None
                places[option.scheme].append(place)
            self._groups[site] = [self._group(site, SCHEMES[name], found) for name, found in places.items()]
        return self._groups[site]

    def _group(self, site: Site, scheme: Scheme, places: list[int]) -> _Group:
        ranks, table = [site.options[place].rank for place in places], self.table
        times = None
        if table is not None:
            times = [
                table.share(layer) * np.array([table.part(layer, scheme, rank) for rank in ranks])
                for layer in site.layers
            ]
        return _Group(scheme, np.array(places), tuple(np.array(ranks, np.int64).T), times)


def _paying(macs: Array, times: Array | None, dense: Option) -> NDArray[np.bool_]:
    """Which options cost less than the dense layer, in MACs and in time where that is known."""
    cheaper = macs < dense.macs
    return cheaper if times is None or dense.time is None else cheaper & (times < dense.time)
