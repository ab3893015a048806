"""Measure a latency table: the network's own profile for the shares, small graphs for the parts.

What was timed is kept in the user's cache, by machine, runtime, provider, threads and geometry, after every
geometry: a second network with the same layers, or the same command after a stop, measures only what is new.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from trp_onnx.cache import Cache
from trp_onnx.errors import ModelError
from trp_onnx.latency.benchmark import check_ran, layer_milliseconds
from trp_onnx.latency.probe import build_probe, layer_nodes, probe_feeds, signature
from trp_onnx.latency.table import LatencyTable, target_of
from trp_onnx.latency.timing import LEAST_ROUNDS, measure
from trp_onnx.layers import Layer, find_layers
from trp_onnx.model import open_model, to_proto
from trp_onnx.progress import track
from trp_onnx.runners import NodeTime, Runner, open_runner
from trp_onnx.runners.open import TIMEOUT
from trp_onnx.runtime import Arrays, feeds_for
from trp_onnx.schemes import SCHEMES, Rank, Scheme, candidates

KNOTS = 4
"""Ranks at which a pair is timed; Tucker-2 at half as many squared."""

ROUNDS, SECONDS = 30, 1.5
"""A geometry is timed in so many interleaved rounds, or in about so many seconds, but in 8 at least."""

_REPEATS = 2
"""Timed calls in a turn."""

_CHAINS, _CLOCK_ROUNDS = (50, 150), 100
_WARM_UP = 3
_METHOD = 3
"""Raised when what is measured changes: older measurements in the cache are then left alone."""

_SAME_STEP = 0.92
"""Times whose ratio is above this belong to one step; without steps 24 channels take 0.78 of what 32 do."""


def profile(
    model: str | PathLike[str],
    *,
    scheme: str = "auto",
    provider: str = "cpu",
    threads: int = 1,
    runtime: str = "local",
    timeout: float = TIMEOUT,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    simplify: bool = True,
) -> LatencyTable:
    """Measure the latency table of an ONNX file; `compress(latency_table=...)` plans by it, here or elsewhere.

    Args:
        model: The file.
        scheme: Which schemes to time: a name or "auto".
        provider: A name of `PROVIDERS`.
        threads: Intra-op threads.
        runtime: "local", "python:PATH", "node", "web" or "ssh:HOST[:PYTHON]".
        timeout: Seconds without a sign of life after which another runtime is given up.
        input_shapes: Sizes of dynamic inputs; a symbolic batch is 1.
        simplify: Whether to run onnx-simplifier first, as `compress` does.

    Raises:
        UsageError: The provider is not there, or the runtime cannot tell the time of single nodes.
        ModelError: The model cannot be read or run.
        RunnerError: The runtime is not there, died or did not answer.
    """
    from trp_onnx.normalise import normalise

    normal, _ = normalise(open_model(Path(model)), input_shapes, simplify=simplify)
    layers = find_layers(normal, input_shapes)
    with open_runner(runtime, timeout) as runner:
        return measure_table(
            normal, layers, feeds_for(normal, input_shapes),
            scheme=scheme, provider=provider, threads=threads, runner=runner,
        )  # fmt: skip


def measure_table(
    model: ir.Model,
    layers: Sequence[Layer],
    feeds: Arrays,
    *,
    scheme: str = "auto",
    provider: str = "cpu",
    threads: int = 1,
    runner: Runner | None = None,
) -> LatencyTable:
    """Time a network's layers, dense and at several ranks of each scheme.

    Args:
        model: Normalised; not changed.
        layers: Its layers.
        feeds: What it runs on.
        scheme: Which schemes to time: a name or "auto".
        provider: A name of `PROVIDERS`.
        threads: Intra-op threads.
        runner: Where; in this process otherwise.

    Raises:
        UsageError: The provider is not there, or the runtime cannot tell the time of single nodes.
        ModelError: The network does not run, or the provider took none of it.
        RunnerError: The runtime died or did not answer.
    """
    place = _Place(runner or open_runner(), provider, threads)
    target = target_of(place.runner, provider, threads)
    store = Cache("latency", f"{_METHOD} {target}")
    free = [layer for layer in layers if layer.reason is None]
    distinct: dict[str, Layer] = {}
    for layer in free:
        distinct.setdefault(signature(layer), layer)
    step = store.get("step")
    if not isinstance(step, int):
        step = _measure_step(place)
        store.put("step", step)
    timed: dict[str, dict[str, Any]] = {}
    for key, layer in track(list(distinct.items()), "timing layers"):
        known = store.get(key) or {}
        missing = [s for s in candidates(scheme, _geometry(layer)) if s.name not in known]
        found = _measure_parts(place, layer, missing, step) if missing else {}
        if found:
            store.put(key, known | found)
        timed[key] = known | found
    proto = to_proto(model).SerializeToString()
    shape = json.dumps({name: list(np.shape(array)) for name, array in feeds.items()}, sort_keys=True)
    mark = f"network {hashlib.sha256(proto).hexdigest()} {shape}"
    network = store.get(mark)
    if network is None:
        network = _measure_network(place, proto, model.graph, feeds, free)
        store.put(mark, network)
    wanted = {s.name for layer in free for s in candidates(scheme, _geometry(layer))}
    parts = {
        key: {name: [(tuple(r), p) for r, p in knots] for name, knots in timed[key].items() if name in wanted}
        for key in distinct
    }
    return LatencyTable(
        target, step, network["milliseconds"],
        {layer.name: signature(layer) for layer in free}, network["shares"], parts,
    )  # fmt: skip


def _geometry(layer: Layer) -> tuple[int, ...]:
    assert layer.geometry is not None
    return layer.geometry.kernel


@dataclass(frozen=True)
class _Place:
    """Where and how is timed."""

    runner: Runner
    provider: str
    threads: int

    def prepare(self, models: Sequence[bytes], feeds: Arrays) -> None:
        self.runner.prepare(models, feeds, self.provider, self.threads)

    @cached_property
    def clock(self) -> float:
        """What reading the clock adds to a node's time in a profile, in seconds.

        On a virtual machine it can be microseconds, as much as a small layer takes, and it is not the same all day.
        From chains of two lengths of next to nothing, each run plainly and profiled, all four in turns.
        """
        self.prepare([_chain(length) for length in _CHAINS], {"x": np.zeros((1, 16), np.float32)})
        found = self.runner.profile([0, 1], _CLOCK_ROUNDS)
        noted = np.stack([seconds.sum(axis=1) for seconds in found.seconds], axis=1)
        excess = (noted - found.plain)[_WARM_UP:]
        return max(0.0, float(np.median(excess[:, 1] - excess[:, 0])) / (_CHAINS[1] - _CHAINS[0]))


def _chain(length: int) -> bytes:
    """So many nodes of next to nothing."""
    x = ir.Value(name="x", shape=ir.Shape((1, 16)), type=ir.TensorType(ir.DataType.FLOAT))
    nodes: list[ir.Node] = []
    for _ in range(length):
        nodes.append(ir.node("Sin", [nodes[-1].outputs[0] if nodes else x]))
    y = nodes[-1].outputs[0]
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [y], nodes=nodes, opset_imports={"": 17}, name="chain")
    return bytes(ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString())


@dataclass(frozen=True)
class _Dissected:
    """A network's time and that of its nodes, in running order, as they are without a profile."""

    seconds: float
    nodes: list[NodeTime]


def _dissect(place: _Place, proto: bytes, feeds: Arrays) -> _Dissected:
    """Run it plainly and profiled in turns.

    On a busy machine a run is interrupted at some node: the median of a node is that of a run undisturbed, the
    median of whole runs is not. So a plain run is measured against the profiled one beside it, and their median
    ratio taken times the sum of the nodes' medians.
    """
    clock = place.clock
    place.prepare([proto], feeds)
    once = place.runner.run(1, [1])[0][0]
    rounds = _WARM_UP + max(LEAST_ROUNDS, min(2 * ROUNDS, int(SECONDS / once)))
    found = place.runner.profile([0], rounds)
    plain, noted = found.plain[_WARM_UP:, 0], found.seconds[0][_WARM_UP:]
    medians = np.median(noted, axis=0)
    whole = float(np.median(plain / noted.sum(axis=1)) * medians.sum())
    nodes = [
        dataclasses.replace(node, seconds=max(0.0, float(seconds) - clock))
        for node, seconds in zip(found.nodes[0], medians, strict=True)
    ]
    return _Dissected(whole, nodes)


def _measure_network(
    place: _Place, proto: bytes, graph: ir.Graph, feeds: Arrays, layers: Sequence[Layer]
) -> dict[str, Any]:
    """Time of a run and each layer's part of it."""
    network = _dissect(place, proto, feeds)
    check_ran("the network", network.nodes, place.provider)
    found = layer_milliseconds(graph, network.nodes)
    return {
        "milliseconds": network.seconds * 1e3,
        "shares": {layer.name: found.get(layer.name, 0.0) * 1e-3 / network.seconds for layer in layers},
    }


def _measure_parts(
    place: _Place, layer: Layer, schemes: Sequence[Scheme], step: int
) -> dict[str, list[tuple[Rank, float]]]:
    """Time of the factors over the dense layer's, at the knots of each scheme."""
    wanted = [(scheme, rank) for scheme in schemes for rank in _knots(layer, scheme, step)]
    found: dict[str, list[tuple[Rank, float]]] = {scheme.name: [] for scheme in schemes}
    try:
        parts = _parts(place, layer, wanted)
    except ModelError:
        return {}  # a type that the provider has no kernel for: MACs stand in
    for (scheme, rank), part in zip(wanted, parts, strict=True):
        found[scheme.name].append((rank, part))
    return found


def _parts(place: _Place, layer: Layer, wanted: Sequence[tuple[Scheme, Rank]]) -> list[float]:
    """Time of each pair of factors over the dense layer's.

    Whole probes are timed plainly, in turns: nothing but the layer differs, and no clock is read within. With
    T and T_0 the times of a probe with factors and with the dense layer, which takes a part f of T_0,

        part = 1 - (1 - T / T_0) / f

    Only f needs a profile, and as the layer's share of its network is too, what the clock is off by cancels in
    share (1 - part), which is what a plan adds up.
    """
    if not wanted:
        return []
    feeds, dense = probe_feeds(layer), build_probe(layer)
    probes = [dense, *(build_probe(layer, scheme, rank) for scheme, rank in wanted)]
    place.prepare(probes, feeds)
    timing = measure(place.runner.run, len(probes), ROUNDS, repeats=_REPEATS, limit_seconds=SECONDS)
    alone = _dissect(place, dense, feeds)
    share = sum(node.seconds for node in layer_nodes(alone.nodes)) / alone.seconds
    if not share > 0:
        return [1.0] * len(wanted)  # too small for any clock
    return [max(1e-3, 1 - (1 - 1 / ratio.median) / share) for ratio in timing.ratios[1:]]


def _knots(layer: Layer, scheme: Scheme, step: int) -> list[Rank]:
    """Ranks to time: multiples of the step from one step to where the scheme stops to pay."""
    geometry = layer.geometry
    assert geometry is not None
    step //= math.gcd(step, geometry.groups)
    modes = []
    for size in scheme.full_rank(geometry):
        count = max(1, size // step)
        knots = KNOTS if len(scheme.full_rank(geometry)) == 1 else 3
        places = np.unique(np.rint(np.geomspace(1, count, 2 * knots))).astype(int)
        modes.append([int(min(size, place * step)) for place in places])
    if len(modes) == 1:
        paying = [(rank,) for rank in modes[0] if scheme.macs(geometry, (rank,)) <= 1.3 * geometry.macs]
        return _spread(paying, KNOTS)
    pairs = [(i, o) for i in modes[0] for o in modes[1] if scheme.macs(geometry, (i, o)) <= 1.3 * geometry.macs]
    return _spread(pairs, 2 * KNOTS)


def _spread(ranks: Sequence[Rank], count: int) -> list[Rank]:
    """So many of them at most, evenly, with both ends."""
    if len(ranks) <= count:
        return list(ranks)
    return [ranks[int(i)] for i in np.unique(np.rint(np.linspace(0, len(ranks) - 1, count)))]


def _measure_step(place: _Place) -> int:
    """Channels that cost the same: 32 or 16 or 8 when fewer in the last block are no faster, else 4."""
    weight = ir.tensor(np.zeros((64, 64, 3, 3), np.float32), name="w")
    w = ir.Value(name="w", const_value=weight, shape=ir.Shape((64, 64, 3, 3)), type=ir.TensorType(ir.DataType.FLOAT))
    x = ir.Value(name="x", shape=ir.Shape((1, 64, 28, 28)), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Conv", [x, w], {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}, name="layer")
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [node.outputs[0]], nodes=[node], initializers=[w], opset_imports={"": 17}, name="step")
    (layer,) = find_layers(ir.Model(graph, ir_version=8))
    spatial = SCHEMES["spatial"]
    by_64, by_48, by_40, by_36 = _parts(place, layer, [(spatial, (r,)) for r in (64, 48, 40, 36)])
    if by_48 / by_64 > _SAME_STEP:
        return 32
    if by_40 / by_48 > _SAME_STEP:
        return 16
    return 8 if by_36 / by_40 > _SAME_STEP else 4
