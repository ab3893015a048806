"""Time of a layer's factors over that of the dense layer, in probes that take turns.

With T and T_0 the times of a probe with factors and with the dense layer, which takes a part f of T_0,

    part = 1 - (1 - T / T_0) / f

Nothing but the layer differs between probes, and no clock is read within. Only f needs a profile, and as the layer's
share of its network is from one too, what the clock is off by cancels in share (1 - part), which a plan adds up.

Two more contenders guard what is found. The dense probe runs twice, as contenders that are no neighbours: what the
second is off by is what any entry may be off by. And a reference convolution runs in the same rounds: how many MACs a
second the dense layer does beside it bounds what its factors can do (see `LatencyTable`).

A layer that is cut has neighbours that are cut as well, so that more than the layer differs between its probes. There
the part is its time over that of the dense layer, each from a profile, of probes that take turns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trp_onnx.errors import ModelError
from trp_onnx.graph.layers import Layer
from trp_onnx.graph.session import Arrays
from trp_onnx.latency.int8 import in_precision
from trp_onnx.latency.probe import build_probe, layer_span, probe_feeds
from trp_onnx.latency.timing import LEAST_ROUNDS, Timing, measure
from trp_onnx.latency.width import Way, Width, cut, width_of
from trp_onnx.lowrank.schemes import Rank, Scheme
from trp_onnx.runners import NodeTime, Profile, Runner

if TYPE_CHECKING:
    from trp_onnx.latency.table import Target

ROUNDS, SECONDS = 30, 0.6
"""A geometry is timed in so many interleaved rounds, or in about so many seconds, but in 8 at least."""

ATTEMPTS = 3
"""What is in doubt is timed so often at most, each time twice as long."""

MOST_NOTED = 40_000
"""Times of nodes that profiles of one model note, in all its rounds and attempts: to write and read each costs more
than a small node takes."""

STEADY = 0.03
"""A profile is in doubt when more than this part of its time may belong to other nodes."""

_QUIET = 0.2
"""The quieter runs of a node: this part of them takes no longer."""

_REPEATS = 2
"""Timed calls in a turn, at most."""

_CHAINS, _CLOCK_ROUNDS = (50, 150), 100
_WARM_UP, _FEWEST, _MOST_NODES = 3, 4, 100_000
_REFERENCE = (64, 28)
"""Channels, and pixels along each side, of a 3x3 convolution that the kernels do at full speed."""
_REFERENCE_MACS = 9 * (_REFERENCE[0] * _REFERENCE[1]) ** 2


@dataclass(frozen=True)
class Place:
    """Where and how is timed."""

    runner: Runner
    target: Target

    def prepare(self, models: Sequence[Path | bytes], feeds: Arrays) -> None:
        """See `Runner.prepare`."""
        self.runner.prepare(models, feeds, self.target.provider, self.target.threads)

    def probe(self, layer: Layer, scheme: Scheme | None = None, rank: Rank = ()) -> bytes:
        """See `build_probe`; in the target's precision."""
        return self._made(build_probe(layer, scheme, rank), probe_feeds(layer))

    @cached_property
    def reference(self) -> bytes:
        """A convolution that the kernels do at full speed."""
        return self._made(_reference(), _reference_feeds())

    def _made(self, probe: ir.Model, feeds: Arrays) -> bytes:
        return bytes(ir.to_proto(in_precision(probe, self.target.precision, feeds)).SerializeToString())

    @cached_property
    def clock(self) -> float:
        """What reading the clock adds to a node's time in a profile, in seconds.

        On a virtual machine it can be microseconds, as much as a small layer takes, and it is not the same all day.
        From chains of two lengths of next to nothing, each run plainly and profiled, all four in turns.
        """
        self.prepare([_chain(length) for length in _CHAINS], {"x": np.zeros((1, 16), np.float32)})
        found = self.runner.profile([0, 1], _CLOCK_ROUNDS)
        noted = np.stack([seconds.sum(axis=1) for seconds in found.seconds], axis=1) - found.lost
        excess = (noted - found.plain)[_WARM_UP:]
        return max(0.0, float(np.median(excess[:, 1] - excess[:, 0])) / (_CHAINS[1] - _CHAINS[0]))


def _chain(length: int) -> bytes:
    """So many nodes of next to nothing."""
    x = ir.val("x", ir.DataType.FLOAT, (1, 16))
    nodes: list[ir.Node] = []
    for _ in range(length):
        nodes.append(ir.node("Sin", [nodes[-1].outputs[0] if nodes else x]))
    y = nodes[-1].outputs[0]
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [y], nodes=nodes, opset_imports={"": 17}, name="chain")
    return bytes(ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString())


@dataclass(frozen=True)
class Dissected:
    """A model's time and that of its nodes, in running order, as they are without a profile.

    Attributes:
        seconds: One run.
        nodes: Its nodes.
        doubt: What the nodes' parts of it may be off by, together.
    """

    seconds: float
    nodes: list[NodeTime]
    doubt: float


def dissect(place: Place, model: Path | bytes, feeds: Arrays) -> Dissected:
    """Run it plainly and profiled in turns; again and longer while its parts are in doubt.

    On a busy machine a run is interrupted at some node, and the longer it is, the more often: what counts of a node is
    its time in its quieter runs. The whole is measured by plain runs against the profiled ones beside them, both
    without the time that another process had the core.

    Raises:
        ModelError: It runs so many nodes that the runtime's profile, which ends after a million, does not hold them.
    """
    clock = place.clock
    place.prepare([model], feeds)
    first = place.runner.profile([0], 1)
    count = len(first.nodes[0])
    if count > _MOST_NODES:
        raise ModelError(f"one run of it is {count} nodes, again and again in a loop maybe: too many to time each")
    left = MOST_NOTED // max(1, count)  # rounds
    wanted = max(LEAST_ROUNDS, min(2 * ROUNDS, int(SECONDS / 4 / float(first.plain[0, 0]))))
    found: list[Dissected] = []
    for attempt in range(ATTEMPTS):
        rounds = max(_FEWEST, min(wanted * 2**attempt, left))
        left -= rounds
        found.append(_dissected(place.runner.profile([0], _WARM_UP + rounds), clock))
        if found[-1].doubt <= STEADY or left < LEAST_ROUNDS:
            break
    return min(found, key=lambda dissected: dissected.doubt)


def _dissected(profile: Profile, clock: float) -> Dissected:
    """The first model of a profile."""
    plain, noted, lost = profile.plain[_WARM_UP:, 0], profile.seconds[0][_WARM_UP:], profile.lost[_WARM_UP:, 0]
    kept = np.maximum(noted.sum(axis=1) - lost, noted.min(axis=0).sum())
    times, first, second = (np.quantile(part, _QUIET, axis=0) for part in (noted, noted[::2], noted[1::2]))
    whole = float(np.median(plain / kept) * times.sum())
    apart = float(np.abs(first / first.sum() - second / second.sum()).sum()) / 2
    interrupted = float(times.sum() / np.quantile(kept, _QUIET)) - 1
    nodes = [
        dataclasses.replace(node, seconds=max(0.0, float(seconds) - clock))
        for node, seconds in zip(profile.nodes[0], times, strict=True)
    ]
    return Dissected(whole, nodes, max(apart, interrupted))


@dataclass(frozen=True)
class Parts:
    """What probes of one geometry found.

    Attributes:
        parts: Time of the factors over the dense layer's, in the order that was asked for.
        inside: Part f of the probe's time that the dense layer takes; None where it was not asked.
        pace: MACs a second of the dense layer over those of the reference convolution.
        doubt: What an entry may be off by, as part of the dense layer's time.
    """

    parts: list[float]
    inside: float | None
    pace: float
    doubt: float


def time_parts(
    place: Place,
    layer: Layer,
    wanted: Sequence[tuple[Scheme, Rank]],
    *,
    allowed: float = 0.03,
    inside: float | None = None,
) -> Parts:
    """Time pairs of factors against the dense layer, again and longer while they are in doubt.

    Args:
        place: Where.
        layer: Whose geometry is meant.
        wanted: Schemes and ranks.
        allowed: The doubt that is good enough.
        inside: Part of the probe's time that the dense layer takes, where it is known.

    Raises:
        ModelError: The provider has no kernel for its type.
        RunnerError: The runtime died or did not answer.
    """
    assert layer.geometry is not None
    dense = place.probe(layer)
    feeds = probe_feeds(layer) | _reference_feeds()
    probes = [dense, *(place.probe(layer, scheme, rank) for scheme, rank in wanted), dense, place.reference]
    if inside is None:
        alone = dissect(place, dense, feeds)
        inside = sum(node.seconds for node in alone.nodes[layer_span(alone.nodes)]) / alone.seconds
    if not inside > 0:
        return Parts([1.0] * len(wanted), 0.0, 0.0, 0.0)  # too small for any clock
    best: Parts | None = None
    for attempt in range(ATTEMPTS):
        place.prepare(probes, feeds)
        longer = 2**attempt
        timing = measure(
            place.runner.run, len(probes), ROUNDS * longer, repeats=_REPEATS, limit_seconds=SECONDS * longer
        )
        found = _parts(layer, wanted, timing, inside)
        if best is None or found.doubt < best.doubt:
            best = found
        if best.doubt <= allowed:
            break
    assert best is not None
    return best


def _parts(layer: Layer, wanted: Sequence[tuple[Scheme, Rank]], timing: Timing, inside: float) -> Parts:
    """What one measurement says, and how far to trust it."""
    assert layer.geometry is not None
    *ratios, again, reference = timing.ratios[1:]
    parts = [max(1e-3, 1 - (1 - 1 / ratio.median) / inside) for ratio in ratios]
    noise = float(np.median([ratio.width / 4 for ratio in (*ratios, again)]))  # a standard deviation
    off = max(abs(1 / again.median - 1), noise) / inside
    pace = layer.geometry.macs / (inside * reference.median) / _REFERENCE_MACS
    return Parts(parts, inside, pace, max(off, _disorder(wanted, parts)))


def time_cuts(place: Place, layer: Layer, wanted: Sequence[tuple[Width, Rank]], *, allowed: float = 0.03) -> Parts:
    """Time a layer with fewer channels against the dense one, again and longer while that is in doubt.

    Args:
        place: Where.
        layer: Whose geometry is meant.
        wanted: What is left; where nothing goes, that is the layer itself.
        allowed: The doubt that is good enough.

    Raises:
        ModelError: The provider has no kernel for its type.
        RunnerError: The runtime died or did not answer.
    """
    assert layer.geometry is not None
    thinner = [(way, rank) for way, rank in wanted if rank != way.full_rank(layer.geometry)]
    left, feeds = [layer, *(cut(layer, way, rank) for way, rank in thinner)], _reference_feeds()
    for one in left:
        feeds |= probe_feeds(one)
    probes = [place.probe(one) for one in left]
    probes += [probes[0], place.reference]
    clock, models = place.clock, range(len(probes))
    place.prepare(probes, feeds)
    once = float(np.sum(place.runner.run(1, [1] * len(probes), False).seconds))
    wanted_rounds = max(LEAST_ROUNDS, min(ROUNDS, int(SECONDS / 2 / once)))
    found: list[Parts] = []
    for attempt in range(ATTEMPTS):
        profile = place.runner.profile(models, _WARM_UP + wanted_rounds * 2**attempt)
        found.append(_cut_parts(layer, thinner, profile, clock))
        if found[-1].doubt <= allowed:
            break
    best = min(found, key=lambda parts: parts.doubt)
    parts = iter(best.parts)
    return dataclasses.replace(best, parts=[next(parts) if point in thinner else 1.0 for point in wanted])


def _cut_parts(layer: Layer, wanted: Sequence[tuple[Width, Rank]], profile: Profile, clock: float) -> Parts:
    """What one profile says, and how far to trust it."""
    assert layer.geometry is not None
    pairs = zip(profile.nodes, profile.seconds, strict=True)
    times = [noted[_WARM_UP:, layer_span(run)] for run, noted in pairs]

    def seconds(rounds: slice) -> np.ndarray:
        quiet = [np.quantile(noted[rounds], _QUIET, axis=0) - clock for noted in times]
        return np.array([max(0.0, float(part.sum())) for part in quiet])

    dense, *cuts, again, reference = seconds(slice(None))
    if not dense > 0:
        return Parts([1.0] * len(wanted), None, 0.0, 0.0)  # too small for any clock
    parts = [max(1e-3, float(part / dense)) for part in cuts]
    halves = seconds(slice(0, None, 2)) - seconds(slice(1, None, 2))
    noise = float(np.median(np.abs(halves[:-1]))) / 2 / dense
    pace = layer.geometry.macs / dense * reference / _REFERENCE_MACS
    way = width_of(layer.geometry)
    disorder = _disorder([*wanted, (way, way.full_rank(layer.geometry))], [*parts, 1.0])
    return Parts(parts, None, pace, max(abs(again / dense - 1), noise, disorder))


def _disorder(wanted: Sequence[tuple[Way, Rank]], parts: Sequence[float]) -> float:
    """How much faster than a smaller rank, in every mode, a larger one of the same scheme came out."""
    worst = 0.0
    for (scheme, rank), part in zip(wanted, parts, strict=True):
        for (other, larger), took in zip(wanted, parts, strict=True):
            if scheme is other and all(r <= s for r, s in zip(rank, larger, strict=True)):
                worst = max(worst, part - took)
    return worst


def _reference_feeds() -> dict[str, np.ndarray]:
    channels, side = _REFERENCE
    return {"reference": np.random.default_rng(2).standard_normal((1, channels, side, side)).astype(np.float32)}


def _reference() -> ir.Model:
    """A convolution that the kernels do at full speed."""
    channels, side = _REFERENCE
    weight = np.random.default_rng(3).standard_normal((channels, channels, 3, 3)).astype(np.float32) / (3 * channels)
    w = ir.tape.Tape().initializer(ir.tensor(weight, name="w"))
    x = ir.val("reference", ir.DataType.FLOAT, (1, channels, side, side))
    node = ir.node("Conv", [x, w], {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]})
    y = node.outputs[0]
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [y], nodes=[node], initializers=[w], opset_imports={"": 17}, name="reference")
    return ir.Model(graph, ir_version=8)
