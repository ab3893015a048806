"""Ranks for a budget: one option a layer, the least total error within so many MACs.

    minimise sum_l error_l(option_l)   subject to   sum_l macs_l(option_l) <= budget

a multiple-choice knapsack, solved to proven optimality (relative gap 1e-6) by HiGHS's branch and bound,
over the options that no other option of the same layer beats in both cost and error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trp_onnx.errors import TrpOnnxError
from trp_onnx.planning.options import Option, pareto

GAP = 1e-6
TIME_LIMIT = 60.0
"""Seconds after which HiGHS returns the best it has; it needs about one for sixty layers."""


def allocate(choices: Sequence[Sequence[Option]], budget: int) -> list[Option] | None:
    """One option of each list, together within `budget` MACs, with the least sum of errors.

    Returns:
        The chosen options, or None when even the cheapest ones exceed the budget.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    fronts = [pareto(options) for options in choices]
    if sum(front[0].macs for front in fronts) > budget:
        return None
    if not fronts:
        return []
    flat = [option for front in fronts for option in front]
    owner = np.repeat(np.arange(len(fronts)), [len(front) for front in fronts])
    columns = np.arange(len(flat))
    one_each = csr_array((np.ones(len(flat)), (owner, columns)), shape=(len(fronts), len(flat)))
    # In units of the budget the row is well scaled whatever the network's size.
    cost = np.array([[option.macs / budget for option in flat]])
    solution = milp(
        np.array([option.error for option in flat]),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(cost, -np.inf, 1)],
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": GAP, "time_limit": TIME_LIMIT},
    )
    if solution.x is None:
        raise TrpOnnxError(f"the rank allocation found no solution within {TIME_LIMIT:.0f} s: {solution.message}")
    chosen = []
    for index, front in enumerate(fronts):
        weights = solution.x[owner == index]
        chosen.append(front[int(np.argmax(weights))])
    return _within(chosen, fronts, budget)


def _within(chosen: list[Option], fronts: Sequence[Sequence[Option]], budget: int) -> list[Option]:
    """HiGHS meets a constraint to 1e-6; give back the last few MACs where that was too many."""
    while sum(option.macs for option in chosen) > budget:
        steps = [
            (front[place - 1].error - option.error, index)
            for index, (front, option) in enumerate(zip(fronts, chosen, strict=True))
            if (place := front.index(option)) > 0
        ]
        _, index = min(steps)
        chosen[index] = fronts[index][fronts[index].index(chosen[index]) - 1]
    return chosen
