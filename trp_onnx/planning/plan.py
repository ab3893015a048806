"""The plan: a decision for every layer, the kept ones included, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt

from trp_onnx.layers import Layer
from trp_onnx.planning.options import Evidence, Option, Site
from trp_onnx.schemes import SCHEMES, Rank


@dataclass(frozen=True)
class Decision:
    """What becomes of one layer, and why.

    Attributes:
        name: The layer.
        op: Its operator.
        scheme: The scheme, or None for a layer that is kept.
        rank: Its rank, or None.
        reason: Why it is kept, or what its rank followed from.
        macs_before: Multiply-accumulates of the dense layer; None when unknown.
        macs_after: The same after factorisation.
        parameters_before: Entries of the dense weight; None for a layer without a constant weight.
        parameters_after: The same after factorisation.
        relative_error: `|W - W'| / |W|` in the Frobenius norm, or that of the layer's outputs where moments are
            known; 0 for a kept layer.
        role: "stem", "last" or "".
        time_before: Part of the dense network's time; None without a latency table.
        time_after: The same after factorisation, as the table predicts it.
    """

    name: str
    op: str
    scheme: str | None
    rank: Rank | None
    reason: str
    macs_before: int | None
    macs_after: int | None
    parameters_before: int | None
    parameters_after: int | None
    relative_error: float
    role: str = ""
    time_before: float | None = None
    time_after: float | None = None


@dataclass(frozen=True)
class Plan:
    """Decisions in graph order, and notes on what the plan could not take into account."""

    decisions: tuple[Decision, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def chosen(self) -> dict[str, tuple[str, Rank]]:
        """Scheme and rank of the layers that are factorised, by name."""
        return {d.name: (d.scheme, d.rank) for d in self.decisions if d.scheme and d.rank}

    @property
    def macs_before(self) -> int:
        """Whole-network MACs before, over the layers whose MACs are known."""
        return sum(d.macs_before or 0 for d in self.decisions)

    @property
    def macs_after(self) -> int:
        """Whole-network MACs after, over the same layers."""
        return sum(d.macs_after or 0 for d in self.decisions)

    @property
    def speedup(self) -> float | None:
        """How many times as fast the network becomes, as the latency table predicts; None without one."""
        timed = [(d.time_before, d.time_after) for d in self.decisions if d.time_before is not None]
        saved = sum(before - (after or 0.0) for before, after in timed)
        return 1.0 / (1.0 - saved) if timed else None


def decide(layer: Layer, verdict: tuple[Site, Option, str] | None, evidence: Evidence) -> Decision:
    """The decision on a layer: on one that cannot be factorised, or on one that shares a site, by its verdict."""
    table = evidence.table
    time = None if table is None or layer.reason is not None else table.share(layer)
    if verdict is None or verdict[1].scheme is None:
        reason = layer.reason or (verdict[2] if verdict else "kept")
        return Decision(
            layer.name, layer.op, None, None, reason, layer.macs, layer.macs, layer.parameters, layer.parameters, 0.0,
            layer.role, time, time,
        )  # fmt: skip
    _, option, reason = verdict
    assert layer.geometry is not None and option.scheme is not None
    scheme = SCHEMES[option.scheme]
    after = int(scheme.macs(layer.geometry, option.rank)) if layer.sized else None
    return Decision(
        layer.name, layer.op, option.scheme, option.rank, reason, layer.macs, after, layer.parameters,
        option.parameters, sqrt(option.error), layer.role, time,
        None if table is None or time is None else time * table.part(layer, scheme, option.rank),
    )  # fmt: skip


def notes_on(layers: Sequence[Layer]) -> tuple[str, ...]:
    """What MACs do not say of these layers."""
    notes = []
    unknown = [layer.name for layer in layers if layer.macs is None and layer.geometry is not None]
    if unknown:
        notes.append(
            f"the MACs of {len(unknown)} layers are unknown ('{unknown[0]}', ...): give --input-shape to count them"
        )
    loops = [layer.name for layer in layers if layer.place.startswith("body of")]
    if loops:
        notes.append(
            f"{len(loops)} layers stand in loop bodies ('{loops[0]}', ...): the MACs of one iteration are counted"
        )
    return tuple(notes)
