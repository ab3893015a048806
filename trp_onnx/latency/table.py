"""The latency table of one network: what each layer takes, and what its factors or less of its channels would.

    time(plan) = 1 - sum_l share_l (1 - part_l(scheme_l, rank_l))

as part of the dense network's time. `share_l` is the layer's part of the network's time; `part_l` the time of its
factors over that of the dense layer, both measured in the same small graph (see `probe`), so that the product holds
although the machine drifts.

Parts are measured at a few ranks and interpolated. Within a step, the block in which the kernels compute channels,
every rank costs what the whole step does: ranks are rounded up to it first. For Tucker-2, and for a layer with fewer
inputs and outputs (see `width`), the time is bilinear in the two, `a + b r_in + c r_out + d r_in r_out` with b, c,
d >= 0, fitted to what was measured.

An allocation looks for what is cheap, and finds every error of a table. So no part is believed that kernels cannot do:

    part(r) >= MACs(r) / MACs * v / v_best      v: MACs a second of the dense layer, the best of any in the network or
                                                of a convolution at full speed
    part(r) <= part(s)  wherever  r <= s        in every mode

Where measurements break the second, each becomes the mean of the largest monotone function below and the smallest one
above all of them; a curve goes through what they become and stays between those of smaller and of larger ranks.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from typing import Annotated, Any

import numpy as np
import onnx_ir as ir
from msgspec import Meta

from trp_onnx.errors import DataError, UsageError
from trp_onnx.files.documents import read_json
from trp_onnx.files.paths import guard
from trp_onnx.files.staging import write_text
from trp_onnx.graph.layers import Layer
from trp_onnx.job.device import Precision
from trp_onnx.latency.entry import Entry, allowed_doubt
from trp_onnx.latency.parts import STEADY
from trp_onnx.latency.probe import signature
from trp_onnx.latency.width import WAYS, Way, rank_of, width_of
from trp_onnx.lowrank.schemes import SCHEMES, Rank
from trp_onnx.printable import printable
from trp_onnx.rows import Headlined, shortened
from trp_onnx.runners import Runner
from trp_onnx.schema import Document, brief, converted, path_of

FORMAT = "trp-onnx latency table 1"

NETWORK = "network"
"""The key of the doubt in the shares."""

_LARGEST = float(np.finfo(np.float64).max)
Time = Annotated[float, Meta(gt=0, le=_LARGEST)]
Measured = Annotated[float, Meta(ge=0, le=_LARGEST)]
Part = Annotated[float, Meta(ge=0, le=1)]
Knots = list[tuple[tuple[Annotated[int, Meta(ge=1)], ...], Time]]
"""Ranks, and what their factors take over what the dense layer does."""


@dataclass(frozen=True)
class Target:
    """On what a table was measured.

    Attributes:
        machine: The processor.
        runtime: onnxruntime's version, with its name where it is not the one for Python.
        provider: The execution provider.
        threads: Intra-op threads.
        precision: In what a network runs.
    """

    machine: str
    runtime: str
    provider: str
    threads: int
    precision: Precision = "float"

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        runtime = self.runtime if " " in self.runtime else f"onnxruntime {self.runtime}"
        kernels = () if self.precision == "float" else (self.precision,)
        return ", ".join((self.machine, runtime, self.provider, threads, *kernels))

    def is_here(self, runner: Runner) -> bool:
        """Whether a runner runs on it."""
        return self == target_of(runner, self.provider, self.threads, self.precision)


def target_of(runner: Runner, provider: str, threads: int, precision: Precision = "float") -> Target:
    """The machine and the runtime that a runner runs on."""
    here = runner.describe()
    return Target(here.machine, here.runtime, provider, threads, precision)


@dataclass(frozen=True, repr=False)
class LatencyTable(Headlined, Document):
    """Times of one network on one target.

    Attributes:
        target: On what they were measured.
        step: Channels in one step of the kernels' time.
        milliseconds: One run of the dense network; drifts with the machine, for orientation.
        signatures: Geometry of each layer, by its name.
        shares: Part of the network's time that each layer takes, by its name.
        parts: For each geometry and way (a scheme, "width" or "depthwise", see `width`) the ranks that were timed and
            their time over the dense layer's.
        others: Part of the network's time of the nodes that are no layers, by theirs.
        paces: MACs a second of each geometry's dense layer over those of a convolution at full speed; empty in a table
            of an older version.
        doubts: What the parts of each geometry may be off by, and what the shares may be, together, under "network".
        remarks: What was noted of the network.
    """

    target: Target
    step: Annotated[int, Meta(ge=1)]
    milliseconds: Time
    signatures: dict[str, str]
    shares: dict[str, Part]
    parts: dict[str, dict[str, Knots]]
    others: dict[str, Part] = field(default_factory=dict)
    paces: dict[str, Measured] = field(default_factory=dict)
    doubts: dict[str, Measured] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def headline(self) -> list[Sequence[str]]:
        """The layers that take the most time."""
        slowest = sorted(self.shares.items(), key=lambda pair: -pair[1])
        rows = [(printable(name), f"{share * self.milliseconds:.3f} ms", f"{share:.1%}") for name, share in slowest]
        return [("layer", f"of {self.milliseconds:.2f} ms", "share"), *shortened(rows)]

    def share(self, layer: Layer) -> float:
        """Part of the dense network's time that a layer takes."""
        return self.shares.get(layer.name, 0.0)

    def node_share(self, node: ir.Node) -> float:
        """Part of the dense network's time that a node takes which is no layer."""
        return self.others.get(node.name or node.outputs[0].name or "", 0.0)

    def width_part(self, layer: Layer, inputs: int, outputs: int) -> float:
        """Time of a layer of which so many inputs and outputs are left over that of the dense layer.

        Args:
            layer: The layer.
            inputs: Channels, those of all groups counted together.
            outputs: The same.
        """
        assert layer.geometry is not None
        way, rank = width_of(layer.geometry), rank_of(layer.geometry, inputs, outputs)
        whole = self.blocks(layer, way, rank) == way.full_rank(layer.geometry)
        return 1.0 if whole else min(1.0, self.part(layer, way, rank))

    def part(self, layer: Layer, way: Way, rank: Rank) -> float:
        """Time of what a layer may become over that of the dense layer."""
        blocks, key = self.blocks(layer, way, rank), self.signatures[layer.name]
        known = self._parts.get((key, way.name, blocks))
        if known is not None:
            return known
        assert layer.geometry is not None
        of_macs = float(way.macs(layer.geometry, blocks)) / max(1, layer.geometry.macs)
        curve = self._curves.get((key, way.name))
        found = of_macs if curve is None else max(curve(blocks), of_macs * self.paces.get(key, 0.0) / self._best)
        self._parts[key, way.name, blocks] = found
        return found

    def blocks(self, layer: Layer, way: Way, rank: Rank) -> Rank:
        """The largest rank that takes as long as this one: whole steps of the kernels."""
        assert layer.geometry is not None
        step, full = way.step(layer.geometry, self.step), way.full_rank(layer.geometry)
        return tuple(min(max(f, 1), math.ceil(r / step) * step) for r, f in zip(rank, full, strict=True))

    def knows(self, layer: Layer, way: Way, rank: Rank) -> bool:
        """Whether a rank was timed itself."""
        timed = self.parts.get(self.signatures[layer.name], {}).get(way.name, ())
        return any(known == rank for known, _ in timed)

    def fastest(self, layers: Sequence[Layer]) -> float:
        """The speed-up with every layer at the fastest ranks that were timed, or as it is: no factors do better."""
        saved = 0.0
        for layer in layers:
            timed = self.parts.get(self.signatures.get(layer.name, ""), {})
            pairs = [(SCHEMES[name], rank) for name in timed.keys() & SCHEMES.keys() for rank, _ in timed[name]]
            parts = [self.part(layer, *pair) for pair in pairs]
            saved += self.share(layer) * (1.0 - min((1.0, *parts)))
        return 1.0 / (1.0 - saved)

    def with_entries(self, entries: Mapping[str, Entry]) -> LatencyTable:
        """The table with what was found of some geometries, in place of what it knew of them."""
        found = {key: entry for key, entry in entries.items() if entry.knots}
        return dataclasses.replace(
            self,
            parts=self.parts | {key: entry.knots for key, entry in found.items()},
            paces=self.paces | {key: entry.pace for key, entry in found.items()},
            doubts=self.doubts | {key: entry.doubt for key, entry in found.items()},
        )

    def agrees(self, other: LatencyTable, layers: Sequence[Layer]) -> bool:
        """Whether another table of this network says the same of some layers."""
        keys = {self.signatures[layer.name] for layer in layers}
        return self._best == other._best and all(self.parts.get(key) == other.parts.get(key) for key in keys)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of the network, and of how it was measured."""
        share = dict.fromkeys(self.signatures.values(), 0.0)
        for name, key in self.signatures.items():
            share[key] += self.shares.get(name, 0.0)
        doubtful = [
            doubt for key, doubt in self.doubts.items()
            if key != NETWORK and doubt > allowed_doubt(share.get(key, 0.0))
        ]  # fmt: skip
        notes = [*self.remarks]
        if doubtful:
            notes.append(
                f"the times of {len(doubtful)} of {len(self.parts)} kinds of layers stayed unsteady, however often "
                f"they were taken, and may be off by {max(doubtful):.0%} of a layer: this machine is busy"
            )
        if self.doubts.get(NETWORK, 0.0) > STEADY:
            notes.append(
                f"what part of the network's time each layer takes stayed unsteady, and {self.doubts[NETWORK]:.0%} of "
                "the time may belong to other layers: this machine is busy"
            )
        return tuple(notes)

    @cached_property
    def _curves(self) -> dict[tuple[str, str], _Curve]:
        return {(key, name): _Curve(knots) for key, by in self.parts.items() for name, knots in by.items() if knots}

    @cached_property
    def _best(self) -> float:
        return max([1.0, *self.paces.values()])

    @cached_property
    def _parts(self) -> dict[tuple[str, str, Rank], float]:
        return {}

    def check(self, layers: Sequence[Layer]) -> None:
        """Refuse a table of another network.

        Raises:
            UsageError: A layer is missing from it, or has another geometry there.
        """
        for layer in layers:
            if layer.reason is not None:
                continue
            known = self.signatures.get(layer.name)
            if known is None:
                raise UsageError(
                    f"the latency table was measured for another network: it has no layer '{layer.name}'; measure one "
                    "with trp-onnx profile"
                )
            if known != signature(layer):
                raise UsageError(
                    f"the latency table was measured for another network: its '{layer.name}' is '{known}', here it is "
                    f"'{signature(layer)}'; measure one with trp-onnx profile"
                )

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        return {"format": FORMAT} | super().to_dict()


class _Curve:
    """Monotone, through the ranks that were timed, and on along the last two."""

    def __init__(self, knots: Sequence[tuple[Rank, float]]) -> None:
        knots = sorted(knots)
        self._ranks = np.array([rank for rank, _ in knots], dtype=np.float64)
        parts = np.array([part for _, part in knots])
        # below[i, j]: rank i is no larger than rank j in any mode
        below = np.all(self._ranks[:, None] <= self._ranks[None], axis=2)
        minorant = np.min(np.where(below, parts[None], np.inf), axis=1)
        majorant = np.max(np.where(below.T, parts[None], -np.inf), axis=1)
        self._parts = (minorant + majorant) / 2
        self._fit: np.ndarray | None = None
        if self._ranks.shape[1] == 2:
            self._fit = _bilinear_fit(self._ranks, self._parts)

    def __call__(self, rank: Rank) -> float:
        if self._fit is None:
            return self._along(float(rank[0]))
        at = np.array(rank, dtype=np.float64)
        smaller, larger = np.all(self._ranks <= at, axis=1), np.all(self._ranks >= at, axis=1)
        low = float(self._parts[smaller].max(initial=0.0))
        high = float(self._parts[larger].min(initial=math.inf))
        return min(max(float(_bilinear(at[None])[0] @ self._fit), low), high)

    def _along(self, at: float) -> float:
        ranks, parts = self._ranks[:, 0], self._parts
        if len(ranks) > 1 and not ranks[0] <= at <= ranks[-1]:
            i, j = (0, 1) if at < ranks[0] else (-2, -1)
            slope = (parts[j] - parts[i]) / (ranks[j] - ranks[i])
            return max(0.0, float(parts[i] + slope * (at - ranks[i])))
        return float(np.interp(at, ranks, parts))


def _bilinear(ranks: np.ndarray) -> np.ndarray:
    one = np.ones(len(ranks))
    return np.stack([one, ranks[:, 0], ranks[:, 1], ranks[:, 0] * ranks[:, 1]], axis=1)


def _bilinear_fit(ranks: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Least squares of relative errors; no coefficient is negative, so that it rises with both ranks."""
    from scipy.optimize import nnls

    rows = _bilinear(ranks) / parts[:, None]
    scale = np.abs(rows).max(axis=0)
    found, _ = nnls(rows / scale, np.ones(len(rows)))
    return np.asarray(found / scale)


def save_table(table: LatencyTable, path: str | PathLike[str]) -> None:
    """Write a table as JSON.

    Raises:
        OutputError: It cannot be written.
    """
    guard(writes=[path])
    write_text(path_of(path, "the table's file"), json.dumps(table.to_dict(), indent=1) + "\n")


def read_table(path: str | PathLike[str]) -> LatencyTable:
    """Read a table.

    Raises:
        DataError: Not there, not a latency table, of another version, or damaged.
    """
    document = read_json(path_of(path, "the table's file"), "the latency table", DataError)
    found = document.pop("format", None) if isinstance(document, dict) else None
    if found != FORMAT:
        what = f"its format is '{found}', not '{FORMAT}'" if found else "it does not say its format"
        raise DataError(f"'{path}' is no latency table that this version reads: {what}")
    damaged = f"the latency table '{path}' is damaged, measure it again"
    table = converted(document, LatencyTable, damaged, DataError)
    total = sum(table.shares.values()) + sum(table.others.values())
    if total > 1 + 1e-6:
        raise DataError(f"{damaged}: shares add up to {total:.3f}")
    for scheme, knots in ((scheme, knots) for by in table.parts.values() for scheme, knots in by.items()):
        if scheme not in WAYS:
            raise DataError(f"{damaged}: there is no scheme {brief(scheme)}")
        wrong = next((rank for rank, _ in knots if len(rank) != WAYS[scheme].modes), None)
        if wrong is not None:
            raise DataError(f"{damaged}: scheme {scheme} has no rank {wrong}")
    return table
