"""Plans for training: schemes for ranks that it finds itself, and the plan for what it ended with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trp_onnx.errors import ModelError
from trp_onnx.graph.layers import Layer
from trp_onnx.lowrank.schemes import SCHEMES, Rank, Scheme, candidates
from trp_onnx.planning.options import Evidence, Option, Site, dense_option, exact_option, sites_of, survey
from trp_onnx.planning.plan import Plan, make_plan
from trp_onnx.planning.rules import Rule, check_all_match, site_match
from trp_onnx.planning.select import nothing_to_do, show_rank

if TYPE_CHECKING:
    from trp_onnx.latency.table import LatencyTable

EXACT = 1e-11
"""A squared relative error below this is float32's rounding."""

_TYPICAL_ENERGY = 0.05


def choose_schemes(layers: Sequence[Layer], rules: Sequence[Rule], scheme: str) -> dict[str, tuple[str, Rank]]:
    """A scheme at full rank for every layer that can be factorised and that the map does not keep.

    For training that finds the ranks itself. "auto" takes the pair that is cheapest at 5 % of the energy.

    Raises:
        ModelError: No layer can be factorised.
        UsageError: The map matches no layer.
    """
    check_all_match(rules, [layer.name for layer in layers])
    chosen: dict[str, tuple[str, Rank]] = {}
    for group in sites_of(layers):
        rule = site_match(rules, [layer.name for layer in group])
        if rule is not None and rule.keep:
            continue
        geometry = group[0].geometry
        assert geometry is not None
        choice = rule.scheme if rule is not None and rule.scheme else scheme
        fitting = [s for s in candidates(choice, geometry.kernel) if choice != "auto" or s.modes == 1]
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
        raise ModelError(nothing_to_do(layers))
    return chosen


def plan_at_ranks(
    layers: Sequence[Layer],
    ranks: Mapping[str, tuple[str, Rank]],
    reason: str,
    kept: Mapping[str, str],
    table: LatencyTable | None = None,
    *,
    by_time: bool = True,
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
        by_time: Whether factors must be faster by it; a budget of MACs is kept whatever it says.
    """
    evidence = Evidence(table=table)
    verdicts: dict[str, tuple[Site, Option, str]] = {}
    for group in sites_of(layers):
        if group[0].name not in ranks:
            continue
        scheme, wanted = ranks[group[0].name]
        site = Site(group, dense_option(group, table), ())
        rank, why = _numerical_rank(group[0], SCHEMES[scheme], wanted), reason
        if rank != wanted:
            why = f"its numerical rank, below {show_rank(wanted)}, {reason}"
        option = exact_option(group, SCHEMES[scheme], rank, evidence)
        if option.macs >= site.dense.macs:
            part = option.macs / max(1, site.dense.macs)
            why = f"{reason}, {show_rank(rank)}, does not pay: {scheme} costs {part:.2f} of the dense layer there"
            option = site.dense
        elif by_time and option.time is not None and site.dense.time and option.time >= site.dense.time:
            part = option.time / site.dense.time
            why = (
                f"{reason}, {show_rank(rank)}, does not pay: {scheme} takes {part:.2f} of the dense layer's time there"
            )
            option = site.dense
        verdicts |= {layer.name: (site, option, why) for layer in group}
    for group in sites_of(layers):
        for layer in group:
            site = Site(group, dense_option(group, table), ())
            verdicts.setdefault(layer.name, (site, site.dense, kept.get(layer.name, "the configuration keeps it")))
    return make_plan(layers, verdicts, evidence)


def _numerical_rank(layer: Layer, scheme: Scheme, rank: Rank) -> Rank:
    """The smallest rank within `rank` that loses nothing more than `rank` does, mode by mode."""
    errors = scheme.errors(layer.weight())
    allowed = max(EXACT, float(errors[rank]))
    found = list(rank)
    for mode in range(len(found)):
        while found[mode] > 1 and errors[(*found[:mode], found[mode] - 1, *found[mode + 1 :])] <= allowed:
            found[mode] -= 1
    return tuple(found)
