"""The projection step: every m steps each planned layer goes to the nearest weight of its rank.

Trained Rank Pruning (arXiv 1812.02402, eq. 2 and 4): before the forward pass of every m-th step

    W <- fold(U_k U_k^T M),    M = unfold(W) under the layer's scheme, (C kh) x (N kw) for spatial, ...

and the gradient is taken there. k comes from one of four strategies:

    ranks     the planner's, fixed
    replan    the planner's exact allocation, on the spectra of the moment, for a MACs budget that falls
              from 1 to R over the first half of the training
    paper     the smallest k with  sum_{j>k} s_j^2 <= e sum_i s_i^2  on the matrix as it is. It was
              truncated before, so the rank falls like a ratchet until k < 1/e
    energy    the same against the matrix as it would be untruncated: what earlier steps cut away (C)
              counts as discarded,  sum_{j>k} s_j^2 + C <= e (sum_i s_i^2 + C).  No ratchet

With a MACs budget R, "paper" and "energy" go down until the network has at most R of its MACs, with the
last step shortened to end there, and hold those ranks. Ranks never rise again under "paper", "energy".

The nuclear-norm sub-gradient lambda U_k V_k^T (eq. 6) comes out of the same decomposition; at the
projected weight it is exact.

Tucker-2 truncates one mode after the other; spectra of both are those of the weight before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np

from trp_onnx.errors import UsageError
from trp_onnx.graph.layers import Layer, Layout
from trp_onnx.lowrank import linalg
from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.schemes import SCHEMES, Geometry, Rank
from trp_onnx.planning.allocate import allocate
from trp_onnx.planning.options import Option, sites_of

Spectra = list[tuple[Array, ...]]
"""Singular values of every mode of every target."""


@dataclass(frozen=True)
class Target:
    """A weight that is projected.

    Attributes:
        layer: The layer that gave it its name.
        weight: Name of the initializer.
        layout: How it is stored.
        scheme: Name of the scheme.
        geometries: Of all layers that share it; empty when their MACs are not known.
        rank: The planner's rank, for the strategy "ranks".
    """

    layer: str
    weight: str
    layout: Layout
    scheme: str
    geometries: tuple[Geometry, ...]
    rank: Rank

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates as it is."""
        return sum(geometry.macs for geometry in self.geometries)

    def macs(self, rank: Rank) -> int:
        """Multiply-accumulates at a rank; those of the dense layer where that costs less."""
        scheme = SCHEMES[self.scheme]
        return sum(min(geometry.macs, int(scheme.macs(geometry, rank))) for geometry in self.geometries)


def targets_of(layers: Sequence[Layer], chosen: Mapping[str, tuple[str, Rank]]) -> list[Target]:
    """The weights behind some layers; layers that share one are one target."""
    targets = []
    for group in sites_of(layers):
        owner = group[0]
        if owner.name not in chosen:
            continue
        scheme, rank = chosen[owner.name]
        assert owner.constant is not None and owner.layout is not None
        geometries = tuple(layer.geometry for layer in group if layer.geometry is not None and layer.sized)
        targets.append(Target(owner.name, owner.constant.value.name or "", owner.layout, scheme, geometries, rank))
    return targets


@dataclass(frozen=True)
class Projection:
    """What is projected, when, and to which ranks.

    Attributes:
        targets: The weights; none for training without projection.
        strategy: See the module.
        every: m.
        energy: e of "paper" and "energy".
        budget: R, the part of the network's MACs to keep; None for no such limit.
        align: "replan" takes multiples of this.
        total_macs: Of the dense network.
        rest_macs: Of the layers that are not projected.
        nuclear: lambda; 0 for none.
        nuclear_every_step: Whether lambda / m is added on every step.
    """

    targets: tuple[Target, ...] = ()
    strategy: str = "ranks"
    every: int = 1
    energy: float | None = None
    budget: float | None = None
    align: int = 1
    total_macs: int = 0
    rest_macs: int = 0
    nuclear: float = 0.0
    nuclear_every_step: bool = False


def check_strategy(strategy: str, energy: float | None, budget: float | None) -> None:
    """Refuse a strategy without what it needs.

    Raises:
        UsageError: A threshold or a budget is missing or out of range.
    """
    if strategy in ("paper", "energy") and energy is None:
        raise UsageError(f"training: the strategy {strategy} needs --energy, the part to discard at a projection")
    if strategy == "replan" and budget is None:
        raise UsageError("training: the strategy replan needs --macs, the part of the MACs to keep")
    if energy is not None and not 0 < energy < 1:
        raise UsageError(f"--energy is the part of the energy to discard, between 0 and 1, not {energy}")
    if budget is not None and not 0 < budget < 1:
        raise UsageError(f"--macs is the part of the MACs to keep, between 0 and 1, not {budget}")


def spectra_of(target: Target, stored: np.ndarray) -> tuple[Array, ...]:
    """Singular values of each mode of a stored weight, (G, n) each."""
    weight = target.layout.to_canonical(stored)
    return tuple(linalg.singular_values(matrix) for matrix in SCHEMES[target.scheme].unfold(weight))


def project(target: Target, stored: np.ndarray, rank: Rank, *, nuclear: bool = False) -> tuple[Array, Array | None]:
    """The nearest weight of a rank, and the nuclear norm's sub-gradient there, both as stored."""
    scheme, weight = SCHEMES[target.scheme], target.layout.to_canonical(stored)
    shape = weight.shape
    direction = np.zeros(shape) if nuclear else None
    for mode, k in enumerate(rank):
        parts = linalg.decompose(scheme.unfold(weight)[mode])
        weight = scheme.fold(parts.truncate(k), shape, mode)
        if direction is not None:
            direction += scheme.fold(parts.polar(k), shape, mode)
    back = target.layout.from_canonical
    return back(weight), None if direction is None else back(direction)


class Ranks:
    """The ranks of all targets as training goes; `state` is what a checkpoint keeps."""

    def __init__(self, projection: Projection) -> None:
        """The planner's ranks for "ranks", full rank for the others."""
        self._projection = projection
        self.targets = projection.targets
        given = projection.strategy == "ranks"
        self.current: list[Rank] = [target.rank if given else _full(target) for target in self.targets]
        self._strategy = projection.strategy
        self._energy = projection.energy or 0.0
        self._budget = projection.budget
        self._cut = [[0.0] * len(rank) for rank in self.current]
        self._held = given

    def ratio(self, ranks: Sequence[Rank] | None = None) -> float:
        """MACs of the network at these ranks (the current ones), relative to the dense one."""
        ranks = self.current if ranks is None else ranks
        spent = sum(target.macs(rank) for target, rank in zip(self.targets, ranks, strict=True))
        return (self._projection.rest_macs + spent) / max(1, self._projection.total_macs)

    @property
    def within_budget(self) -> bool:
        """Whether the current ranks keep the limit, or there is none."""
        return self._budget is None or self.ratio() <= self._budget + 1e-12

    def update(self, spectra: Spectra, progress: float) -> list[Rank]:
        """Decide before a projection; same spectra, same ranks, on every worker.

        Args:
            spectra: Of all targets, as the weights are now.
            progress: Part of the training that is behind, 0 to 1.
        """
        if self._held:
            return self.current
        if self._strategy == "replan":
            self._replan(spectra, progress)
            return self.current
        ranks = self._by_energy(spectra, self._energy)
        if self._budget is not None and self.ratio(ranks) <= self._budget:
            ranks = self._land(spectra)
            self._held = True
        for index, (rank, modes) in enumerate(zip(ranks, spectra, strict=True)):
            for mode, (k, values) in enumerate(zip(rank, modes, strict=True)):
                if k < self.current[index][mode]:
                    self._cut[index][mode] += float(linalg.tail_energy(values)[k])
        self.current = ranks
        return ranks

    def _by_energy(self, spectra: Spectra, energy: float) -> list[Rank]:
        ranks = []
        for current, cuts, modes in zip(self.current, self._cut, spectra, strict=True):
            rank = []
            for k, cut, values in zip(current, cuts, modes, strict=True):
                tail = linalg.tail_energy(values)
                before = cut if self._strategy == "energy" else 0.0
                allowed = tail + before <= energy * (tail[0] + before)
                wanted = int(np.argmax(allowed)) if allowed.any() else k
                rank.append(max(1, min(k, wanted)))
            ranks.append(tuple(rank))
        return ranks

    def _land(self, spectra: Spectra) -> list[Rank]:
        """The ranks of the smallest threshold that keeps the budget: the last step, no longer than needed."""
        assert self._budget is not None
        low, high = 0.0, self._energy
        for _ in range(50):
            middle = (low + high) / 2
            if self.ratio(self._by_energy(spectra, middle)) <= self._budget:
                high = middle
            else:
                low = middle
        return self._by_energy(spectra, high)

    def _replan(self, spectra: Spectra, progress: float) -> None:
        assert self._budget is not None
        part = 1 - (1 - self._budget) * min(1.0, 2 * progress)
        choices = [
            _options(target, modes, self._projection.align) for target, modes in zip(self.targets, spectra, strict=True)
        ]
        chosen = allocate(choices, int(part * self._projection.total_macs) - self._projection.rest_macs)
        if chosen is not None:
            self.current = [option.rank for option in chosen]

    def state(self) -> dict[str, Any]:
        """Everything that training changed, as JSON values."""
        return {"current": self.current, "cut": self._cut, "held": self._held}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.current = [tuple(rank) for rank in state["current"]]
        self._cut = [list(cuts) for cuts in state["cut"]]
        self._held = state["held"]


def _full(target: Target) -> Rank:
    return SCHEMES[target.scheme].full_rank(target.geometries[0]) if target.geometries else target.rank


def _options(target: Target, modes: tuple[Array, ...], align: int) -> list[Option]:
    """Every rank of a pair that pays, and the full one; Tucker-2 moves both modes together."""
    full = _full(target)
    dense = Option(None, full, target.dense_macs, 0, 0.0)
    tails = [linalg.relative_tail(values) for values in modes]
    found = [dense]
    longest = max(full)
    # A rank of every group: together they fill the kernel's block.
    align //= gcd(align, target.geometries[0].groups) if target.geometries else 1
    for step in range(align, longest + 1, align):
        rank = tuple(max(1, min(size, round(step * size / longest))) for size in full)
        macs = target.macs(rank)
        if macs < target.dense_macs:
            error = min(1.0, sum(float(tail[k]) for tail, k in zip(tails, rank, strict=True)))
            found.append(Option(target.scheme, rank, macs, 0, error))
    return found
