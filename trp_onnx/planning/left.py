"""Which layers no budget changes, so that nothing needs to be measured of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trp_onnx.graph.layers import Layer, network_macs
from trp_onnx.planning.options import least_saved, most_saved, sites_of
from trp_onnx.planning.rules import Rule, site_match

if TYPE_CHECKING:
    from trp_onnx.latency.table import LatencyTable


def left_by_budgets(
    layers: Sequence[Layer],
    table: LatencyTable | None = None,
    *,
    rules: Sequence[Rule] = (),
    scheme: str = "auto",
    align: int = 1,
) -> frozenset[str]:
    """Names of the layers that stay as they are within any budget.

    No option of theirs saves a noticeable part of the network, or the per-layer map keeps them.

    Args:
        layers: From `find_layers`.
        table: The network's latency table, where there is one.
        rules: The per-layer map.
        scheme: A scheme name or "auto".
        align: Ranks are multiples of this many channels.

    Raises:
        UsageError: The map wants layers that share a weight different.
    """
    groups = sites_of(layers)
    whole = 1.0 if table is not None else network_macs((layer, layer.macs) for layer in layers)
    found: set[str] = set()
    for group in groups:
        names = [layer.name for layer in group]
        rule = site_match(rules, names)
        if rule is not None and rule.targets:
            left = rule.keep
        else:
            choice = rule.scheme if rule is not None and rule.scheme else scheme
            left = most_saved(group, choice, align, table) < least_saved(len(groups)) * whole
        found.update(names if left else ())
    return frozenset(found)
