"""Spaces from what a walk has seen: which ids are one unit, which units are one space, what shrinks with each.

Units are the classes of joined ids. Units that stand in the same places, equally often, are one space: each costs what
any other does. Where the rows of a place must keep equally many (the groups of a convolution, the heads of attention),
their units are one space of so many groups. Time is linear in the ids that stand in places, but for sorting them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_onnx.graph.layers import Layer
from trp_onnx.graph.spaces.space import Consumer, Count, Part, Space
from trp_onnx.graph.spaces.trace import NONE, Forbid, Ids, Place, ShrinkCount, ShrinkPart, Target, Trace

_OPEN = np.iinfo(np.int64).max


@dataclass
class _Shrinking:
    """A place, its ids as units, and the axis along which it shrinks."""

    place: Place
    units: Ids
    axis: int | None
    rows: Ids | None

    @property
    def target(self) -> Target:
        """What happens there."""
        return None if self.axis is None else self.place.targets[self.axis]

    def along(self) -> Ids:
        """Units of the rows that shrink: (rows, size)."""
        assert self.axis is not None
        return np.moveaxis(self.units, self.axis, -1).reshape(-1, self.units.shape[self.axis])


@dataclass
class _Found:
    """What belongs to a space."""

    units: NDArray[np.int64]
    groups: int = 1
    producers: list[Layer] = field(default_factory=list)
    within: list[Layer | ir.Node] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    values: list[ir.Value] = field(default_factory=list)
    closed: str | None = None
    linear: bool = True


def resolve(trace: Trace) -> list[Space]:
    """The spaces of a graph that was walked."""
    if not trace.size:
        return []
    units = _classes(trace.size, trace.edges)
    places = [_shrinking(place, units) for place in trace.places]
    reasons: list[str] = []
    closed = np.full(units.max() + 1, _OPEN, np.int64)
    forbidden = [(p.along(), p.target.reason) for p in places if isinstance(p.target, Forbid)]
    for ids, reason in [*((units[ids], reason) for ids, reason in trace.closings), *forbidden]:
        np.minimum.at(closed, ids[ids != NONE], len(reasons))
        reasons.append(reason)
    grids = [p for p in places if p.rows is not None]
    _close_grids(grids, closed, reasons)
    space_of = _spaces(trace, units, places, grids, closed)
    return _gather(trace, units, places, grids, closed, reasons, space_of)


def _components(size: int, edges: Iterable[tuple[Ids, Ids]]) -> NDArray[np.int64]:
    """The number of the component of each of so many nodes."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = list(edges)
    a = np.concatenate([np.zeros(0, np.int64), *(np.ravel(first) for first, _ in pairs)])
    b = np.concatenate([np.zeros(0, np.int64), *(np.ravel(second) for _, second in pairs)])
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _classes(size: int, edges: Iterable[tuple[Ids, Ids]]) -> NDArray[np.int64]:
    """The unit of each id, numbered by their first ids."""
    labels = _components(size, edges)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.asarray(rank[inverse], np.int64)


def _as_units(ids: Ids, units: NDArray[np.int64]) -> Ids:
    return np.where(ids == NONE, NONE, units[ids])


def _shrinking(place: Place, units: NDArray[np.int64]) -> _Shrinking:
    """Along which axis a place shrinks: the one along which units differ; the inner one of several, row by row."""
    found = _as_units(place.ids, units)
    vary = [i for i in range(found.ndim) if (found != found.take([0], i)).any()]
    if place.strict:
        axis = place.inner
        alone = set(vary) <= {axis}
    else:
        axis = place.inner if place.inner in vary or not vary else vary[-1]
        alone = len(vary) < 2
    shrinking = _Shrinking(place, found, axis, None)
    if not alone:
        shrinking.rows = shrinking.along()
    return shrinking


def _close_grids(grids: Sequence[_Shrinking], closed: NDArray[np.int64], reasons: list[str]) -> None:
    """Where a row keeps a unit, the others of its place stay too."""
    edges = []
    for grid in grids:
        assert grid.rows is not None
        members = np.unique(grid.rows[grid.rows != NONE])
        edges.append((members[:-1], members[1:]))
        why = _uneven(grid.rows)
        if why:
            np.minimum.at(closed, members, len(reasons))
            reasons.append(why)
    component = _components(len(closed), edges)
    first = np.full(component.max() + 1, _OPEN, np.int64)
    np.minimum.at(first, component, closed)
    closed[:] = first[component]


def _uneven(rows: Ids) -> str | None:
    """Why units of these rows cannot be removed equally many from each."""
    if (rows == NONE).any():
        return "they stand in rows beside entries that stay"
    pairs = np.stack([np.repeat(np.arange(len(rows)), rows.shape[1]), rows.ravel()])
    distinct, times = np.unique(pairs, axis=1, return_counts=True)
    if len(np.unique(times)) > 1 or len(np.unique(np.bincount(distinct[0]))) > 1:
        return "they stand in rows of which some hold them more often than others"
    first = np.full(rows.max() + 1, len(rows), np.int64)
    np.minimum.at(first, rows.ravel(), pairs[0])
    if (first[rows] != first[rows[:, :1]]).any():
        return "they stand in rows that share some of them"
    return None


def _spaces(
    trace: Trace, units: NDArray[np.int64], places: Sequence[_Shrinking], grids: Sequence[_Shrinking],
    closed: NDArray[np.int64],
) -> NDArray[np.int64]:  # fmt: skip
    """The space of each unit."""
    rng = np.random.default_rng(0)
    signature = np.zeros(len(closed), np.uint64)

    def seen(ids: Ids) -> None:
        here, times = ids[ids != NONE], np.ones(1, np.uint64)  # of all units a place holds few
        if (here[1:] <= here[:-1]).any():
            here, counts = np.unique(here, return_counts=True)
            times = counts.astype(np.uint64)
        signature[here] += times * rng.integers(1, 2**63, dtype=np.uint64)

    for place in places:
        if place.place.apart:
            seen(place.units.ravel())
    for _, ids in (*trace.consumed, *trace.produced):
        seen(_as_units(ids, units))
    _, alike = np.unique(np.stack([signature.view(np.int64), closed]), axis=1, return_inverse=True)
    alike = np.asarray(alike, np.int64).reshape(-1)
    edges = []
    for grid in grids:
        assert grid.rows is not None
        members = np.unique(grid.rows[grid.rows != NONE])
        edges.append((alike[members[:-1]], alike[members[1:]]))
    return _components(int(alike.max()) + 1, edges)[alike]


def _groups(members: NDArray[np.int64], grids: Sequence[_Shrinking]) -> tuple[NDArray[np.int64], int] | str:
    """Units in the order of their groups, and how many those are; or why they cannot be grouped."""
    keys = []
    for grid in grids:
        assert grid.rows is not None
        row = np.full(members.max() + 1, NONE, np.int64)
        for number, units in reversed(list(enumerate(grid.rows))):
            row[units[units <= members.max()]] = number
        keys.append(row[members])
    if not keys:
        return members, 1
    cells, inverse = np.unique(np.stack(keys), axis=1, return_inverse=True)
    inverse = np.asarray(inverse).reshape(-1)
    if len(set(np.bincount(inverse))) > 1:
        return "they are grouped in two ways that do not nest"
    firsts = np.full(cells.shape[1], _OPEN, np.int64)
    np.minimum.at(firsts, inverse, members)
    order = np.lexsort((members, firsts[inverse]))
    return members[order], cells.shape[1]


def _gather(
    trace: Trace, units: NDArray[np.int64], places: Sequence[_Shrinking], grids: Sequence[_Shrinking],
    closed: NDArray[np.int64], reasons: Sequence[str], space_of: NDArray[np.int64],
) -> list[Space]:  # fmt: skip
    """Put each place, producer and consumer to the spaces of its units."""
    grids_of = defaultdict(list)
    for grid in grids:
        assert grid.rows is not None
        for space in np.unique(space_of[grid.rows[grid.rows != NONE]]):
            grids_of[space].append(grid)
    found: dict[int, _Found] = {}
    number = np.zeros(len(space_of), np.int64)
    order = np.argsort(space_of, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(space_of[order])) + 1):
        space = int(space_of[members[0]])
        found[space] = _started(np.sort(members), grids_of[space], closed, reasons)
        number[found[space].units] = np.arange(len(members))

    def shares(ids: Ids) -> Iterable[tuple[_Found, Ids]]:
        """The spaces that ids belong to, with the numbers of their units."""
        own = np.where(ids == NONE, NONE, space_of[ids])
        if own.size and own.flat[0] != NONE and (own == own.flat[0]).all():  # as nearly always
            yield found[int(own.flat[0])], number[ids]
            return
        for space in np.unique(own[own != NONE]):
            yield found[int(space)], np.where(own == space, number[ids], NONE)

    for layer, ids in trace.produced:
        for into, _ in shares(_as_units(ids, units)):
            into.producers.append(layer)
    for passing, ids in trace.passed:
        for into, _ in shares(_as_units(ids, units)):
            into.within.append(passing)
    for layer, ids in trace.consumed:
        for into, numbers in shares(_as_units(ids, units)):
            into.consumers.append(Consumer(layer, numbers))
    for value, labels in trace.labels.items():
        for label in labels:
            for into, _ in shares(_as_units(label.ids, units)):
                into.values.append(value)
    for ids in trace.apart:
        for into, _ in shares(units[ids]):
            into.linear = False
    for place in places:
        target = place.target
        if isinstance(target, ShrinkPart):
            for into, numbers in shares(place.along()):
                same = (numbers == numbers[:1]).all()
                part = Part(target.value, target.axis, numbers[0] if same else numbers, target.uses)
                into.parts.append(part)
        elif isinstance(target, ShrinkCount):
            for into, numbers in shares(place.along()[0]):
                count = Count(target.node, target.where, target.values, target.position, numbers)
                into.counts.append(count)
    return _described(found.values())


def _started(
    members: NDArray[np.int64], grids: Sequence[_Shrinking], closed: NDArray[np.int64], reasons: Sequence[str]
) -> _Found:
    reason = closed[members[0]]
    why = reasons[reason] if reason != _OPEN else None
    grouped = _groups(members, grids)
    if isinstance(grouped, str):
        return _Found(members, closed=why or grouped)
    ordered, groups = grouped
    if why is None and len(members) == groups:
        why = "it is one unit alone" if groups == 1 else "each of its groups has one unit alone"
    return _Found(ordered, groups, closed=why)


def _described(found: Iterable[_Found]) -> list[Space]:
    """Spaces with names, in the order of their first layers; what no layer makes is none."""
    spaces: list[Space] = []
    names: set[str] = set()
    made = [space for space in found if space.producers]
    for space in sorted(made, key=lambda space: int(space.units.min())):
        owner = space.producers[0].name
        name, count = owner, 1
        while name in names:
            count += 1
            name = f"{owner}:{count}"
        names.add(name)
        producers = dict.fromkeys(space.producers)
        spaces.append(
            Space(
                name, _kind(space), len(space.units), space.groups, tuple(producers),
                tuple(node for node in dict.fromkeys(space.within) if node not in producers), tuple(space.consumers),
                tuple(space.parts), tuple(space.counts), tuple(space.values), space.closed,
                space.closed is None and space.linear and _together(space),
            )
        )  # fmt: skip
    return spaces


def _together(space: _Found) -> bool:
    """Whether layers read the units, and wherever one stands all of its group do, each equally often."""
    made = {(layer.constant.value, layer.layout.output_axis) for layer in space.producers
            if layer.constant is not None and layer.layout is not None}  # fmt: skip
    for part in space.parts:
        for row in part.unit.reshape(-1, part.unit.shape[-1]):
            times = np.bincount(row[row != NONE], minlength=len(space.units)).reshape(space.groups, -1)
            if (times != times[:, :1]).any() or ((part.value, part.axis) in made and times.max() > 1):
                return False
    return bool(space.consumers)


def _kind(space: _Found) -> str:
    if any(isinstance(node, ir.Node) and node.op_type in ("MatMul", "Gemm") for node in space.within):
        return "head"
    mixing: list[Any] = [*space.producers, *(consumer.layer for consumer in space.consumers)]
    return "hidden" if all(layer.op in ("Gemm", "MatMul") for layer in mixing) else "channels"
