"""Which units of a space to remove, and what the readers of the others make of it. NumPy only.

A *unit* is a channel, a hidden unit or the like; a *reader* computes `W x` on patches x with second moment S, in which
each unit has a set of entries I_u (the k x k taps of a channel). The columns of a unit that goes become zero, and all
others are refitted by least squares. With P = S^-1 the least that this can cost of the readers' squared outputs is

    cost(u) = tr(W_u (P_uu)^-1 W_u^T),    W' = W - W_u (P_uu)^-1 P_u,    P' = P - P_,u (P_uu)^-1 P_u,

(the optimal brain surgeon of Hassibi and Stork 1993, for groups of columns). The cheapest unit goes, W and P become W'
and P', and so on: one pass gives the order of removal and the exact error at every width, the costs added up.

With the Cholesky factor C of P_uu, `L = P_,u C^-T` and `Y = W_u C^-T` both steps are products, `P' = P - L L^T` and
`W' = W - Y L^T`, and the cost is |Y|^2. So they are put off: L and Y of many units are carried out at once, and until
then only what costs are told from is kept up to date, the blocks P_uu and (W^T W)_uu.

Readers are weighed alike: the error is the mean over them, each relative to the energy tr(W S W^T) of its own outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trp_onnx.lowrank.linalg import Array, scaled
from trp_onnx.lowrank.schemes import Moment
from trp_onnx.lowrank.separable import Separable

Units = NDArray[np.int64]

NO_UNIT = -1
"""Of an entry that belongs to no unit of the space: it always stays, and is refitted."""

_LEAST = 1e-5
"""Part of the mean variance that the diagonal of an indefinite moment is raised by at first."""

_PUT_OFF, _PUT_OFF_PART = 64, 16
"""Columns whose removal is put off until they are so many, or one in so many of all."""


@dataclass(frozen=True)
class Reader:
    """A layer that reads units of a space.

    Attributes:
        weight: (G, N, D).
        moment: What its errors are weighed with, positive definite: (G, D, D), or a product; its scale means nothing.
        unit: The unit of each entry of a patch, (G, D); `NO_UNIT` where it is of none.
    """

    weight: Array
    moment: Moment
    unit: Units


@dataclass(frozen=True)
class Elimination:
    """The units of a space from the cheapest to the dearest.

    Attributes:
        order: In order of removal, one of each group at a time: (size / groups, groups).
        errors: Relative squared error of the readers' outputs with k units of each group kept, the others refitted,
            k from 0: (size / groups + 1,). It falls to 0.
    """

    order: Units
    errors: Array

    def kept(self, k: int) -> Units:
        """The units that stay where each group keeps k, in ascending order."""
        return np.sort(self.order[len(self.order) - k :], axis=None)


def eliminate(readers: Sequence[Reader], size: int, groups: int = 1) -> Elimination:
    """Remove the cheapest unit of each group, again and again.

    Args:
        readers: All that read units of the space.
        size: How many units there are; those of one group are numbered side by side.
        groups: How many groups keep equally many units.
    """
    problems = [problem for reader in readers for problem in _surgeries(reader, len(readers))]
    costs, left = np.zeros(size), np.ones(size, dtype=bool)
    for problem in problems:
        costs[problem.units] += problem.costs
    steps = size // groups
    order, lost = np.zeros((steps, groups), np.int64), np.zeros(steps)
    for step in range(steps):
        for group in range(groups):
            members = slice(group * steps, (group + 1) * steps)
            unit = group * steps + int(np.argmin(np.where(left[members], costs[members], np.inf)))
            order[step, group], left[unit] = unit, False
            lost[step] += _remove(unit, problems, costs)
    return Elimination(order, np.append(np.cumsum(lost)[::-1], 0.0))


def _remove(unit: int, problems: Sequence[_Surgery], costs: Array) -> float:
    """Take a unit out everywhere; returns what it costs, and corrects the sums of costs by unit, (size,)."""
    lost = 0.0
    for problem in problems:
        if unit in problem:
            costs[problem.units] -= problem.costs
            lost += problem.remove(unit)
            costs[problem.units] += problem.costs
    return lost


def refit(reader: Reader, kept: Units) -> Array:
    """The weight with zeros for the units that went, and all others refitted: `W_K + W_R S_RK (S_KK)^-1`, (G, N, D)."""
    if isinstance(reader.moment, Separable):
        return unfolded(refit(folded(reader), kept), reader.weight.shape)
    found = np.zeros_like(reader.weight)
    for new, weight, moment, unit in zip(found, reader.weight, reader.moment, reader.unit, strict=True):
        stays = (unit == NO_UNIT) | np.isin(unit, kept)
        k, r = np.flatnonzero(stays), np.flatnonzero(~stays)
        new[:, k] = weight[:, k]
        if len(k) and len(r):
            new[:, k] += np.linalg.solve(moment[np.ix_(k, k)], moment[np.ix_(k, r)] @ weight[:, r].T).T
    return found


def error_of(reader: Reader, weight: Array) -> float:
    """Relative squared error of a reader's outputs with another weight, (G, N, D)."""
    whole = _energy(reader.weight, reader.moment)
    return _energy(weight - reader.weight, reader.moment) / whole if whole > 0 else 0.0


def _energy(weight: Array, moment: Moment) -> float:
    """tr(W S W^T), summed over groups."""
    if isinstance(moment, Separable):
        shape = (*weight.shape[:2], -1, *(len(axis) for axis in moment.axes))
        return float(np.square(moment.whitened(weight.reshape(shape))).sum())
    return float(((weight @ moment) * weight).sum(dtype=np.float64))


def folded(reader: Reader, *, whitened: bool = False) -> Reader:
    """Under a product `S_c (x) K` a reader of C columns, for K stands aside: (G, N taps, C); see `separable`."""
    moment = reader.moment
    assert isinstance(moment, Separable)
    groups, n, _ = reader.weight.shape
    channels = moment.channels.shape[-1]
    weight = reader.weight.reshape(groups, n, channels, *(len(axis) for axis in moment.axes))
    if whitened:
        weight = moment.along_axes(weight)
    taps = weight.reshape(groups, n, channels, -1)
    unit = reader.unit.reshape(groups, channels, -1)[..., 0]
    return Reader(np.swapaxes(taps, 2, 3).reshape(groups, -1, channels), moment.channels, unit)


def unfolded(weight: Array, shape: tuple[int, ...]) -> Array:
    """(G, N taps, C) -> (G, N, C taps)."""
    groups, n, _ = shape
    return np.swapaxes(weight.reshape(groups, n, -1, weight.shape[-1]), 2, 3).reshape(shape)


def _surgeries(reader: Reader, readers: int) -> list[_Surgery]:
    """One for each group of a reader, so scaled that costs are parts of the error."""
    plain = folded(reader, whitened=True) if isinstance(reader.moment, Separable) else reader
    assert isinstance(plain.moment, np.ndarray)
    weight, moment = scaled(plain.weight)[0], scaled(plain.moment)[0]
    whole = readers * _energy(weight, moment)
    if whole <= 0:
        return []
    groups = zip(weight / np.sqrt(whole), moment, plain.unit, strict=True)
    return [_Surgery(w, s, unit) for w, s, unit in groups if (unit != NO_UNIT).any()]


class _Surgery:
    """The columns of one weight that are left, refitted for those that went.

    Attributes:
        units: Those that are left, ascending, (U,).
        costs: Of removing each of them, (U,).
    """

    def __init__(self, weight: Array, moment: Array, unit: Units) -> None:
        """`weight` (N, D), `moment` (D, D), `unit` (D,)."""
        own = np.flatnonzero(unit != NO_UNIT)  # what the other columns become does not bear on any cost
        self._inverse = _inverse(_positive(moment))[np.ix_(own, own)]
        # Costs depend on W^T W alone.
        tall = len(weight) > len(own)
        self._weight: Array = np.asarray(np.linalg.qr(weight[:, own], mode="r")) if tall else weight[:, own]
        self._unit = unit[own]
        self.units = np.unique(self._unit)
        self._begin()
        self._tell()

    def _begin(self) -> None:
        """With nothing put off: where units stand, and their blocks."""
        size = len(self._unit)
        by_unit = np.argsort(self._unit, kind="stable")
        _, first, each = np.unique(self._unit[by_unit], return_index=True, return_counts=True)
        widest = int(each.max(initial=1))
        within = np.arange(widest)
        real = within < each[:, None]
        self._places: Units = np.full(real.shape, size)  # a place beyond the last column is none
        self._places[real] = by_unit[(first[:, None] + within)[real]]
        room = max(_PUT_OFF, size // _PUT_OFF_PART, widest)
        self._low, self._turned, self._count = np.zeros((size + 1, room)), np.zeros((len(self._weight), room)), 0
        near = np.where(real, self._places, 0)
        blocks = self._inverse[near[:, :, None], near[:, None, :]]
        self._inverses = np.where(real[:, :, None] & real[:, None, :], blocks, np.eye(widest))
        columns = self._weight.T[near] * real[:, :, None]
        self._grams = columns @ np.swapaxes(columns, 1, 2)

    def __contains__(self, unit: int) -> bool:
        return bool((self.units == unit).any())

    def remove(self, unit: int) -> float:
        """Take a unit out; returns what it costs."""
        row = int(np.searchsorted(self.units, unit))
        columns = self._places[row]
        columns = columns[columns < len(self._unit)]
        self.units, self._places = np.delete(self.units, row), np.delete(self._places, row, axis=0)
        self._inverses, self._grams = np.delete(self._inverses, row, axis=0), np.delete(self._grams, row, axis=0)
        cost = self._put_off(columns)
        if self._count + self._places.shape[1] > self._low.shape[1]:
            self._carry_out()
        self._tell()
        return cost

    def _put_off(self, columns: NDArray[np.int64]) -> float:
        """Add the columns to those whose removal is put off, and correct the blocks of the units that are left."""
        low, turned = self._low[:, : self._count], self._turned[:, : self._count]
        inverse = self._inverse[:, columns] - low[:-1] @ low[columns].T
        weight = self._weight[:, columns] - turned @ low[columns].T
        root = np.linalg.inv(np.linalg.cholesky(inverse[columns])).T
        own_low, own_turned = np.vstack([inverse @ root, np.zeros((1, len(columns)))]), weight @ root
        gram = own_turned.T @ own_turned
        felt = np.zeros_like(own_low)
        felt[:-1] = self._weight.T @ own_turned - low[:-1] @ (turned.T @ own_turned)
        near, across = own_low[self._places], felt[self._places]
        self._inverses -= near @ np.swapaxes(near, 1, 2)
        # |w - Y l|^2 = |w|^2 - 2 w^T Y l + |Y l|^2
        across = (across - 0.5 * near @ gram) @ np.swapaxes(near, 1, 2)
        self._grams -= across + np.swapaxes(across, 1, 2)
        self._low[:, self._count : self._count + len(columns)] = own_low
        self._turned[:, self._count : self._count + len(columns)] = own_turned
        self._count += len(columns)
        return float(np.trace(gram))

    def _carry_out(self) -> None:
        """Do what was put off, and forget the columns that went."""
        left = np.sort(self._places[self._places < len(self._unit)])
        low, turned = self._low[left, : self._count], self._turned[:, : self._count]
        self._inverse = self._inverse[np.ix_(left, left)]
        self._inverse -= low @ low.T
        self._weight = self._weight[:, left] - turned @ low.T
        self._unit = self._unit[left]
        self._begin()

    def _tell(self) -> None:
        if self._grams.shape[-1] == 1:
            costs = (self._grams / self._inverses)[:, 0, 0]
        else:
            costs = np.trace(np.linalg.solve(self._inverses, self._grams), axis1=1, axis2=2)
        self.costs = np.maximum(costs, 0.0)


def _positive(moment: NDArray[Any]) -> NDArray[Any]:
    """The moment, its diagonal raised where rounded sums have left it indefinite."""
    size, raised, part = len(moment), moment, _LEAST
    while True:
        try:
            np.linalg.cholesky(raised)
        except np.linalg.LinAlgError:
            raised = moment + part * np.trace(moment, dtype=np.float64) / size * np.eye(size)
            part *= 10
        else:
            return raised


def _inverse(moment: NDArray[Any]) -> Array:
    """Of a positive definite matrix, from its Cholesky factor: half the work of `numpy.linalg.inv`, and as exact."""
    from scipy.linalg.lapack import dpotrf, dpotri

    factor, _ = dpotrf(moment.astype(np.float64), lower=True)
    lower, _ = dpotri(factor, lower=True)
    lower = np.tril(lower)
    return np.asarray(lower + np.tril(lower, -1).T)
