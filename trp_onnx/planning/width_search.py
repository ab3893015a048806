"""Widths and ranks under one budget.

    minimise  sum_s damage_s(kept_s) + sum_l damage_l(option_l)   subject to   cost(kept, options) <= budget

The cost of a layer is a product of what the spaces on both its sides keep, so the widths are no knapsack. At a price p
of a unit of cost the layers choose for themselves, and what is left is a function of the widths alone,

    F(kept) = sum_s damage_s(kept_s) + sum_l min_o (damage_l(o) + p cost_l(o, kept)) + p rest(kept),

made least one space at a time until no space moves (coordinate descent: F falls in every step). The price at which the
budget is met is found by bisection. Budget that is left over then widens the spaces that gain most by it; ranks are
allocated exactly behind that (see `allocate`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trp_onnx.graph.layers import Layer
from trp_onnx.graph.spaces import Space
from trp_onnx.planning.narrowing import Narrowing
from trp_onnx.planning.options import Cost, Site, in_time
from trp_onnx.planning.spaces import SpaceSite
from trp_onnx.planning.widths import Kept

_STEPS, _SWEEPS = 30, 10
"""Halvings of the price's interval, on a scale of powers; sweeps over the spaces at one price."""


class WidthSearch:
    """The widths of a network and the options of its layers, under one measure of cost."""

    def __init__(
        self, spaces: Sequence[SpaceSite], sites: Sequence[Site], cost: Cost, others: Sequence[Layer],
        narrowing: Narrowing,
    ) -> None:  # fmt: skip
        """Say what is chosen.

        Args:
            spaces: Those that are cut, or may be, at widths at which all sites are possible.
            sites: The layers that may be factorised, or have no option but one.
            cost: Of an option.
            others: Layers at the spaces that are in no site.
            narrowing: What options cost where spaces are cut; it has a latency table where the cost is time.
        """
        self._spaces, self._sites, self._cost, self._others = spaces, sites, cost, others
        self._narrowing = narrowing
        self._near: dict[str, tuple[list[Site], list[Layer]]] = {}
        for space in spaces:
            at = {layer.name for layer in narrowing.widths.at(space.space)}
            near = [site for site in sites if any(layer.name in at for layer in site.layers)]
            self._near[space.space.name] = near, [layer for layer in others if layer.name in at]

    def choose(self, budget: float) -> dict[str, int] | None:
        """Units that each space keeps; None where the budget is out of reach."""
        everything = {site.space.name: site.levels[-1] for site in self._spaces}
        best: dict[str, int] | None = None
        kept = dict(everything)
        if self._spent(everything, 0.0) <= budget:
            return everything
        low, high = -40.0, 20.0  # log2 of the price times the dense cost
        scale = 1.0 / max(1.0, self._spent(everything, 0.0))
        for _ in range(_STEPS):
            middle = (low + high) / 2
            price = 2.0**middle * scale
            trial = self._descend(dict(kept), price)
            if self._spent(trial, price) <= budget:
                high, best = middle, trial
            else:
                low, kept = middle, trial
        return None if best is None else self._filled(best, 2.0**high * scale, budget)

    def _descend(self, kept: dict[str, int], price: float) -> dict[str, int]:
        for _ in range(_SWEEPS):
            before = dict(kept)
            for site in self._spaces:
                name = site.space.name
                values = [
                    damage + self._around(site, {**kept, name: level}, price)
                    for level, damage in zip(site.levels, site.damages, strict=True)
                ]
                kept[name] = site.levels[int(np.argmin(values))]
            if kept == before:
                break
        return kept

    def _around(self, site: SpaceSite, kept: Kept, price: float) -> float:
        """What the layers at a space come to, at a price."""
        sites, layers = self._near[site.space.name]
        found = price * self._rest(layers, [site.space], kept)
        for near in sites:
            costs, damages = self._narrowing.front(near, kept, self._cost)
            found += float((damages + price * costs).min())
        return found

    def _spent(self, kept: Kept, price: float) -> float:
        """What all costs where the layers choose at a price."""
        total = self.rest(kept)
        for site in self._sites:
            costs, damages = self._narrowing.front(site, kept, self._cost)
            total += float(costs[int(np.argmin(damages + price * costs))])
        return total

    def rest(self, kept: Kept) -> float:
        """What the layers that are in no site cost, and the nodes that are no layers."""
        return self._rest(self._others, [site.space for site in self._spaces], kept)

    def _rest(self, layers: Sequence[Layer], spaces: Sequence[Space], kept: Kept) -> float:
        found = sum(self._narrowing.alone(layer, kept, self._cost) for layer in layers)
        table = self._narrowing.table
        if self._cost is in_time and table is not None:
            found += 1e9 * self._narrowing.widths.node_time(spaces, kept, table)
        return found

    def _filled(self, kept: dict[str, int], price: float, budget: float) -> dict[str, int]:
        """Widen spaces one level at a time while the budget lasts, those first that gain most for it."""
        spent = self._spent(kept, price)
        while True:
            best: tuple[float, str, int, float] | None = None
            for site in self._spaces:
                name, place = site.space.name, site.levels.index(kept[site.space.name])
                if place + 1 == len(site.levels):
                    continue
                level = site.levels[place + 1]
                cost = self._spent({**kept, name: level}, price)
                gain = float(site.damages[place] - site.damages[place + 1])
                if cost <= budget and gain > 0:
                    rate = gain / max(cost - spent, 1e-12)
                    best = max(best or (rate, name, level, cost), (rate, name, level, cost))
            if best is None:
                return kept
            _, name, level, spent = best
            kept = {**kept, name: level}
