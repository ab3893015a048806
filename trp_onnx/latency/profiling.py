"""Measure a latency table: the network's own profile for the shares, small graphs for the parts.

What was timed is kept in the user's cache, by machine, runtime, provider, threads and geometry, after every
geometry: a second network with the same layers, or the same command after a stop, measures only what is new.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from trp_onnx.data import Data
from trp_onnx.errors import ModelError
from trp_onnx.files.cache import Cache
from trp_onnx.graph.in_memory import ModelLike, model_file
from trp_onnx.graph.layers import Layer, find_layers
from trp_onnx.graph.lent import take_out
from trp_onnx.graph.model import to_proto, write_model
from trp_onnx.graph.session import Arrays
from trp_onnx.graph.spaces import Space, find_spaces
from trp_onnx.job.device import Precision
from trp_onnx.latency.benchmark import check_ran, layer_milliseconds
from trp_onnx.latency.entry import NOTHING, Entry, allowed_doubt
from trp_onnx.latency.int8 import in_precision
from trp_onnx.latency.parts import STEADY, Place, dissect, time_cuts, time_parts
from trp_onnx.latency.probe import signature
from trp_onnx.latency.table import NETWORK, LatencyTable, Target, target_of
from trp_onnx.latency.width import Way, Width, rank_of, width_of
from trp_onnx.lowrank.schemes import SCHEMES, Geometry, Rank, Scheme, candidates
from trp_onnx.passes.network import Network
from trp_onnx.progress import at_work, track
from trp_onnx.runners import Runner, open_runner
from trp_onnx.runners.open import TIMEOUT
from trp_onnx.schema import Count, held, plain

if TYPE_CHECKING:
    import onnx

KNOTS = 3
"""Ranks at which a pair is timed, and its full rank; Tucker-2 at twice as many pairs of ranks."""

CUTS = ((2, 4), (4, 2), (2, 2), (3, 3), (1, 1), (3, 4), (4, 3))
"""Quarters of inputs and outputs with which a layer is timed, and whole."""

_METHOD = 7
"""Raised when what is measured changes: older measurements in the cache are then left alone."""

_SAME_STEP = 0.92
"""Times whose ratio is above this belong to one step; without steps 24 channels take 0.78 of what 32 do."""


def profile(
    model: ModelLike,
    *,
    scheme: str = "auto",
    provider: str = "cpu",
    threads: int = 1,
    runtime: str = "local",
    timeout: float = TIMEOUT,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Data | None = None,
    simplify: bool = True,
    precision: Precision = "float",
) -> LatencyTable:
    """Measure the latency table of a network; `Device(latency_table=...)` has `compress` plan by it, here or elsewhere.

    Args:
        model: A file, its bytes, an `onnx.ModelProto` or an `onnx_ir.Model`.
        scheme: Which schemes to time: a name or "auto".
        provider: A name of `PROVIDERS`.
        threads: Intra-op threads.
        runtime: "local", "python:PATH", "node", "web" or "ssh:HOST[:PYTHON]".
        timeout: Seconds without a sign of life after which another runtime is given up.
        input_shapes: Sizes of dynamic inputs; a symbolic batch is 1.
        inputs: What to run on, whatever `open_data` takes; generated otherwise.
        simplify: Whether to run onnx-simplifier first, as `compress` does.
        precision: "int8" to time what `quantize` makes of the network, "int8-signed" what it makes for arm.

    Raises:
        UsageError: The provider is not there, or the runtime cannot tell the time of single nodes.
        ModelError: The model cannot be read or run.
        DataError: The inputs cannot be read.
        RunnerError: The runtime is not there, died or did not answer.
    """
    threads, timeout = held(threads, Count, "threads"), held(timeout, float, "timeout")
    precision = held(precision, Precision, "precision")
    with at_work() as heard, model_file(model) as (source, _):
        network = Network.open(source, input_shapes, inputs, simplify=simplify)
        with open_runner(runtime, timeout) as runner:
            spaces = find_spaces(network.normal, network.layers, network.input_shapes, network.shapes)
            table = measure_table(
                network.normal, network.layers, network.feeds(), widths=at_spaces(spaces),
                scheme=scheme, provider=provider, threads=threads, runner=runner, precision=precision,
            )  # fmt: skip
        return replace(table, remarks=tuple(heard))


def at_spaces(spaces: Iterable[Space]) -> list[Layer]:
    """The layers that get fewer channels where open spaces are cut."""
    found: dict[str, Layer] = {}
    for space in spaces:
        if space.closed is None:
            within = (layer for layer in space.within if isinstance(layer, Layer))
            for layer in (*space.producers, *within, *(consumer.layer for consumer in space.consumers)):
                found[layer.name] = layer
    return list(found.values())


def measure_table(
    model: ir.Model,
    layers: Sequence[Layer],
    feeds: Arrays,
    *,
    scheme: str = "auto",
    provider: str = "cpu",
    threads: int = 1,
    runner: Runner | None = None,
    widths: Sequence[Layer] = (),
    precision: Precision = "float",
) -> LatencyTable:
    """Time a network's layers, dense, at several ranks of each scheme, and with fewer channels.

    Args:
        model: Normalised; not changed.
        layers: Its layers.
        feeds: What it runs on.
        scheme: Which schemes to time: a name or "auto".
        provider: A name of `PROVIDERS`.
        threads: Intra-op threads.
        runner: Where; in this process otherwise.
        widths: The layers to time with fewer channels as well.
        precision: In what the network is to run.

    Raises:
        UsageError: The provider is not there, or the runtime cannot tell the time of single nodes.
        ModelError: The network does not run, or the provider took none of it.
        RunnerError: The runtime died or did not answer.
    """
    runner = runner or open_runner()
    target = target_of(runner, provider, threads, precision)
    place = Place(runner, target)
    store = Cache("latency", f"{_METHOD} {target}")
    free = [layer for layer in layers if layer.reason is None]
    step = store.get("step")
    if not isinstance(step, int):
        step = _measure_step(place)
        store.put("step", step)
    network = _network(place, store, model, feeds, free)
    table = _bare(target, step, network, free)
    wanted = _wanted(table, free, scheme)
    for key, layer in {table.signatures[layer.name]: layer for layer in widths if layer.reason is None}.items():
        way = width_of(_geometry(layer))
        wanted[key] += [(way, rank) for rank in _cuts(layer, way, step)]
    return _timed(place, store, table, free, wanted, renew=True)


def known_table(
    model: ir.Model, layers: Sequence[Layer], feeds: Callable[[], Arrays], threads: int = 1
) -> LatencyTable | None:
    """What the cache holds of this network on this machine; None where anything would have to be timed.

    Args:
        model: Normalised; not changed.
        layers: Its layers.
        feeds: Makes what it runs on; not called where nothing was ever timed here.
        threads: Intra-op threads.
    """
    target = target_of(open_runner(), "cpu", threads)
    store = Cache("latency", f"{_METHOD} {target}")
    free = [layer for layer in layers if layer.reason is None]
    step = store.get("step")
    if not free or not isinstance(step, int):
        return None
    network = store.get(_mark(*take_out(to_proto(model, apart=True)), feeds()))
    if not _is_of(network, free):
        return None
    table = _bare(target, step, network, free)
    wanted = _wanted(table, free, "auto")
    entries = {key: Entry.read(store.get(key)) or NOTHING for key in wanted}
    if any(not entries[key].has(*point) for key, points in wanted.items() for point in points):
        return None
    return table.with_entries(entries)


def _bare(target: Target, step: int, network: Mapping[str, Any], layers: Sequence[Layer]) -> LatencyTable:
    """A table that knows what part of the network's time each layer takes, and nothing of their factors."""
    signatures = {layer.name: signature(layer) for layer in layers}
    return LatencyTable(
        target, step, network["milliseconds"], signatures, network["shares"], {}, others=network["others"],
        doubts={NETWORK: network["doubt"]},
    )  # fmt: skip


def _wanted(table: LatencyTable, layers: Sequence[Layer], scheme: str) -> dict[str, list[tuple[Way, Rank]]]:
    """The ranks to time of each geometry."""
    owners = {table.signatures[layer.name]: layer for layer in reversed(layers)}
    return {
        key: [(s, rank) for s in candidates(scheme, _geometry(layer).kernel) for rank in _knots(layer, s, table.step)]
        for key, layer in owners.items()
    }


def measure_points(
    table: LatencyTable,
    layers: Sequence[Layer],
    chosen: Mapping[str, tuple[str, Rank]],
    runner: Runner | None = None,
    widths: Mapping[str, tuple[int, int]] | None = None,
) -> LatencyTable:
    """Time single points of a table that are interpolated so far; the same table where it is another machine's.

    Args:
        table: From `measure_table`.
        layers: Of its network.
        chosen: Scheme and rank by layer name.
        runner: Where; in this process otherwise.
        widths: The inputs and outputs that are left of layers, by name, see `LatencyTable.width_part`.

    Raises:
        RunnerError: The runtime died or did not answer.
    """
    target = table.target
    place = Place(runner or open_runner(), target)
    if not target.is_here(place.runner):
        return table
    wanted: dict[str, list[tuple[Way, Rank]]] = {}
    for layer, way, rank in _points(layers, chosen, widths or {}):
        point = (way, table.blocks(layer, way, rank))
        points = wanted.setdefault(table.signatures[layer.name], [])
        if point not in points and not table.knows(layer, *point):
            points.append(point)
    if not any(wanted.values()):
        return table
    store = Cache("latency", f"{_METHOD} {target}")
    return _timed(place, store, table, layers, wanted, renew=False)


def _points(
    layers: Sequence[Layer], chosen: Mapping[str, tuple[str, Rank]], widths: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[Layer, Way, Rank]]:
    for layer in layers:
        if layer.name in chosen:
            name, rank = chosen[layer.name]
            yield layer, SCHEMES[name], rank
        if layer.name in widths:
            geometry = _geometry(layer)
            yield layer, width_of(geometry), rank_of(geometry, *widths[layer.name])


def _timed(
    place: Place,
    store: Cache,
    table: LatencyTable,
    layers: Sequence[Layer],
    wanted: Mapping[str, Sequence[tuple[Way, Rank]]],
    *,
    renew: bool,
) -> LatencyTable:
    """The table with these points of its geometries, timed where the cache does not have them.

    With `renew` geometries of which the cache is in doubt are timed again.
    """
    owners: dict[str, Layer] = {}
    share: dict[str, float] = {}
    for layer in layers:
        key = table.signatures.get(layer.name, "")
        owners.setdefault(key, layer)
        share[key] = share.get(key, 0.0) + table.share(layer)
    entries = {}
    for key in track([key for key, points in wanted.items() if points], "timing layers"):
        entry = _entry(place, store, key, owners[key], wanted[key], allowed_doubt(share[key]), renew)
        entries[key] = entry.only({*table.parts.get(key, {}), *(way.name for way, _ in wanted[key])})
    return table.with_entries(entries)


def _entry(
    place: Place,
    store: Cache,
    key: str,
    layer: Layer,
    wanted: Sequence[tuple[Way, Rank]],
    allowed: float,
    renew: bool,
) -> Entry:
    """What is known of a geometry, these points included."""
    known = Entry.read(store.get(key)) or NOTHING
    missing = [point for point in wanted if not known.has(*point)]
    if renew and known.doubt > allowed:
        missing, known = [*known.points(), *missing], NOTHING
    if not missing:
        return known
    factors = [(way, rank) for way, rank in missing if not isinstance(way, Width)]
    cuts = [(way, rank) for way, rank in missing if isinstance(way, Width)]
    try:
        if factors:
            known = known.with_parts(factors, time_parts(place, layer, factors, allowed=allowed, inside=known.inside))
        if cuts:
            known = known.with_parts(cuts, time_cuts(place, layer, cuts, allowed=allowed))
    except ModelError:
        return NOTHING  # a type that the provider has no kernel for: MACs stand in
    store.put(key, plain(known))
    return known


def _geometry(layer: Layer) -> Geometry:
    assert layer.geometry is not None
    return layer.geometry


def _mark(described: onnx.ModelProto, weights: Mapping[str, np.ndarray], feeds: Arrays) -> str:
    """The key of a network that runs on inputs of these sizes."""
    digest = hashlib.sha256(described.SerializeToString())
    for weight in weights.values():
        digest.update(weight.data)
    shape = json.dumps({name: list(np.shape(array)) for name, array in feeds.items()}, sort_keys=True)
    return f"network {digest.hexdigest()} {shape}"


def _is_of(network: Any, layers: Sequence[Layer]) -> bool:
    """Whether an entry of the cache is there, and of a network with these layers."""
    fields = {"milliseconds", "shares", "others", "doubt"}
    return (
        isinstance(network, dict)
        and network.keys() >= fields
        and network["shares"].keys() == {layer.name for layer in layers}
    )


def _network(place: Place, store: Cache, model: ir.Model, feeds: Arrays, layers: Sequence[Layer]) -> dict[str, Any]:
    """Time of a run in milliseconds, and the part of it of each layer and of each other node."""
    described, weights = take_out(to_proto(model, apart=True))
    mark = _mark(described, weights, feeds)
    known: dict[str, Any] = store.get(mark)
    if _is_of(known, layers) and known["doubt"] <= STEADY:
        return known
    with TemporaryDirectory(prefix="trp-onnx-") as folder:  # for weights that stand in the protobuf as inputs
        path, runs = Path(folder) / "model.onnx", in_precision(model, place.target.precision, feeds)
        if weights:
            write_model(runs, path)
        network = dissect(place, path if weights else to_proto(runs).SerializeToString(), feeds)
    check_ran("the network", network.nodes, place.target.provider)
    found = layer_milliseconds(model.graph, network.nodes)
    whole = max(network.seconds * 1e3, sum(found.values()))  # noise must not make the parts more than the whole
    shares = {layer.name: found.pop(layer.name, 0.0) / whole for layer in layers}
    names = {node.name or node.outputs[0].name for node in model.graph if node.outputs}
    others = {name: milliseconds / whole for name, milliseconds in found.items() if name in names}
    known = {"milliseconds": network.seconds * 1e3, "shares": shares, "others": others, "doubt": network.doubt}
    store.put(mark, known)
    return known


def _knots(layer: Layer, scheme: Scheme, step: int) -> list[Rank]:
    """Ranks to time: multiples of the step from one step to where the scheme stops to pay, and the full rank."""
    geometry = layer.geometry
    assert geometry is not None
    step = scheme.step(geometry, step)
    full = scheme.full_rank(geometry)
    count = KNOTS if len(full) == 1 else 2 * KNOTS
    modes = []
    for size in full:
        places = np.unique(np.rint(np.geomspace(1, max(1, size // step), 2 * KNOTS))).astype(int)
        modes.append([int(min(size, place * step)) for place in places])
    paying = [rank for rank in itertools.product(*modes) if scheme.macs(geometry, rank) < geometry.macs]
    return [*_spread([rank for rank in paying if rank != full], count), full] if paying else []


def _cuts(layer: Layer, way: Width, step: int) -> list[Rank]:
    """Widths to time, in steps, and the full one."""
    geometry = _geometry(layer)
    step, full = way.step(geometry, step), way.full_rank(geometry)
    modes = [[min(size, max(step, round(size * part / 4 / step) * step)) for part in range(5)] for size in full]
    found = [tuple(mode[part] for mode, part in zip(modes, parts, strict=False)) for parts in CUTS]
    return [*(rank for rank in dict.fromkeys(found) if rank != full), full]


def _spread(ranks: Sequence[Rank], count: int) -> list[Rank]:
    """So many of them at most, evenly, with both ends."""
    if len(ranks) <= count:
        return list(ranks)
    return [ranks[int(i)] for i in np.unique(np.rint(np.linspace(0, len(ranks) - 1, count)))]


def _measure_step(place: Place) -> int:
    """Channels that cost the same: 32 or 16 or 8 when fewer in the last block are no faster, else 4."""
    w = ir.tape.Tape().initializer(ir.tensor(np.zeros((64, 64, 3, 3), np.float32), name="w"))
    x = ir.val("x", ir.DataType.FLOAT, (1, 64, 28, 28))
    node = ir.node("Conv", [x, w], {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}, name="layer")
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [node.outputs[0]], nodes=[node], initializers=[w], opset_imports={"": 17}, name="step")
    (layer,) = find_layers(ir.Model(graph, ir_version=8))
    spatial = SCHEMES["spatial"]
    ranks = [(spatial, (rank,)) for rank in (64, 48, 40, 36)]
    by_64, by_48, by_40, by_36 = time_parts(place, layer, ranks).parts
    if by_48 / by_64 > _SAME_STEP:
        return 32
    if by_40 / by_48 > _SAME_STEP:
        return 16
    return 8 if by_36 / by_40 > _SAME_STEP else 4
