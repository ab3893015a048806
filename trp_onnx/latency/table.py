"""The latency table of one network: what each layer takes, and what its factors would.

    time(plan) = 1 - sum_l share_l (1 - part_l(scheme_l, rank_l))

as part of the dense network's time. `share_l` is the layer's part of the network's time; `part_l` the time of its
factors over that of the dense layer, both measured in the same small graph (see `probe`), so that the product holds
although the machine drifts.

Parts are measured at a few ranks and interpolated. Within a step, the block in which the kernels compute channels,
every rank costs what the whole step does: ranks are rounded up to it first. For Tucker-2 the time is bilinear in its
two ranks, `a + b r_in + c r_out + d r_in r_out`, fitted to what was measured.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trp_onnx.documents import read_json
from trp_onnx.errors import DataError, UsageError
from trp_onnx.latency.probe import signature
from trp_onnx.layers import Layer
from trp_onnx.model import write_text
from trp_onnx.runners import Runner
from trp_onnx.schemes import SCHEMES, Rank, Scheme

FORMAT = "trp-onnx latency table 1"


@dataclass(frozen=True)
class Target:
    """On what a table was measured.

    Attributes:
        machine: The processor.
        runtime: onnxruntime's version, with its name where it is not the one for Python.
        provider: The execution provider.
        threads: Intra-op threads.
    """

    machine: str
    runtime: str
    provider: str
    threads: int

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        runtime = self.runtime if " " in self.runtime else f"onnxruntime {self.runtime}"
        return f"{self.machine}, {runtime}, {self.provider}, {threads}"


def target_of(runner: Runner, provider: str, threads: int) -> Target:
    """The machine and the runtime that a runner runs on."""
    here = runner.describe()
    return Target(here.machine, here.runtime, provider, threads)


@dataclass(frozen=True)
class LatencyTable:
    """Times of one network on one target.

    Attributes:
        target: On what they were measured.
        step: Channels in one step of the kernels' time.
        milliseconds: One run of the dense network; drifts with the machine, for orientation.
        signatures: Geometry of each layer, by its name.
        shares: Part of the network's time that each layer takes, by its name.
        parts: For each geometry and scheme the ranks that were timed and their time over the dense layer's.
    """

    target: Target
    step: int
    milliseconds: float
    signatures: dict[str, str]
    shares: dict[str, float]
    parts: dict[str, dict[str, list[tuple[Rank, float]]]]

    def share(self, layer: Layer) -> float:
        """Part of the dense network's time that a layer takes."""
        return self.shares.get(layer.name, 0.0)

    def part(self, layer: Layer, scheme: Scheme, rank: Rank) -> float:
        """Time of a layer's factors over that of the dense layer."""
        assert layer.geometry is not None
        step = self.step // math.gcd(self.step, layer.geometry.groups)
        full = scheme.full_rank(layer.geometry)
        blocks = tuple(min(max(f, 1), math.ceil(r / step) * step) for r, f in zip(rank, full, strict=True))
        curve = self._curves.get((self.signatures[layer.name], scheme.name))
        if curve is None:
            return float(scheme.macs(layer.geometry, blocks)) / max(1, layer.geometry.macs)
        return curve(blocks)

    def fastest(self, layers: Sequence[Layer]) -> float:
        """The speed-up with every layer at the fastest ranks that were timed, or as it is: no plan does better."""
        saved = 0.0
        for layer in layers:
            timed = self.parts.get(self.signatures.get(layer.name, ""), {}).values()
            saved += self.share(layer) * (1.0 - min((1.0, *(part for knots in timed for _, part in knots))))
        return 1.0 / (1.0 - saved)

    @cached_property
    def _curves(self) -> dict[tuple[str, str], _Curve]:
        return {(key, name): _Curve(knots) for key, by in self.parts.items() for name, knots in by.items() if knots}

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
        return {"format": FORMAT} | dataclasses.asdict(self)


class _Curve:
    """Interpolated between the ranks that were timed, and on along the last two."""

    def __init__(self, knots: Sequence[tuple[Rank, float]]) -> None:
        self._ranks = np.array([rank for rank, _ in knots], dtype=np.float64)
        self._parts = np.array([part for _, part in knots])
        self._fit: np.ndarray | None = None
        if self._ranks.shape[1] == 2:
            rows = _bilinear(self._ranks) / self._parts[:, None]  # relative errors count
            self._fit = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0]

    def __call__(self, rank: Rank) -> float:
        if self._fit is not None:
            return max(0.0, float((_bilinear(np.array([rank], dtype=np.float64)) @ self._fit)[0]))
        at, ranks, parts = float(rank[0]), self._ranks[:, 0], self._parts
        if len(ranks) > 1 and not ranks[0] <= at <= ranks[-1]:
            i, j = (0, 1) if at < ranks[0] else (-2, -1)
            slope = (parts[j] - parts[i]) / (ranks[j] - ranks[i])
            return max(0.0, float(parts[i] + slope * (at - ranks[i])))
        return float(np.interp(at, ranks, parts))


def _bilinear(ranks: np.ndarray) -> np.ndarray:
    one = np.ones(len(ranks))
    return np.stack([one, ranks[:, 0], ranks[:, 1], ranks[:, 0] * ranks[:, 1]], axis=1)


def save_table(table: LatencyTable, path: Path) -> None:
    """Write a table as JSON.

    Raises:
        OutputError: It cannot be written.
    """
    write_text(path, json.dumps(table.to_dict(), indent=1) + "\n")


def read_table(path: Path) -> LatencyTable:
    """Read a table.

    Raises:
        DataError: Not there, not a latency table, of another version, or damaged.
    """
    document = read_json(path, "the latency table", DataError)
    found = document.pop("format", None) if isinstance(document, dict) else None
    if found != FORMAT:
        what = f"its format is '{found}', not '{FORMAT}'" if found else "it does not say its format"
        raise DataError(f"'{path}' is no latency table that this version reads: {what}")
    try:
        return _from_document(document)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"the latency table '{path}' is damaged ({error}): measure it again") from error


def _from_document(document: Mapping[str, Any]) -> LatencyTable:
    parts: dict[str, dict[str, list[tuple[Rank, float]]]] = {}
    for key, by in document["parts"].items():
        parts[key] = {name: [(_rank(rank, name), _time(part)) for rank, part in knots] for name, knots in by.items()}
    target = document["target"]
    step = document["step"]
    if not isinstance(step, int) or step < 1:
        raise ValueError(f"step is {step!r}")
    table = LatencyTable(
        Target(str(target["machine"]), str(target["runtime"]), str(target["provider"]), int(target["threads"])),
        step,
        _time(document["milliseconds"]),
        {str(name): str(text) for name, text in document["signatures"].items()},
        {str(name): float(share) for name, share in document["shares"].items()},
        parts,
    )
    total = sum(table.shares.values())
    if not all(0 <= share <= 1 for share in table.shares.values()) or not total <= 1 + 1e-6:
        raise ValueError(f"shares add up to {total:.3f}")
    return table


def _rank(rank: Any, scheme: str) -> Rank:
    found = tuple(rank)
    if scheme not in SCHEMES or len(found) != len(SCHEMES[scheme].parts) - 1:
        raise ValueError(f"scheme {scheme!r} at rank {rank!r}")
    if not all(isinstance(r, int) and r >= 1 for r in found):
        raise ValueError(f"rank {rank!r}")
    return found


def _time(value: Any) -> float:
    time = float(value)
    if not (0 < time < math.inf):
        raise ValueError(f"a time of {value!r}")
    return time
