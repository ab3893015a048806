"""The plan: a decision for every layer, the kept ones included, each with its reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from os import PathLike

from trp_onnx.errors import UsageError
from trp_onnx.files.staging import write_text
from trp_onnx.graph.layers import Layer, network_macs
from trp_onnx.lowrank.rotation import Rotation
from trp_onnx.lowrank.schemes import Geometry, Rank
from trp_onnx.planning.narrowing import DENSE, layer_macs, layer_time
from trp_onnx.planning.options import Evidence, Option, Site
from trp_onnx.planning.rules import LayerRule, Rule, SpaceRule, plan_to_toml
from trp_onnx.planning.ties import Tie, ties_of
from trp_onnx.planning.widths import Kept, Widths
from trp_onnx.schema import path_of

Verdict = tuple[Site, Option, str]
"""What a layer's site becomes, and why."""


@dataclass(frozen=True)
class Decision:
    """What becomes of one layer, and why.

    Attributes:
        name: The layer.
        op: Its operator.
        scheme: The scheme, or None for a layer that is kept.
        rank: Its rank, or None.
        reason: Why it is kept, or what its rank followed from.
        macs_before: Multiply-accumulates of the dense layer, of one iteration in a loop body; None when unknown.
        macs_after: The same after factorisation.
        parameters_before: Entries of the dense weight; None for a layer without a constant weight.
        parameters_after: The same after factorisation, with the weight itself where something else still reads it.
        relative_error: `|W - W'| / |W|` in the Frobenius norm, or that of the layer's outputs where moments are
            known; 0 for a kept layer.
        role: "stem", "last" or "".
        time_before: Part of the dense network's time; None without a latency table.
        time_after: The same after factorisation, as the table predicts it.
        shape: Of the weight that is factorised or stays, (groups, outputs, inputs, *kernel): of what is left of it
            where spaces are cut; None for a layer without a constant weight.
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
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class SpaceDecision:
    """What becomes of one space of channels, and why.

    Attributes:
        name: The space.
        kind: "channels", "hidden" or "head".
        units: How many it has.
        kept: How many stay.
        reason: Why it is not cut, or what that costs.
        relative_error: `|Y - Y'| / |Y|` of the outputs of the layers that read it; 0 where nothing goes.
        stays: Which units stay; empty where all do.
        basis: What the units are turned to first, so that they are components, which the layers around take up; None
            where they are removed as they are.
    """

    name: str
    kind: str
    units: int
    kept: int
    reason: str
    relative_error: float = 0.0
    stays: tuple[int, ...] = field(default=(), repr=False)
    basis: Rotation | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Plan:
    """Decisions in graph order, and notes on what the plan could not take into account.

    Attributes:
        decisions: One for every layer.
        notes: What the owner should know.
        macs_before: Multiply-accumulates of one run of the whole network: of all operators whose MACs are known, of
            an If the branch that costs more.
        macs_after: The same after factorisation.
        unknown: Operators whose MACs are not known, and so not among these.
        spaces: One decision for every space of channels, where these were looked at.
        damage: What it does to the outputs as predicted, or else errors: the sum over layers and spaces.
        saved_by_nodes: Part of the dense network's time that nodes save which are no layers, as the latency table says.
    """

    decisions: tuple[Decision, ...]
    notes: tuple[str, ...] = field(default=())
    macs_before: int = 0
    macs_after: int = 0
    unknown: int = 0
    spaces: tuple[SpaceDecision, ...] = ()
    damage: float = 0.0
    saved_by_nodes: float = 0.0

    @property
    def chosen(self) -> dict[str, tuple[str, Rank]]:
        """Scheme and rank of the layers that are factorised, by name."""
        return {d.name: (d.scheme, d.rank) for d in self.decisions if d.scheme and d.rank}

    @property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """The units that stay of the spaces that are cut, by name."""
        return {space.name: space.stays for space in self.spaces if space.kept < space.units}

    @property
    def bases(self) -> dict[str, Rotation]:
        """What the units of spaces are turned to before they are cut, by name."""
        return {space.name: space.basis for space in self.spaces if space.basis is not None}

    def rules(self) -> tuple[Rule, ...]:
        """The plan as a map of layers and spaces that can be edited, and given to a `Goal`."""
        spaces = (SpaceRule(f"^{re.escape(space.name)}$", regex=True, units=space.kept) for space in self.spaces)
        return (*spaces, *(_rule(d) for d in self.decisions if d.parameters_before is not None))

    def to_toml(self) -> str:
        """The same as the text of a file that `read_rules` and `--config` take, reasons as comments."""
        return plan_to_toml(self.decisions, self.spaces)

    def save(self, path: str | PathLike[str]) -> None:
        """Write that file, whole or not at all.

        Raises:
            UsageError: What stands there is no TOML file: a model, or data.
            OutputError: It cannot be written.
        """
        place = path_of(path, "the plan's file")
        if place.exists() and place.suffix.lower() != ".toml":
            raise UsageError(f"'{place}' exists and is no TOML file, which a plan would be: name another file")
        write_text(place, self.to_toml())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights of the layers that are factorised, by name, see `Decision`."""
        return {d.name: d.shape for d in self.decisions if d.scheme and d.shape is not None}

    @property
    def speedup(self) -> float | None:
        """How many times as fast the network becomes, as the latency table predicts; None without one."""
        timed = [(d.time_before, d.time_after) for d in self.decisions if d.time_before is not None]
        saved = self.saved_by_nodes + sum(before - (after or 0.0) for before, after in timed)
        return 1.0 / (1.0 - saved) if timed else None


@dataclass(frozen=True)
class Cut:
    """What the spaces of a network keep.

    Attributes:
        widths: Of its layers.
        kept: Units that stay, by space.
        decisions: On every space.
        damage: What that does to the outputs, all together.
        saved_by_nodes: See `Plan`.
    """

    widths: Widths
    kept: Kept
    decisions: tuple[SpaceDecision, ...] = ()
    damage: float = 0.0
    saved_by_nodes: float = 0.0

    def touches(self, layer: Layer) -> bool:
        """Whether a layer stands at a space that may be cut."""
        return self.widths.knows(layer)

    def geometry(self, layer: Layer) -> Geometry | None:
        """What is left of a layer's geometry, if it has one."""
        return None if layer.geometry is None else self.widths.geometry(layer, self.kept)


UNCUT = Cut(Widths(()), {})


def _rule(decision: Decision) -> LayerRule:
    pattern = f"^{re.escape(decision.name)}$"
    if decision.scheme is None or decision.rank is None:
        return LayerRule(pattern, regex=True, keep=True)
    return LayerRule(pattern, regex=True, scheme=decision.scheme, rank=decision.rank)


def make_plan(
    layers: Sequence[Layer],
    verdicts: Mapping[str, Verdict],
    evidence: Evidence,
    notes: Sequence[str] = (),
    cut: Cut = UNCUT,
) -> Plan:
    """The plan that follows from verdicts.

    Args:
        layers: From `find_layers`.
        verdicts: By name, on the layers that can be factorised; costs are those between cut spaces.
        evidence: What errors and times were read from.
        notes: What the planner has to say.
        cut: What the spaces keep.
    """
    factorised = {id(site): site.layers for site, option, _ in verdicts.values() if option.scheme is not None}
    ties = ties_of(list(factorised.values()))
    decisions = tuple(_decide(layer, verdicts.get(layer.name), evidence, ties.get(layer.name), cut) for layer in layers)
    return Plan(
        decisions,
        (*notes_on(layers), *_notes_on_ties(decisions, ties), *notes),
        network_macs((layer, d.macs_before) for layer, d in zip(layers, decisions, strict=True)),
        network_macs((layer, d.macs_after) for layer, d in zip(layers, decisions, strict=True)),
        sum(layer.macs is None for layer in layers),
        cut.decisions,
        cut.damage + sum({id(site): option.damage for site, option, _ in verdicts.values()}.values()),
        cut.saved_by_nodes,
    )


def _decide(layer: Layer, verdict: Verdict | None, evidence: Evidence, tie: Tie | None, cut: Cut) -> Decision:
    """The decision on a layer: on one that cannot be factorised, or on one that shares a site, by its verdict."""
    table = evidence.table
    timed = table is not None and (layer.reason is None or cut.touches(layer))
    time = table.share(layer) if table is not None and timed else None
    left = cut.geometry(layer)
    shape = None if left is None else (left.groups, left.out_channels, left.in_channels, *left.kernel)
    reason = layer.reason or (verdict[2] if verdict else "kept")
    if left is None:
        return Decision(
            layer.name, layer.op, None, None, reason, layer.macs, layer.macs, layer.parameters, layer.parameters, 0.0,
            layer.role,
        )  # fmt: skip
    option = DENSE if verdict is None else verdict[1]
    factors = option.scheme is not None
    parameters = option.parameters + (tie.entries if tie is not None else 0) if factors else left.parameters
    return Decision(
        layer.name, layer.op, option.scheme, option.rank if factors else None, reason, layer.macs,
        layer_macs(layer, option, left) if layer.sized else None, layer.parameters, parameters, sqrt(option.error),
        layer.role, time, None if table is None or time is None else layer_time(layer, option, left, table), shape,
    )  # fmt: skip


def notes_on(layers: Sequence[Layer]) -> tuple[str, ...]:
    """What MACs do not say of these layers."""
    notes = []
    unknown = [layer for layer in layers if layer.macs is None]
    if unknown:
        kinds = ", ".join(f"{op} {count}" for op, count in Counter(layer.op for layer in unknown).most_common(4))
        count = f"{len(unknown)} node{'s' * (len(unknown) > 1)}"
        notes.append(
            f"the MACs of {count} are unknown ({kinds}; for example '{unknown[0].name}'), so what is said of MACs is "
            "said of the others alone: give --input-shape where sizes are dynamic"
        )
    repeated = [layer for layer in layers if layer.times > 1]
    if repeated:
        notes.append(
            f"{len(repeated)} layers stand in loops ('{repeated[0].name}' runs {repeated[0].times} times, ...): the "
            "total counts every iteration, a layer's own MACs are those of one"
        )
    endless = [layer.name for layer in layers if layer.endless]
    if endless:
        notes.append(
            f"{len(endless)} layers stand in loops whose number of iterations is not known ('{endless[0]}', ...): the "
            "MACs of one iteration are counted"
        )
    if any(layer.branches for layer in layers):
        notes.append("of the branches of an If the one with more MACs is counted")
    return tuple(notes)


def _notes_on_ties(decisions: Sequence[Decision], ties: Mapping[str, Tie]) -> list[str]:
    tied = {ties[d.name].weight: d for d in decisions if d.name in ties}
    if not tied:
        return []
    first = next(iter(tied.values()))
    tie = ties[first.name]
    more = f", and so do {len(tied) - 1} others" if len(tied) > 1 else ""
    added = sum((d.parameters_after or 0) - (d.parameters_before or 0) for d in tied.values())
    return [
        f"the weight '{tie.weight}' of '{first.name}' stays in the file, because {tie.reader} reads it too{more}: "
        f"factors beside it make the file larger by {added:,} parameters"
    ]


def notes_on_growth(plan: Plan, before: int, after: int) -> list[str]:
    """Why a written file is larger than the input, where it is; sizes in bytes."""
    if after <= before:
        return []
    grown = [d.name for d in plan.decisions if d.scheme and (d.parameters_after or 0) > (d.parameters_before or 0)]
    why = (
        f"{len(grown)} of its layers hold more parameters than before ('{grown[0]}', ...)"
        if grown
        else "factors are stored as floats where weights were in fewer bits, and more nodes take more room"
    )
    return [f"the written file is larger than the input, {after:,} bytes against {before:,}: {why}"]
