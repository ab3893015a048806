"""Measure a latency table: the network's own profile for the shares, small graphs for the parts.

What was timed is kept in the user's cache, by machine, runtime, provider, threads and geometry, after every
geometry: a second network with the same layers, or the same command after a stop, measures only what is new.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from trp_onnx.cache import Cache
from trp_onnx.errors import ModelError
from trp_onnx.latency.benchmark import layer_milliseconds
from trp_onnx.latency.probe import build_probe, layer_nodes, probe_feeds, signature
from trp_onnx.latency.sessions import NodeTime, Profiled, bound_call, open_timed
from trp_onnx.latency.table import LatencyTable, Target
from trp_onnx.layers import Layer, find_layers
from trp_onnx.model import open_model, to_proto
from trp_onnx.progress import track
from trp_onnx.runtime import Arrays, feeds_for
from trp_onnx.schemes import SCHEMES, Rank, Scheme, candidates

KNOTS = 4
"""Ranks at which a pair is timed; Tucker-2 at half as many squared."""

ROUNDS, SECONDS = 30, 1.5
"""A geometry is timed in so many interleaved rounds, or in about so many seconds, but in 8 at least."""

_LEAST_ROUNDS = 8
_CHAINS = (50, 150)
_SAME_STEP = 0.92
"""Times whose ratio is above this belong to one step; without steps 24 channels take 0.78 of what 32 do."""


def profile(
    model: str | PathLike[str],
    *,
    scheme: str = "auto",
    provider: str = "cpu",
    threads: int = 1,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    simplify: bool = True,
) -> LatencyTable:
    """Measure the latency table of an ONNX file; `compress(latency_table=...)` plans by it, here or elsewhere.

    Args:
        model: The file.
        scheme: Which schemes to time: a name or "auto".
        provider: A name of `PROVIDERS`.
        threads: Intra-op threads.
        input_shapes: Sizes of dynamic inputs; a symbolic batch is 1.
        simplify: Whether to run onnx-simplifier first, as `compress` does.

    Raises:
        UsageError: The provider is not there.
        ModelError: The model cannot be read or run.
    """
    from trp_onnx.normalise import normalise

    normal, _ = normalise(open_model(Path(model)), input_shapes, simplify=simplify)
    layers = find_layers(normal, input_shapes)
    return measure_table(
        normal, layers, feeds_for(normal, input_shapes), scheme=scheme, provider=provider, threads=threads
    )


def measure_table(
    model: ir.Model,
    layers: Sequence[Layer],
    feeds: Arrays,
    *,
    scheme: str = "auto",
    provider: str = "cpu",
    threads: int = 1,
) -> LatencyTable:
    """Time a network's layers, dense and at several ranks of each scheme.

    Args:
        model: Normalised; not changed.
        layers: Its layers.
        feeds: What it runs on.
        scheme: Which schemes to time: a name or "auto".
        provider: A name of `PROVIDERS`.
        threads: Intra-op threads.

    Raises:
        UsageError: The provider is not there.
        ModelError: The network does not run.
    """
    target = here(provider, threads)
    store = Cache("latency", str(target))
    free = [layer for layer in layers if layer.reason is None]
    distinct: dict[str, Layer] = {}
    for layer in free:
        distinct.setdefault(signature(layer), layer)
    offsets = store.get("clock")
    clock = _Clock(*offsets) if offsets else _measure_clock(provider, threads)
    store.put("clock", [clock.node, clock.run])
    step = store.get("step")
    if not isinstance(step, int):
        step = _measure_step(clock, provider, threads)
        store.put("step", step)
    for key, layer in track(list(distinct.items()), "timing layers"):
        known = store.get(key) or {}
        missing = [s for s in candidates(scheme, _geometry(layer)) if s.name not in known]
        if missing:
            known |= _measure_parts(layer, missing, step, clock, provider, threads)
            store.put(key, known)
    proto = to_proto(model).SerializeToString()
    shape = json.dumps({name: list(np.shape(array)) for name, array in feeds.items()}, sort_keys=True)
    mark = f"network {hashlib.sha256(proto).hexdigest()} {shape}"
    network = store.get(mark)
    if network is None:
        network = _measure_network(proto, model.graph, feeds, free, clock, provider, threads)
        store.put(mark, network)
    wanted = {s.name for layer in free for s in candidates(scheme, _geometry(layer))}
    parts = {
        key: {name: [(tuple(r), p) for r, p in knots] for name, knots in store.get(key).items() if name in wanted}
        for key in distinct
    }
    return LatencyTable(
        target, step, network["milliseconds"],
        {layer.name: signature(layer) for layer in free}, network["shares"], parts,
    )  # fmt: skip


def here(provider: str, threads: int) -> Target:
    """The machine and the runtime at hand."""
    import onnxruntime as ort

    return Target(machine_name(), ort.__version__, provider, threads)


def machine_name() -> str:
    """The processor at hand."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _geometry(layer: Layer) -> tuple[int, ...]:
    assert layer.geometry is not None
    return layer.geometry.kernel


@dataclass(frozen=True)
class _Clock:
    """What a profile's durations are off by, in seconds.

    Reading the clock adds to every node's duration, and what passes between nodes is in none of them: a node
    really costs its duration less `node`, and a run `run` more than its nodes. On a virtual machine `node` can be
    microseconds, as much as a small layer takes.
    """

    node: float
    run: float

    def seconds(self, nodes: Sequence[NodeTime]) -> float:
        """What nodes really cost."""
        return max(0.0, sum(node.seconds for node in nodes) - self.node * len(nodes))


def _measure_clock(provider: str, threads: int) -> _Clock:
    """From chains of two lengths of next to nothing, each run plainly and profiled in turns."""
    excess = [_excess(length, provider, threads) for length in _CHAINS]
    node = (excess[1] - excess[0]) / (_CHAINS[1] - _CHAINS[0])
    return _Clock(node, max(0.0, node * _CHAINS[0] - excess[0]))


def _excess(length: int, provider: str, threads: int) -> float:
    """By how much a profile of so many nodes exceeds a plain run."""
    x = ir.Value(name="x", shape=ir.Shape((1, 16)), type=ir.TensorType(ir.DataType.FLOAT))
    nodes: list[ir.Node] = []
    for _ in range(length):
        nodes.append(ir.node("Sin", [nodes[-1].outputs[0] if nodes else x]))
    y = nodes[-1].outputs[0]
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [y], nodes=nodes, opset_imports={"": 17}, name="chain")
    proto = bytes(ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString())
    feeds = {"x": np.zeros((1, 16), np.float32)}
    call = bound_call(open_timed(proto, provider, threads), feeds)
    plain: list[float] = []
    with Profiled(proto, feeds, provider, threads) as profiled:
        for _ in range(3 * ROUNDS):
            start = time.perf_counter()
            call()
            plain.append(time.perf_counter() - start)
            profiled.run()
        runs = profiled.runs()[3:]
    noted = [sum(node.seconds for node in run.nodes) for run in runs]
    return float(np.median(noted) - np.median(plain[3:]))


def _measure_network(
    proto: bytes, graph: ir.Graph, feeds: Arrays, layers: Sequence[Layer], clock: _Clock, provider: str, threads: int
) -> dict[str, Any]:
    """Time of a run and each layer's part of it, put together of the medians of its nodes.

    On a busy machine a run is interrupted at some node: every node's median is that of a run undisturbed, the
    median of whole runs is not.
    """
    with Profiled(proto, feeds, provider, threads) as profiled:
        rounds, began = 0, time.perf_counter()
        while rounds < _LEAST_ROUNDS or (rounds < 2 * ROUNDS and time.perf_counter() - began < 2 * SECONDS):
            profiled.run()
            rounds += 1
        runs = profiled.runs()[3:]  # warm
    seconds = np.median([[node.seconds for node in run.nodes] for run in runs], axis=0) - clock.node
    nodes = [
        dataclasses.replace(node, seconds=max(0.0, float(s))) for node, s in zip(runs[0].nodes, seconds, strict=True)
    ]
    whole = sum(node.seconds for node in nodes) + clock.run
    found = layer_milliseconds(graph, nodes)
    return {
        "milliseconds": whole * 1e3,
        "shares": {layer.name: found.get(layer.name, 0.0) * 1e-3 / whole for layer in layers},
    }


def _measure_parts(
    layer: Layer, schemes: Sequence[Scheme], step: int, clock: _Clock, provider: str, threads: int
) -> dict[str, list[tuple[Rank, float]]]:
    """Time of the factors over the dense layer's, at the knots of each scheme."""
    wanted = [(scheme, rank) for scheme in schemes for rank in _knots(layer, scheme, step)]
    found: dict[str, list[tuple[Rank, float]]] = {scheme.name: [] for scheme in schemes}
    if not wanted:
        return found
    feeds = probe_feeds(layer)
    probes = [build_probe(layer), *(build_probe(layer, scheme, rank) for scheme, rank in wanted)]
    try:
        times = _interleaved(probes, feeds, clock, provider, threads)
    except ModelError:
        return found  # a type that the provider has no kernel for: MACs stand in
    for (scheme, rank), part in zip(wanted, _ratios(times), strict=True):
        found[scheme.name].append((rank, part))
    return found


def _interleaved(
    probes: Sequence[bytes], feeds: Mapping[str, np.ndarray], clock: _Clock, provider: str, threads: int
) -> list[list[float]]:  # fmt: skip
    """Seconds of the layer in each probe, (probes, rounds): turns in an order that flips every round."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(Profiled(probe, feeds, provider, threads)) for probe in probes]
        for session in sessions:
            session.run()
        began, rounds = time.perf_counter(), 0
        while rounds < _LEAST_ROUNDS or (rounds < ROUNDS and time.perf_counter() - began < SECONDS):
            for session in sessions[:: 1 if rounds % 2 else -1]:
                session.run()
            rounds += 1
        return [[clock.seconds(layer_nodes(run.nodes)) for run in session.runs()[2:]] for session in sessions]


def _ratios(times: Sequence[Sequence[float]]) -> list[float]:
    """Time of each over the first: mean of the middle half of the rounds' ratios, finer than the clock's ticks."""
    array = np.array(times)
    ratios = np.sort(array[1:] / np.maximum(array[:1], 1e-9), axis=1)
    quarter = ratios.shape[1] // 4
    return [max(1e-3, float(row[quarter : len(row) - quarter].mean())) for row in ratios]


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


def _measure_step(clock: _Clock, provider: str, threads: int) -> int:
    """Channels that cost the same: 32 or 16 or 8 when fewer in the last block are no faster, else 4."""
    weight = ir.tensor(np.zeros((64, 64, 3, 3), np.float32), name="w")
    w = ir.Value(name="w", const_value=weight, shape=ir.Shape((64, 64, 3, 3)), type=ir.TensorType(ir.DataType.FLOAT))
    x = ir.Value(name="x", shape=ir.Shape((1, 64, 28, 28)), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Conv", [x, w], {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}, name="layer")
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [node.outputs[0]], nodes=[node], initializers=[w], opset_imports={"": 17}, name="step")
    (layer,) = find_layers(ir.Model(graph, ir_version=8))
    ranks = (64, 48, 40, 36)
    times = _interleaved(
        [build_probe(layer, SCHEMES["spatial"], (rank,)) for rank in ranks],
        probe_feeds(layer),
        clock,
        provider,
        threads,
    )
    by_48, by_40, by_36 = _ratios(times)
    if by_48 > _SAME_STEP:
        return 32
    if by_40 / by_48 > _SAME_STEP:
        return 16
    return 8 if by_36 / by_40 > _SAME_STEP else 4
