"""Ranks for a budget: one option a layer, the least total damage within so many MACs, or so much time.

    minimise sum_l error_l(option_l)   subject to   sum_l cost_l(option_l) <= budget

a multiple-choice knapsack. The Lagrangian dual

    g(lam) = sum_l min_o (error_l(o) + lam cost_l(o)) - lam budget   <=   the optimum   for every lam >= 0

is maximised by bisection; its last feasible minimiser is a solution whose distance to the optimum is at
most the gap to `g`. Every option whose reduced cost exceeds that gap is in no better solution and is
dropped (Kellerer, Pferschy and Pisinger, "Knapsack Problems", 2004, ch. 11). Layers that have several left go
through dynamic programming over the budget, in the greatest common unit of the costs: coarsely first, which narrows
the gap and drops more options, then in up to a million steps, fewer where layers are hundreds and the gap is small
beside their sum. That is exact where the costs' common unit is no finer; otherwise costs are rounded up to it, and the
result is within the gap all the same.

(HiGHS solves the same problem, but took over a minute for some budgets of a 56-layer network and prints to
stdout; this takes a few hundredths of a second.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trp_onnx.planning.options import Cost, Option, in_macs, pareto

STEPS = (20_000, 1_000_000)
"""At most so many steps of the budget are told apart, in the first and in the second pass."""

MOST_CELLS = 60_000_000
"""Steps times layers that dynamic programming goes through: two bytes each, and nanoseconds."""


def allocate(choices: Sequence[Sequence[Option]], budget: int, cost: Cost = in_macs) -> list[Option] | None:
    """One option of each list, together within `budget`, with the least sum of damages.

    Returns:
        The chosen options, or None when even the cheapest ones exceed the budget.
    """
    fronts = [pareto(options, cost) for options in choices]
    if sum(cost(front[0]) for front in fronts) > budget:
        return None
    costs = [np.array([cost(option) for option in front], dtype=np.float64) for front in fronts]
    errors = [np.array([option.damage for option in front]) for front in fronts]
    price, picks = _dual(costs, errors, budget)
    bound = _bound(costs, errors, price, budget)
    best = [front[pick] for front, pick in zip(fronts, picks, strict=True)]
    for steps in STEPS:
        gap = _total(best) - bound
        kept = _within_gap(costs, errors, price, gap)
        plan = _dynamic_program(fronts, kept, budget, steps, cost)
        if plan is not None and _total(plan) < _total(best):
            best = plan
    return best


def _total(plan: Sequence[Option]) -> float:
    return sum(option.damage for option in plan)


Vectors = Sequence[NDArray[np.float64]]


def _picks(costs: Vectors, errors: Vectors, price: float) -> list[int]:
    return [int(np.argmin(error + price * cost)) for cost, error in zip(costs, errors, strict=True)]


def _dual(costs: Vectors, errors: Vectors, budget: int) -> tuple[float, list[int]]:
    """The price of a MAC at which the budget is just met, and the feasible choice at that price."""

    def spent(picks: list[int]) -> float:
        return sum(float(cost[pick]) for cost, pick in zip(costs, picks, strict=True))

    free = _picks(costs, errors, 0.0)
    if spent(free) <= budget:
        return 0.0, free
    # Above this price no error is worth a MAC: every layer takes its cheapest option.
    low, high = 0.0, 1.0 + sum(float(error.max()) for error in errors)
    picks = [0] * len(costs)
    for _ in range(200):
        middle = (low + high) / 2
        trial = _picks(costs, errors, middle)
        if spent(trial) <= budget:
            high, picks = middle, trial
        else:
            low = middle
        if high - low <= 1e-12 * high:
            break
    return high, picks


def _bound(costs: Vectors, errors: Vectors, price: float, budget: int) -> float:
    """The Lagrangian dual: no solution has less error."""
    return sum(float((e + price * c).min()) for c, e in zip(costs, errors, strict=True)) - price * budget


def _within_gap(costs: Vectors, errors: Vectors, price: float, gap: float) -> list[NDArray[np.intp]]:
    """Indices of the options that a solution closer to the bound than `gap` may hold."""
    slack = max(0.0, gap) * (1 + 1e-9) + 1e-15  # of thousands of layers rounding alone may make a gap negative
    reduced = [error + price * cost for cost, error in zip(costs, errors, strict=True)]
    return [np.flatnonzero(values - values.min() <= slack) for values in reduced]


def _dynamic_program(
    fronts: Sequence[Sequence[Option]], kept: Sequence[NDArray[np.intp]], budget: int, steps: int, cost: Cost
) -> list[Option] | None:
    """The best choice among the kept options; None when rounding the costs up leaves none."""
    plan = [front[int(indices[0])] for front, indices in zip(fronts, kept, strict=True)]
    undecided = [layer for layer, indices in enumerate(kept) if len(indices) > 1]
    budget -= sum(cost(option) for layer, option in enumerate(plan) if len(kept[layer]) == 1)
    if budget < 0 or not undecided:
        return plan if budget >= 0 else None
    unit = math.gcd(*(cost(fronts[layer][i]) for layer in undecided for i in kept[layer])) or 1
    unit *= math.ceil(budget / unit / min(steps, max(1, MOST_CELLS // len(undecided)))) or 1
    size = budget // unit + 1
    best = np.zeros(size)  # least error with at most so many units spent
    came_from: list[NDArray[np.int16]] = []
    for layer in undecided:
        improved = np.full(size, np.inf)
        choice = np.full(size, -1, dtype=np.int16)  # its place among the kept
        for place, i in enumerate(kept[layer]):
            option = fronts[layer][i]
            step = -(-cost(option) // unit)
            if step >= size:
                continue
            candidate = best[: size - step] + option.damage
            better = candidate < improved[step:]
            improved[step:][better] = candidate[better]
            choice[step:][better] = place
        best = improved
        came_from.append(choice)
    if not np.isfinite(best[-1]):
        return None
    left = size - 1
    for layer, choice in zip(reversed(undecided), reversed(came_from), strict=True):
        plan[layer] = fronts[layer][int(kept[layer][int(choice[left])])]
        left -= -(-cost(plan[layer]) // unit)
    return plan
