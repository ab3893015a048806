"""Look at a model before compressing it: its layers, their cost and their spectra, its spaces, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from trp_onnx.calibration.moments import collect_moments
from trp_onnx.calibration.padding import without_padding
from trp_onnx.data import Data, Preprocessing, open_data
from trp_onnx.errors import ModelError
from trp_onnx.graph.in_memory import ModelLike, model_file, shown
from trp_onnx.graph.inputs import Samples, inputs_of
from trp_onnx.graph.layers import Layer, network_macs
from trp_onnx.graph.model import open_model
from trp_onnx.graph.session import feeds_for
from trp_onnx.graph.sizes import sizes_from
from trp_onnx.graph.spaces import Space, find_spaces
from trp_onnx.latency.profiling import known_table
from trp_onnx.latency.table import LatencyTable, read_table
from trp_onnx.lowrank import linalg
from trp_onnx.lowrank.schemes import Scheme, candidates
from trp_onnx.passes.network import Network
from trp_onnx.planning import Evidence, resolve_alignment
from trp_onnx.planning.options import sites_of
from trp_onnx.planning.outlook import Outlook, look_out
from trp_onnx.planning.plan import notes_on
from trp_onnx.printable import printable
from trp_onnx.progress import at_work, track
from trp_onnx.report.tables import ENERGIES
from trp_onnx.report.words import outlook_in_words
from trp_onnx.rows import Headlined, shortened, si
from trp_onnx.schema import Document, path_of

SAMPLES = 64
"""Samples on which outputs of layers are looked at: thousands of patches each."""


@dataclass(frozen=True)
class LayerView:
    """One layer as `inspect` shows it.

    Attributes:
        name: The layer.
        op: Its operator.
        role: "stem", "last" or "".
        kernel: Kernel shape; empty for products.
        channels: (in, out) over all groups; None for a layer without a constant weight.
        groups: Groups of a convolution, or matrices of a batched product.
        macs: Multiply-accumulates, of one iteration in a loop body; None when unknown.
        share: Its part of the network's MACs; None where some of those are unknown.
        parameters: Entries of the weight.
        scheme: The scheme whose spectrum is shown: the one that costs least at 95 % of the energy, of the weight, or
            with data of the layer's outputs.
        full_rank: Rank without loss, under that scheme.
        candidates: Names of all schemes that fit.
        reason: Why the layer cannot be factorised; None when it can.
        place: The subgraph it stands in; "" for the main graph.
        rank_at_energy: Rank that keeps 90, 95 and 99 % of the energy, by "0.90", "0.95" and "0.99".
        pays_at_energy: For each of these, whether it costs less than the dense layer.
    """

    name: str
    op: str
    role: str
    kernel: tuple[int, ...]
    channels: tuple[int, int] | None
    groups: int
    macs: int | None
    share: float | None
    parameters: int | None
    scheme: str | None
    full_rank: int | None
    candidates: tuple[str, ...]
    reason: str | None
    place: str
    rank_at_energy: dict[str, int]
    pays_at_energy: dict[str, bool]


@dataclass(frozen=True)
class SpaceView:
    """One space as `inspect` shows it: units that can be removed from the whole network.

    Attributes:
        name: The space.
        kind: "channels", "hidden" or "head".
        units: How many it has.
        groups: A cut keeps equally many units of each of so many groups.
        producers: Names of the layers that make the units.
        consumers: Names of the layers that read them.
        closed: Why none can be removed; None when some can.
    """

    name: str
    kind: str
    units: int
    groups: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    closed: str | None


@dataclass(frozen=True, repr=False)
class Inspection(Headlined, Document):
    """What `inspect` returns.

    Attributes:
        model: The file, or "a model in memory".
        macs: Multiply-accumulates of one run of the network, over the operators whose MACs are known.
        layers: Every operator that sums products, those that cannot be factorised too.
        notes: What the owner should know.
        unknown: Operators whose MACs are not known.
        spaces: The channels, hidden units and dimensions of heads that can be removed together, and those that cannot.
        verdict: What speed-up is within reach at what expected loss, by which means, in one paragraph.
        outlook: The same as fields; None where not all MACs are known, or no layer can be factorised.
    """

    model: str
    macs: int
    layers: tuple[LayerView, ...]
    notes: tuple[str, ...] = ()
    unknown: int = 0
    spaces: tuple[SpaceView, ...] = ()
    verdict: str = ""
    outlook: Outlook | None = None

    def headline(self) -> list[Sequence[str]]:
        """The layers with the most MACs."""
        heaviest = sorted(self.layers, key=lambda view: -(view.macs or 0))
        rows = [
            (printable(view.name), si(view.macs), f"{view.share or 0:.1%}", str(view.rank_at_energy.get("0.95", "-")))
            for view in heaviest
        ]
        return [("layer", f"{si(self.macs)} MACs", "share", "rank of 95 % of the energy"), *shortened(rows)]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        document = super().to_dict()
        return document | {"macs_unknown_nodes": document.pop("unknown")}


def inspect(
    model: ModelLike,
    *,
    data: Data | None = None,
    preprocessing: Preprocessing | None = None,
    latency_table: LatencyTable | str | PathLike[str] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Data | None = None,
    simplify: bool = True,
) -> Inspection:
    """List the layers of a network with their cost, spectra and schemes, and say what compression would bring.

    The layers are those of the normalised model: their names are what the per-layer map goes by.

    Args:
        model: A file, its bytes, an `onnx.ModelProto` or an `onnx_ir.Model`.
        data: Samples, whatever `open_data` takes: spectra are those of the layers' outputs on them.
        preprocessing: How they become inputs.
        latency_table: What `profile` measured, or its file; what the cache holds of this network otherwise.
        input_shapes: Shapes for inputs with dynamic sizes, by name.
        inputs: Samples whose sizes count, whatever `open_data` takes.
        simplify: Whether to run onnx-simplifier first, as `compress` does.

    Raises:
        ModelError: The model cannot be read, or a weight holds NaN or infinity; with data also: it cannot be run.
        DataError: The data, the inputs or the latency table cannot be read.
        UsageError: Sizes contradict `input_shapes`, or the table is of another network.
    """
    with at_work() as heard, model_file(model) as (source, _):
        samples = None if data is None else _samples(source, data, preprocessing)
        if samples is None or inputs is not None:
            network = Network.open(source, input_shapes, inputs, simplify=simplify)
        else:
            original = open_model(source)
            sizes = sizes_from(original, samples.longest.feeds, input_shapes)
            network = Network.of(source, original, sizes, simplify=simplify)
        layers = network.layers
        evidence = _evidence(network, samples, latency_table)
        total = network_macs((layer, layer.macs) for layer in layers)
        unknown = sum(layer.macs is None for layer in layers)
        spectra = {}
        for group in track(sites_of(layers), "spectra"):
            spectra.update(dict.fromkeys((layer.name for layer in group), _spectrum(group, evidence)))
        views = tuple(_view(layer, 0 if unknown else total, spectra.get(layer.name)) for layer in layers)
        spaces = tuple(map(_space, find_spaces(network.normal, layers, network.input_shapes, network.shapes)))
        align = resolve_alignment("auto") if evidence.table is None else evidence.table.step
        outlook = look_out(layers, evidence, align, sum(space.closed is None for space in spaces))
        return Inspection(
            shown(model), total, views, (*heard, *notes_on(layers)), unknown, spaces, outlook_in_words(outlook), outlook
        )


def _samples(source: Path, data: Data, preprocessing: Preprocessing | None) -> Samples:
    """Some of them, as the model takes them."""
    known = inputs_of(open_model(source))
    dataset = open_data(data, preprocessing).bound(known)
    return Samples(known, dataset.take(np.random.default_rng(0).permutation(len(dataset))[:SAMPLES]))


def _evidence(network: Network, samples: Samples | None, given: LatencyTable | str | PathLike[str] | None) -> Evidence:
    """What is known beyond the weights: the times that are given, or else in the cache, and moments of the samples."""
    layers = network.layers
    if given is None:
        table = None
        with suppress(ModelError):  # it needs no runtime to be looked at
            table = known_table(network.normal, layers, lambda: feeds_for(network.normal, network.input_shapes))
    else:
        table = given if isinstance(given, LatencyTable) else read_table(path_of(given, "latency_table"))
        table.check(layers)
    if samples is None:
        return Evidence(table=table)
    seen = without_padding(network.normal, samples)
    moments = collect_moments(network.normal, layers, seen, progress=lambda runs: track(runs, "moments"))
    return Evidence(moments, table=table)


def _space(space: Space) -> SpaceView:
    return SpaceView(
        space.name, space.kind, space.size, space.groups, tuple(layer.name for layer in space.producers),
        tuple(dict.fromkeys(consumer.layer.name for consumer in space.consumers)), space.closed,
    )  # fmt: skip


_Spectrum = tuple[str, int, dict[str, int], dict[str, bool], tuple[str, ...]]


def _spectrum(group: tuple[Layer, ...], evidence: Evidence) -> _Spectrum:
    """Of the pair that costs least at 95 % of the energy."""
    owner = group[0]
    geometry = owner.geometry
    assert geometry is not None
    fitting = candidates("auto", geometry.kernel)
    pairs = [scheme for scheme in fitting if len(scheme.full_rank(geometry)) == 1]
    tails = evidence.errors(owner, pairs)

    def cost(scheme: Scheme) -> int:
        return int(scheme.macs(geometry, (linalg.rank_within(tails[scheme.name], 0.05),)))

    scheme = min(pairs, key=cost)
    tail = tails[scheme.name]
    ranks = {f"{energy:.2f}": linalg.rank_within(tail, 1 - energy) for energy in ENERGIES}
    pays = {energy: int(scheme.macs(geometry, (rank,))) < geometry.macs for energy, rank in ranks.items()}
    return scheme.name, len(tail) - 1, ranks, pays, tuple(s.name for s in fitting)


def _view(layer: Layer, total: int, spectrum: _Spectrum | None) -> LayerView:
    geometry = layer.geometry
    scheme, full, ranks, pays, names = spectrum or (None, None, {}, {}, ())
    return LayerView(
        name=layer.name,
        op=layer.op,
        role=layer.role,
        kernel=geometry.kernel if geometry else (),
        channels=(geometry.groups * geometry.in_channels, geometry.groups * geometry.out_channels)
        if geometry
        else None,
        groups=geometry.groups if geometry else 1,
        macs=layer.macs,
        share=layer.times * layer.macs / total if layer.macs is not None and total else None,
        parameters=layer.parameters,
        scheme=scheme,
        full_rank=full,
        candidates=names,
        reason=layer.reason,
        place=layer.place,
        rank_at_energy=ranks,
        pays_at_energy=pays,
    )
