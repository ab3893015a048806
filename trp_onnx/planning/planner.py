"""The planner: the options of every layer, from its spectrum, and one rule that picks among them.

    energy E    the cheapest option whose squared relative error is at most E
    macs R      all layers together at most R of the network's MACs, with the least sum of squared
                relative errors (see `allocate`), or of what these do to the outputs (see `damage`)
    speedup S   the same within 1 / S of the network's time, by a latency table
    vbmf        the rank that variational Bayes takes for signal, under the cheapest scheme

Where spaces may be cut, their widths are chosen together with the ranks (see `width_search`), for macs and speedup.

No option is dearer than the dense layer, none has a rank below 1, all ranks are multiples of the
alignment. A layer that saves no thousandth of the network, whatever becomes of it, stays as it is. A map of
per-layer rules goes before the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from math import inf, sqrt
from typing import TYPE_CHECKING

from trp_onnx.calibration.moments import observable
from trp_onnx.errors import ModelError, TargetError
from trp_onnx.graph.layers import Layer, counted_layers, network_macs
from trp_onnx.graph.spaces import Space
from trp_onnx.job import Goal
from trp_onnx.planning.allocate import allocate
from trp_onnx.planning.narrowing import Narrowing, layer_macs
from trp_onnx.planning.options import (
    Cost,
    Evidence,
    Option,
    Site,
    in_macs,
    in_time,
    least_saved,
    retimed,
    sites_of,
    survey,
)
from trp_onnx.planning.plan import Cut, Plan, SpaceDecision, Verdict, make_plan
from trp_onnx.planning.rules import Rule, SpaceRule, check_all_match, site_match, space_match
from trp_onnx.planning.select import by_energy, by_rule, by_vbmf, nothing_to_do, why_chosen, why_dense
from trp_onnx.planning.spaces import SpaceSite, levels_of, why_closed
from trp_onnx.planning.ties import ties_of
from trp_onnx.planning.width_search import WidthSearch
from trp_onnx.planning.widths import Kept, Widths
from trp_onnx.process.parallel import each

if TYPE_CHECKING:
    from trp_onnx.latency.table import LatencyTable

Progress = Callable[[Sequence[tuple[Layer, ...]]], Iterable[tuple[Layer, ...]]]


class Planner:
    """The options of every layer, surveyed once, from which plans are made."""

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        rules: Sequence[Rule] = (),
        scheme: str = "auto",
        align: int = 1,
        evidence: Evidence | None = None,
        spaces: Sequence[SpaceSite] = (),
        looked_at: Sequence[Space] = (),
        progress: Progress = lambda groups: groups,
        ask: str = "--input-shape",
    ) -> None:
        """Survey the layers.

        Args:
            layers: From `find_layers`.
            rules: The per-layer map.
            scheme: A scheme name or "auto", which lets every layer choose.
            align: Ranks are multiples of this many channels.
            evidence: What is known beyond the weights.
            spaces: What may be cut, see `survey_spaces`.
            looked_at: All spaces that were looked at: plans say of the others as well why they stay whole.
            progress: Wraps the list of weights whose spectra are computed, to show a bar.
            ask: The options that would give the sizes of the inputs, see `shape_options`.

        Raises:
            UsageError: An unknown scheme, or a map entry that matches no layer or asks for what its layer cannot be.
            ModelError: No layer can be factorised, or a weight holds NaN or infinity.
        """
        check_all_match(rules, [layer.name for layer in layers])
        groups = sites_of(layers)
        if not groups and not spaces:
            raise ModelError(nothing_to_do(layers))
        self.layers, self.evidence = layers, evidence or Evidence()
        self._align, self._ask = align, ask
        self._macs = network_macs((layer, layer.macs) for layer in layers)
        self._parameters = sum(layer.parameters or 0 for layer in layers)
        self._space_rules = [rule for rule in rules if isinstance(rule, SpaceRule)]
        self._rules = [site_match(rules, [layer.name for layer in group]) for group in groups]
        self._choices = [rule.scheme if rule is not None and rule.scheme else scheme for rule in self._rules]
        pairs = list(zip(groups, self._choices, strict=True))
        surveyed = each(lambda pair: survey(*pair, align, self.evidence), pairs)
        self._sites = [site for _, site in zip(progress(groups), surveyed, strict=True)]
        self._spaces, self._looked_at = list(spaces), looked_at or [site.space for site in spaces]
        self._settle()

    def _settle(self) -> None:
        """Cut what the map cuts, decide what it decides, and see at which widths that is possible."""
        self._widths = Widths([site.space for site in self._spaces])
        self._narrowing = Narrowing(self._widths, self.evidence.table)
        self._known: dict[tuple[int, bool | Option], Site] = {}
        self._cut: Kept = {site.space.name: site.levels[0] for site in self._spaces if len(site.levels) == 1}
        self._thin = [self._narrowing.site(site, self._cut) for site in self._sites]
        self._mapped: dict[int, tuple[Option, str]] = {}
        for index, (site, rule, choice) in enumerate(zip(self._thin, self._rules, self._choices, strict=True)):
            left = self._widths.geometry(site.layers[0], self._cut)
            verdict = None if rule is None else by_rule(site, rule, choice, self._align, self.evidence, left)
            if verdict is not None:
                self._mapped[index] = verdict
        given = [self._only(index, option) for index, (option, _) in self._mapped.items() if option.scheme is not None]
        self._spaces = [replace(site, levels=self._possible(site, given)) for site in self._spaces]

    def _possible(self, space: SpaceSite, given: Sequence[Site]) -> tuple[int, ...]:
        """The widths of a space at which sites have the ranks that the map gives them."""
        return tuple(
            level
            for level in space.levels
            if all(self._narrowing.option(s, s.dense, {**self._cut, space.space.name: level}) for s in given)
        )

    def retimed(self, table: LatencyTable) -> Planner:
        """The same options by another latency table of the network; only what it tells otherwise is looked up."""
        known = self.evidence.table
        other = copy(self)
        other.evidence = replace(self.evidence, table=table)
        other._sites = [
            site if known is not None and table.agrees(known, site.layers) else retimed(site, table)
            for site in self._sites
        ]
        other._settle()
        other._take_over(self)
        return other

    def _take_over(self, other: Planner) -> None:
        """What was looked up of the sites that another planner of this network has as well."""
        same = {i for i, (mine, its) in enumerate(zip(self._sites, other._sites, strict=True)) if mine is its}
        self._thin = [other._thin[i] if i in same else site for i, site in enumerate(self._thin)]
        self._known |= {key: site for key, site in other._known.items() if key[0] in same}
        self._narrowing.take_over(other._narrowing, {site for key, site in self._known.items() if key[0] in same})

    def widths_of(self, plan: Plan) -> dict[str, tuple[int, int]]:
        """Inputs and outputs that are left of the layers that a plan makes thinner, by name."""
        kept = {space.name: space.kept for space in plan.spaces}
        cut = [layer for layer in self._widths.layers if self._widths.geometry(layer, kept) != layer.geometry]
        return {layer.name: self._widths.channels(layer, kept) for layer in cut}

    def whole(self) -> Planner:
        """The same layers, where no space is cut but those that the map cuts."""
        other = copy(self)
        other._spaces = [site for site in self._spaces if site.space.name in self._cut]
        other._settle()
        return other

    def _only(self, index: int, option: Option) -> Site:
        """A site that has no other option."""
        if (index, option) not in self._known:
            self._known[index, option] = replace(self._sites[index], dense=option, options=())
        return self._known[index, option]

    def _offered(self, index: int, *, by_size: bool = False) -> Site:
        """A site without options that save next to nothing of the network; `by_size` parameters count as well."""
        if (index, by_size) not in self._known:
            self._known[index, by_size] = self._worth(self._thin[index], by_size=by_size)
        return self._known[index, by_size]

    def _worth(self, site: Site, *, by_size: bool) -> Site:
        if site.layers[0].name in self.evidence.left:
            return replace(site, options=())
        part = least_saved(len(self._sites))
        timed = site.dense.time is not None
        least = part * (1.0 if timed else self._macs)
        parameters = part * self._parameters if by_size else inf
        ties = ties_of([site.layers]).values() if by_size else ()
        dense = site.dense.parameters - max((tie.entries for tie in ties), default=0)  # what stays is not saved
        worth = [o for o in site.options if site.saves(o) >= least or dense - o.parameters >= parameters]
        return replace(site, options=tuple(worth))

    def plan(self, goal: Goal) -> Plan:
        """Decide on every layer.

        Args:
            goal: Its target; the planner has the rules already, and the limit on what may be lost is not looked at.

        Raises:
            UsageError: A map entry asks for what its layer cannot be.
            ModelError: The target needs MACs, and none are known.
            TargetError: The target is out of reach, or nothing gets cheaper under it.
        """
        energy, macs, speedup = goal.energy, goal.macs, goal.speedup
        fixed, free = dict(self._mapped), list[tuple[int, Site]]()
        for index, (site, choice) in enumerate(zip(self._thin, self._choices, strict=True)):
            if index in fixed:
                continue
            if energy is not None:
                fixed[index] = by_energy(self._offered(index, by_size=True), energy)
            elif goal.vbmf:
                fixed[index] = by_vbmf(self._offered(index, by_size=True), choice, self._align)
            elif macs is None and speedup is None:
                fixed[index] = (site.dense, "no rule speaks of it")
            elif macs is not None and not all(layer.sized for layer in site.layers):
                fixed[index] = (site.dense, "its MACs are unknown: its size is dynamic, give --input-shape")
            else:
                free.append((index, self._offered(index)))
        kept = self._cut
        if macs is not None:
            found, kept = self._within_macs(fixed, free, macs)
            fixed |= found
        if speedup is not None:
            found, kept = self._within_time(fixed, free, speedup)
            fixed |= found
        plan = make_plan(
            self.layers, self._verdicts(fixed, kept), self.evidence, self._notes_on_moments(), self._what_is_cut(kept)
        )
        if not plan.chosen and not plan.kept:
            able = {layer.name for site in self._sites for layer in site.layers}
            raise TargetError(
                "no layer gets cheaper under this rule, so nothing was written; the first reason: "
                + next(f"'{d.name}': {d.reason}" for d in plan.decisions if d.name in able or not able)
            )
        return plan

    def _verdicts(self, fixed: Mapping[int, tuple[Option, str]], kept: Kept) -> dict[str, Verdict]:
        """What becomes of each layer, at what it costs between cut spaces."""
        found: dict[str, Verdict] = {}
        for index, site in enumerate(self._sites):
            option, reason = fixed[index]
            thin = self._narrowing.option(site, option, kept)
            assert thin is not None  # all was chosen among what is left
            found |= {layer.name: (site, thin, reason) for layer in site.layers}
        return found

    def _what_is_cut(self, kept: Kept) -> Cut:
        cut, table = [site for site in self._spaces if site.space.name in kept], self.evidence.table
        lost = sum(site.harm(kept[site.space.name]) for site in cut)
        decisions = tuple(self._decision(space, kept) for space in self._looked_at)
        saved = 0.0
        if table is not None:
            spaces = self._widths.spaces
            saved = self._widths.node_time(spaces, {}, table) - self._widths.node_time(spaces, kept, table)
        return Cut(self._widths, kept, decisions, float(lost), saved)

    def fastest(self) -> float:
        """The largest speed-up that any plan is predicted to reach, whatever it does to the outputs."""
        kept = {site.space.name: site.levels[0] for site in self._spaces}
        least, dense = self._rest_in_time(kept), self._rest_in_time({})
        for index, site in enumerate(self._sites):
            assert site.dense.time is not None
            given = self._mapped.get(index)
            offered = self._offered(index) if given is None else self._only(index, given[0])
            thin = self._narrowing.site(offered, kept)
            dense += site.dense.time
            least += min(option.time or 0.0 for option in (thin.dense, *thin.options))
        return 1.0 / (1.0 - dense + least)

    def _within_macs(
        self, fixed: Mapping[int, tuple[Option, str]], free: Sequence[tuple[int, Site]], macs: float
    ) -> tuple[dict[int, tuple[Option, str]], Kept]:
        total = self._macs
        if total == 0:
            raise ModelError(f"no layer's MACs are known: the input size is dynamic, give {self._ask}")
        counted = counted_layers(self.layers)

        def counts(site: Site) -> bool:
            return any(layer.name in counted for layer in site.layers)

        inside = [(index, site) for index, site in free if counts(site)]
        apart = [layer for layer in self.layers if layer.name in counted and layer.reason is not None]
        given = {i: option for i, (option, _) in fixed.items() if counts(self._sites[i])}

        def settled(kept: Kept) -> int:
            rest = sum(self._other_macs(layer, kept) for layer in apart)
            return rest + sum(_known_macs(self._sites[i], option, self._widths, kept) for i, option in given.items())

        kept = self._widened(inside, given, int(macs * total) - settled({}), in_macs)
        thin = [self._narrowing.site(site, kept) for _, site in inside]
        choices = [(site.dense, *site.options) for site in thin]
        chosen = allocate(choices, int(macs * total) - settled(kept))
        if chosen is None:
            least = settled(kept) + sum(min(option.macs for option in options) for options in choices)
            raise TargetError(
                f"--macs {macs:g} is out of reach: with every layer at its cheapest {least / total:.3f} of the MACs "
                "remain"
            )
        pairs = [(index, site) for (index, _), site in zip(inside, thin, strict=True)]
        return _verdicts(pairs, chosen) | _other_branches([pair for pair in free if not counts(pair[1])], macs), kept

    def _within_time(
        self, fixed: Mapping[int, tuple[Option, str]], free: Sequence[tuple[int, Site]], speedup: float
    ) -> tuple[dict[int, tuple[Option, str]], Kept]:
        given = {i: option for i, (option, _) in fixed.items()}
        rest = 1.0 - sum(site.dense.time or 0.0 for site in self._sites) - self._rest_in_time({})

        def settled(kept: Kept) -> float:
            options = (self._narrowing.option(self._sites[i], option, kept) for i, option in given.items())
            return rest + self._rest_in_time(kept) + sum(option.time or 0.0 for option in options if option)

        kept = self._widened(free, given, 1e9 * (1.0 / speedup - settled({})), in_time)
        thin = [self._narrowing.site(site, kept) for _, site in free]
        chosen = allocate(
            [(site.dense, *site.options) for site in thin], int(1e9 * (1.0 / speedup - settled(kept))), in_time
        )
        if chosen is None:
            raise TargetError(
                f"--speedup {speedup:g} is out of reach: with every layer at its fastest the network is predicted to "
                f"run {self.fastest():.2f}x as fast, whatever that does to its outputs; nothing was written"
            )
        return _verdicts([(index, site) for (index, _), site in zip(free, thin, strict=True)], chosen), kept

    def _widened(
        self, free: Sequence[tuple[int, Site]], given: Mapping[int, Option], budget: float, cost: Cost
    ) -> Kept:
        """What the spaces keep within a budget of all sites that are free.

        Args:
            free: Sites with their places.
            given: The only option of other sites, by their places.
            budget: What is left for the sites where no space is cut.
            cost: In what it is counted.
        """
        if not any(len(site.levels) > 1 for site in self._spaces):
            return self._cut
        settled = [self._only(index, option) for index, option in given.items()]
        others = [layer for layer in self._widths.layers if layer.reason is not None]
        search = WidthSearch(self._spaces, [*(site for _, site in free), *settled], cost, others, self._narrowing)
        spare = search.rest({}) + sum(float(self._narrowing.front(site, {}, cost)[0][0]) for site in settled)
        found = search.choose(budget + spare)
        return {site.space.name: site.levels[0] for site in self._spaces} if found is None else found

    def _other_macs(self, layer: Layer, kept: Kept) -> int:
        """MACs of a layer that cannot be factorised."""
        if self._widths.knows(layer) and layer.sized:
            return layer.times * self._widths.geometry(layer, kept).macs
        return layer.times * (layer.macs or 0)

    def _rest_in_time(self, kept: Kept) -> float:
        """Part of the network's time of what stands at spaces and cannot be factorised."""
        table = self.evidence.table
        if table is None:
            return 0.0
        others = [layer for layer in self._widths.layers if layer.reason is not None]
        layers = sum(self._narrowing.alone(layer, kept, in_time) for layer in others) / 1e9
        return layers + self._widths.node_time(self._widths.spaces, kept, table)

    def _decision(self, space: Space, kept: Kept) -> SpaceDecision:
        site = next((site for site in self._spaces if site.space is space), None)
        stays = kept.get(space.name, space.size)
        if site is None or stays == space.size:
            return SpaceDecision(space.name, space.kind, space.size, stays, self._why_whole(space, site))
        error = site.error(stays)
        harm = "" if site.damage is None else f", for a damage of {site.damage(error):.2g} to the outputs"
        going = "the units that go" if site.basis is None else "turned to components, of which those that go"
        why = f"{going} take {error:.4f} of the energy of what reads them{harm}"
        units = tuple(int(unit) for unit in site.elimination.kept(stays // space.groups))
        return SpaceDecision(space.name, space.kind, space.size, stays, why, sqrt(error), units, site.basis)

    def _why_whole(self, space: Space, site: SpaceSite | None) -> str:
        if site is not None and len(site.levels) == 1:
            return "the ranks that the configuration gives need all of its units"
        if site is not None:
            return "its units are worth more than what they cost"
        why = why_closed(space)
        if why is not None:
            return why
        if space_match(self._space_rules, space.name) is not None:
            return "the configuration keeps it"
        if len(levels_of(space, self._align)) == 1:
            return f"no width pays: it has too few units to remove whole blocks of {self._align}"
        return "no space that the configuration does not cut is cut in this plan"

    def _notes_on_moments(self) -> list[str]:
        if not self.evidence.moments:
            return []
        judged = [layer for site in self._sites for layer in site.layers if layer.name not in self.evidence.left]
        blind = [layer.name for layer in judged if not observable(layer)]
        if not blind:
            return []
        return [
            f"{len(blind)} layers ('{blind[0]}', ...) are judged by their weights, not by the data: what flows "
            "through the bodies of loops is not observed"
        ]


def _known_macs(site: Site, option: Option, widths: Widths, kept: Kept) -> int:
    """MACs of an option over those of a site's layers whose size is known: no others are in the network's total."""
    known = [layer for layer in site.layers if layer.sized]
    return sum(layer.times * layer_macs(layer, option, widths.geometry(layer, kept)) for layer in known)


def _other_branches(free: Sequence[tuple[int, Site]], macs: float) -> dict[int, tuple[Option, str]]:
    """Branches of If that cost less than their sibling are not in the network's MACs: each site keeps R of its own."""
    found: dict[int, tuple[Option, str]] = {}
    for index, site in free:
        within = [option for option in site.options if option.macs <= macs * site.dense.macs]
        option = min(within, key=lambda option: option.damage, default=site.dense)
        found |= _verdicts([(index, site)], [option])
    return found


def _verdicts(free: Sequence[tuple[int, Site]], chosen: Sequence[Option]) -> dict[int, tuple[Option, str]]:
    return {
        index: (option, why_chosen(option) if option.scheme else why_dense(site))
        for (index, site), option in zip(free, chosen, strict=True)
    }
