"""The plan: a decision for every layer, the kept ones included.

Each layer's options come from its spectrum; one rule picks among them:

    energy E    the cheapest option whose squared relative error is at most E
    macs R      all layers together at most R of the network's MACs, with the least sum of squared
                relative errors (see `allocate`), or of what these do to the outputs (see `damage`)
    speedup S   the same within 1 / S of the network's time, by a latency table
    vbmf        the rank that variational Bayes takes for signal, under the cheapest scheme

No option is dearer than the dense layer, none has a rank below 1, all ranks are multiples of the
alignment. A map of per-layer rules goes before the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import TYPE_CHECKING

from trp_onnx.errors import ModelError, TargetError, UsageError
from trp_onnx.layers import Layer
from trp_onnx.planning.allocate import allocate
from trp_onnx.planning.options import (
    Evidence,
    Option,
    Site,
    dense_option,
    exact_option,
    in_time,
    sites_of,
    survey,
    variational_ranks,
)
from trp_onnx.planning.rules import LayerRule, check_all_match, first_match
from trp_onnx.schemes import SCHEMES, Rank, Scheme, candidates

if TYPE_CHECKING:
    from trp_onnx.latency.table import LatencyTable


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


Progress = Callable[[Sequence[tuple[Layer, ...]]], Iterable[tuple[Layer, ...]]]


class Planner:
    """The options of every layer, surveyed once, from which plans are made."""

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        rules: Sequence[LayerRule] = (),
        scheme: str = "auto",
        align: int = 1,
        evidence: Evidence | None = None,
        progress: Progress = lambda groups: groups,
    ) -> None:
        """Survey the layers.

        Args:
            layers: From `find_layers`.
            rules: The per-layer map.
            scheme: A scheme name or "auto", which lets every layer choose.
            align: Ranks are multiples of this many channels.
            evidence: What is known beyond the weights.
            progress: Wraps the list of weights whose spectra are computed, to show a bar.

        Raises:
            UsageError: An unknown scheme, or a map entry that matches no layer.
            ModelError: No layer can be factorised, or a weight holds NaN or infinity.
        """
        check_all_match(rules, [layer.name for layer in layers])
        groups = sites_of(layers)
        if not groups:
            raise ModelError(_nothing_to_do(layers))
        self.layers, self.evidence = layers, evidence or Evidence()
        self._align = align
        self._rules = [first_match(rules, group[0].name) for group in groups]
        self._choices = [rule.scheme if rule is not None and rule.scheme else scheme for rule in self._rules]
        self._sites = [
            survey(group, choice, align, self.evidence)
            for group, choice in zip(progress(groups), self._choices, strict=True)
        ]

    def plan(
        self,
        *,
        energy: float | None = None,
        macs: float | None = None,
        vbmf: bool = False,
        speedup: float | None = None,
    ) -> Plan:
        """Decide on every layer; of the four rules at most one, see `check_rule`.

        Args:
            energy: Discard at most this part of each layer's energy (0 <= E < 1).
            macs: Keep at most this part of the network's MACs (0 < R < 1).
            vbmf: Take ranks from variational Bayes.
            speedup: Make the network at least this many times as fast, by the latency table.

        Raises:
            UsageError: A map entry asks for what its layer cannot be.
            ModelError: The rule needs MACs, and none are known.
            TargetError: The target is out of reach, or nothing gets cheaper under the rule.
        """
        fixed: dict[int, tuple[Option, str]] = {}
        free: list[tuple[int, Site]] = []
        for index, (site, rule, choice) in enumerate(zip(self._sites, self._rules, self._choices, strict=True)):
            verdict = None if rule is None else _by_rule(site, rule, choice, self._align, self.evidence)
            if verdict is not None:
                fixed[index] = verdict
            elif energy is not None:
                fixed[index] = _by_energy(site, energy)
            elif vbmf:
                fixed[index] = _by_vbmf(site, choice, self._align)
            elif macs is None and speedup is None:
                fixed[index] = (site.dense, "no rule speaks of it")
            elif macs is not None and not all(layer.sized for layer in site.layers):
                fixed[index] = (site.dense, "its MACs are unknown: its size is dynamic, give --input-shape")
            else:
                free.append((index, site))
        if macs is not None:
            fixed |= self._within_macs(fixed, free, macs)
        if speedup is not None:
            fixed |= self._within_time(fixed, free, speedup)

        verdicts = {layer.name: (site, *fixed[i]) for i, site in enumerate(self._sites) for layer in site.layers}
        decisions = tuple(_decision(layer, verdicts.get(layer.name), self.evidence) for layer in self.layers)
        if not any(decision.scheme for decision in decisions):
            raise TargetError(
                "no layer gets cheaper under this rule, so nothing was written; the first reason: "
                + next(f"'{d.name}': {d.reason}" for d in decisions if d.name in verdicts)
            )
        return Plan(decisions, (*_notes(self.layers), *self._notes_on_moments()))

    def fastest(self) -> float:
        """The largest speed-up that any plan is predicted to reach, whatever it does to the outputs."""
        saved = 0.0
        for site, rule, choice in zip(self._sites, self._rules, self._choices, strict=True):
            assert site.dense.time is not None
            verdict = None if rule is None else _by_rule(site, rule, choice, self._align, self.evidence)
            options = (site.dense, *site.options) if verdict is None else (verdict[0],)
            saved += site.dense.time - min(option.time or 0.0 for option in options)
        return 1.0 / (1.0 - saved)

    def _within_macs(
        self, fixed: Mapping[int, tuple[Option, str]], free: Sequence[tuple[int, Site]], macs: float
    ) -> dict[int, tuple[Option, str]]:
        total = sum(layer.macs or 0 for layer in self.layers)
        if total == 0:
            raise ModelError(
                "no layer's MACs are known: the input size is dynamic, give --input-shape NAME:1,3,224,224"
            )
        known = [layer.macs for layer in self.layers if layer.macs is not None and layer.reason is not None]
        settled = sum(known) + sum(
            option.macs
            for index, (option, _) in fixed.items()
            if all(layer.sized for layer in self._sites[index].layers)
        )
        choices = [(site.dense, *site.options) for _, site in free]
        chosen = allocate(choices, int(macs * total) - settled)
        if chosen is None:
            least = settled + sum(min(option.macs for option in options) for options in choices)
            raise TargetError(
                f"--macs {macs:g} is out of reach: with every layer at its cheapest {least / total:.3f} of the MACs "
                "remain"
            )
        return _verdicts(free, chosen)

    def _within_time(
        self, fixed: Mapping[int, tuple[Option, str]], free: Sequence[tuple[int, Site]], speedup: float
    ) -> dict[int, tuple[Option, str]]:
        moved = sum((self._sites[i].dense.time or 0.0) - (option.time or 0.0) for i, (option, _) in fixed.items())
        spare = 1.0 / speedup - (1.0 - moved - sum(site.dense.time or 0.0 for _, site in free))
        choices = [(site.dense, *site.options) for _, site in free]
        chosen = allocate(choices, int(spare * 1e9), in_time)
        if chosen is None:
            raise TargetError(
                f"--speedup {speedup:g} is out of reach: with every layer at its fastest the network is predicted to "
                f"run {self.fastest():.2f}x as fast, whatever that does to its outputs; nothing was written"
            )
        return _verdicts(free, chosen)

    def _notes_on_moments(self) -> list[str]:
        if not self.evidence.moments:
            return []
        judged = [layer for site in self._sites for layer in site.layers]
        blind = [layer.name for layer in judged if layer.name not in self.evidence.moments]
        if not blind:
            return []
        return [
            f"{len(blind)} layers ('{blind[0]}', ...) are judged by their weights, not by the data: what flows into "
            "transposed convolutions, batched products and loop bodies is not observed"
        ]


def _verdicts(free: Sequence[tuple[int, Site]], chosen: Sequence[Option]) -> dict[int, tuple[Option, str]]:
    return {
        index: (option, _why_chosen(option) if option.scheme else _why_dense(site))
        for (index, site), option in zip(free, chosen, strict=True)
    }


def choose_schemes(layers: Sequence[Layer], rules: Sequence[LayerRule], scheme: str) -> dict[str, tuple[str, Rank]]:
    """A scheme at full rank for every layer that can be factorised and that the map does not keep.

    For training that finds the ranks itself. "auto" takes the pair that is cheapest at 5 % of the energy.

    Raises:
        ModelError: No layer can be factorised.
        UsageError: The map matches no layer.
    """
    check_all_match(rules, [layer.name for layer in layers])
    chosen: dict[str, tuple[str, Rank]] = {}
    for group in sites_of(layers):
        rule = first_match(rules, group[0].name)
        if rule is not None and rule.keep:
            continue
        geometry = group[0].geometry
        assert geometry is not None
        choice = rule.scheme if rule is not None and rule.scheme else scheme
        fitting = [s for s in candidates(choice, geometry.kernel) if choice != "auto" or s.name != "tucker2"]
        if not fitting:
            continue
        best = fitting[0]
        if len(fitting) > 1:
            site = survey(group, choice, 1, Evidence())
            within = [o for o in site.options if o.error <= _TYPICAL_ENERGY and o.scheme in {s.name for s in fitting}]
            if within:
                best = SCHEMES[min(within, key=lambda option: option.macs).scheme or ""]
        chosen |= {layer.name: (best.name, best.full_rank(geometry)) for layer in group}
    if not chosen:
        raise ModelError(_nothing_to_do(layers))
    return chosen


_TYPICAL_ENERGY = 0.05


EXACT = 1e-11
"""A squared relative error below this is float32's rounding."""


def plan_at_ranks(
    layers: Sequence[Layer],
    ranks: Mapping[str, tuple[str, Rank]],
    reason: str,
    kept: Mapping[str, str],
    table: LatencyTable | None = None,
) -> Plan:
    """The plan for weights that were trained to some ranks: on their spectra, at no error.

    A weight whose numerical rank came out lower is factorised at that one; a layer whose factors would cost as
    much as it does, in MACs or by the latency table, stays as it is.

    Args:
        layers: From `find_layers`.
        ranks: Scheme and rank, by layer name.
        reason: Where the ranks come from.
        kept: Why the other layers have none, by name.
        table: What layers take in time.
    """
    evidence = Evidence(table=table)
    verdicts: dict[str, tuple[Site, Option, str]] = {}
    for group in sites_of(layers):
        if group[0].name not in ranks:
            continue
        scheme, wanted = ranks[group[0].name]
        site = Site(group, dense_option(group, table), (), None)
        rank, why = _numerical_rank(group[0], SCHEMES[scheme], wanted), reason
        if rank != wanted:
            why = f"its numerical rank, below {show_rank(wanted)}, {reason}"
        option = exact_option(group, SCHEMES[scheme], rank, evidence)
        if option.macs >= site.dense.macs:
            part = option.macs / max(1, site.dense.macs)
            why = f"{reason}, {show_rank(rank)}, does not pay: {scheme} costs {part:.2f} of the dense layer there"
            option = site.dense
        elif option.time is not None and site.dense.time and option.time >= site.dense.time:
            part = option.time / site.dense.time
            why = (
                f"{reason}, {show_rank(rank)}, does not pay: {scheme} takes {part:.2f} of the dense layer's time there"
            )
            option = site.dense
        verdicts |= {layer.name: (site, option, why) for layer in group}
    for group in sites_of(layers):
        for layer in group:
            site = Site(group, dense_option(group, table), (), None)
            verdicts.setdefault(layer.name, (site, site.dense, kept.get(layer.name, "the configuration keeps it")))
    return Plan(tuple(_decision(layer, verdicts.get(layer.name), evidence) for layer in layers), _notes(layers))


def _numerical_rank(layer: Layer, scheme: Scheme, rank: Rank) -> Rank:
    """The smallest rank within `rank` that loses nothing more than `rank` does, mode by mode."""
    errors = scheme.errors(layer.weight())
    allowed = max(EXACT, float(errors[rank]))
    found = list(rank)
    for mode in range(len(found)):
        while found[mode] > 1 and errors[(*found[:mode], found[mode] - 1, *found[mode + 1 :])] <= allowed:
            found[mode] -= 1
    return tuple(found)


def check_rule(
    *,
    energy: float | None = None,
    macs: float | None = None,
    vbmf: bool = False,
    speedup: float | None = None,
    max_drop: float | None = None,
    mapped: bool = False,
    scheme: str = "auto",
) -> None:
    """Refuse a rule that makes no sense, before any work.

    Args:
        energy: See `Planner.plan`.
        macs: The same.
        vbmf: The same.
        speedup: The same.
        max_drop: Points of accuracy to lose at most.
        mapped: Whether there is a per-layer map, which may say all.
        scheme: A scheme name or "auto".

    Raises:
        UsageError: More than one rule, no rule at all, or a value out of range.
    """
    given = sum(value is not None for value in (energy, macs, speedup, max_drop)) + vbmf
    if given > 1:
        raise UsageError("give only one of --macs, --speedup, --max-drop, --energy and --vbmf")
    if given == 0 and not mapped:
        raise UsageError(
            "say how far to go: --macs 0.5, --speedup 1.5, --max-drop 1, --energy 0.02, --vbmf or --config"
        )
    if energy is not None and not 0 <= energy < 1:
        raise UsageError(f"--energy is the part of the energy to discard, from 0 to below 1, not {energy}")
    if macs is not None and not 0 < macs < 1:
        raise UsageError(f"--macs is the part of the MACs to keep, between 0 and 1, not {macs}")
    if speedup is not None and not (speedup > 1 and isfinite(speedup)):
        raise UsageError(f"--speedup is how many times as fast, above 1, not {speedup}")
    if max_drop is not None and not 0 <= max_drop < 100:
        raise UsageError(f"--max-drop is the points of accuracy to lose at most, from 0 to below 100, not {max_drop}")
    if scheme != "auto" and scheme not in SCHEMES:
        raise UsageError(f"unknown scheme '{scheme}'; there are auto, {', '.join(SCHEMES)}")


def _nothing_to_do(layers: Sequence[Layer]) -> str:
    if not layers:
        return "the model has no Conv, ConvTranspose, Gemm or MatMul: there is nothing to factorise"
    first = layers[0]
    return f"none of the {len(layers)} layers can be factorised; the first, {first.op} '{first.name}': {first.reason}"


def _by_rule(site: Site, rule: LayerRule, choice: str, align: int, evidence: Evidence) -> tuple[Option, str] | None:
    """What the map asks for; None where it only restricts the scheme."""
    name = site.layers[0].name
    if rule.keep:
        return site.dense, "the configuration keeps it"
    if rule.energy is not None:
        return _by_energy(site, rule.energy)
    if rule.vbmf:
        return _by_vbmf(site, choice, align)
    if rule.ratio is not None:
        within = [option for option in site.options if option.macs <= rule.ratio * site.dense.macs]
        if not within:
            raise UsageError(f"'{name}' cannot be brought to {rule.ratio:g} of its MACs: {_cheapest(site)}")
        best = min(within, key=lambda option: (option.error, option.macs))
        return best, f"the configuration asks for at most {rule.ratio:g} of its MACs"
    if rule.rank is None:
        return None
    geometry = site.layers[0].geometry
    assert geometry is not None
    fitting = [s for s in candidates(choice, geometry.kernel) if len(s.full_rank(geometry)) == len(rule.rank)]
    if not fitting:
        raise UsageError(
            f"'{name}': rank {list(rule.rank)} does not fit scheme {choice} and kernel {list(geometry.kernel)}"
        )
    options = []
    for scheme in fitting:
        full = scheme.full_rank(geometry)
        if all(r <= f for r, f in zip(rule.rank, full, strict=True)):
            options.append(exact_option(site.layers, scheme, rule.rank, evidence))
    if not options:
        raise UsageError(
            f"'{name}': rank {list(rule.rank)} exceeds its full rank {list(fitting[0].full_rank(geometry))}"
        )
    best = min(options, key=lambda option: (option.error, option.macs))
    dearer = "" if best.macs < site.dense.macs else ", dearer than the dense layer"
    return best, f"the configuration gives the rank{dearer}"


def _by_energy(site: Site, energy: float) -> tuple[Option, str]:
    if not site.options:
        return site.dense, f"no rank pays: {_cheapest(site)}"
    within = [option for option in site.options if option.error <= energy]
    if not within:
        best = min(site.options, key=lambda option: option.error)
        return (
            site.dense,
            f"no rank that pays discards at most {energy:g} of the energy; the best, {best.scheme} at rank "
            f"{show_rank(best.rank)}, discards {best.error:.3f}",
        )
    best = min(within, key=lambda option: (option.macs, option.error))
    return best, f"discards {best.error:.4f} of the energy"


def _by_vbmf(site: Site, choice: str, align: int) -> tuple[Option, str]:
    ranks = variational_ranks(site.layers, choice, align)
    options = [option for option in site.options if ranks.get(option.scheme or "") == option.rank]
    if not options:
        found = ", ".join(f"{name} {show_rank(rank)}" for name, rank in ranks.items())
        return site.dense, f"no rank that variational Bayes finds pays ({found})"
    return min(options, key=lambda option: (option.macs, option.error)), "the rank that variational Bayes finds"


def _why_chosen(option: Option) -> str:
    if option.measured is None:
        return f"discards {option.error:.4f} of the energy"
    return f"discards {option.error:.4f} of the energy, for a damage of {option.measured:.2g} to the outputs"


def _why_dense(site: Site) -> str:
    if not site.options:
        return f"no rank pays: {_cheapest(site)}"
    return "the budget is better spent here than elsewhere"


def _cheapest(site: Site) -> str:
    option = site.cheapest
    if option is None:
        geometry = site.layers[0].geometry
        assert geometry is not None
        return f"no chosen scheme fits its kernel {list(geometry.kernel)}"
    rank = show_rank(option.rank)
    if option.time is not None and site.dense.time:
        part = option.time / site.dense.time
        return f"the fastest, {option.scheme} at rank {rank}, takes {part:.2f} of the dense layer's time"
    part = option.macs / max(1, site.dense.macs)
    return f"{option.scheme} at rank {rank} costs {part:.2f} of the dense layer"


def show_rank(rank: Sequence[int] | None) -> str:
    """A rank for people: 16, or 16,24 for Tucker-2."""
    return ",".join(map(str, rank or ()))


def _decision(layer: Layer, verdict: tuple[Site, Option, str] | None, evidence: Evidence) -> Decision:
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


def _notes(layers: Sequence[Layer]) -> tuple[str, ...]:
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
