"""What decides on the ranks as training goes.

    ranks     the planner's, fixed
    replan    the planner's exact allocation, on the spectra of the moment, for a MACs budget that falls
              from 1 to R over the first half of the training
    paper     the smallest k with  sum_{j>k} s_j^2 <= e sum_i s_i^2  on the matrix as it is. It was
              truncated before, so the rank falls like a ratchet until k < 1/e
    energy    the same against the matrix as it would be untruncated: what earlier steps cut away (C)
              counts as discarded,  sum_{j>k} s_j^2 + C <= e (sum_i s_i^2 + C).  No ratchet

With a MACs budget R, "paper" and "energy" go down until the network has at most R of its MACs, with the
last step shortened to end there, and hold those ranks. Ranks never rise again under "paper", "energy".
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

import msgspec
import numpy as np

from trp_onnx.errors import UsageError
from trp_onnx.lowrank import linalg
from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.schemes import Rank
from trp_onnx.planning.allocate import allocate
from trp_onnx.planning.options import Option
from trp_onnx.training.targets import Target

Spectra = list[tuple[Array, ...]]
"""Singular values of every mode of every target."""


class _Schedule(msgspec.Struct, frozen=True, tag_field="strategy"):
    """A way to decide on ranks.

    Raises:
        UsageError: A threshold or a budget is missing or out of range.

    Attributes:
        budget: R, the part of the network's MACs to keep; None for no such limit.
    """

    budget: float | None = None

    @property
    def strategy(self) -> str:
        """What users call it."""
        return str(self.__struct_config__.tag)

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 < self.budget < 1:
            raise UsageError(f"--macs is the part of the MACs to keep, between 0 and 1, not {self.budget}")

    def decide(self, ranks: Ranks, spectra: Spectra, progress: float) -> list[Rank]:
        """The ranks of the next projection.

        Args:
            ranks: As they are.
            spectra: Of all targets, as the weights are now.
            progress: Part of the training that is behind, 0 to 1.
        """
        raise NotImplementedError


class Fixed(_Schedule, frozen=True, tag="ranks"):
    """The planner's ranks."""

    def decide(self, ranks: Ranks, spectra: Spectra, progress: float) -> list[Rank]:
        """See `_Schedule`."""
        return ranks.current


class Replan(_Schedule, frozen=True, tag="replan"):
    """The planner's allocation, on the spectra of the moment.

    Attributes:
        align: Ranks are multiples of this.
    """

    align: int = 1

    def __post_init__(self) -> None:
        if self.budget is None:
            raise UsageError("training: the strategy replan needs --macs, the part of the MACs to keep")
        _Schedule.__post_init__(self)

    def decide(self, ranks: Ranks, spectra: Spectra, progress: float) -> list[Rank]:
        """See `_Schedule`."""
        assert self.budget is not None
        part = 1 - (1 - self.budget) * min(1.0, 2 * progress)
        choices = [_options(target, modes, self.align) for target, modes in zip(ranks.targets, spectra, strict=True)]
        chosen = allocate(choices, int(part * ranks.total_macs) - ranks.rest_macs)
        return ranks.current if chosen is None else [option.rank for option in chosen]


class Ratchet(_Schedule, frozen=True, tag="paper"):
    """The smallest ranks that discard at most a part of the energy of the weights as they are.

    Attributes:
        energy: e.
    """

    energy: float | None = None

    def __post_init__(self) -> None:
        if self.energy is None:
            raise UsageError(
                f"training: the strategy {self.strategy} needs --energy, the part to discard at a projection"
            )
        if not 0 < self.energy < 1:
            raise UsageError(f"--energy is the part of the energy to discard, between 0 and 1, not {self.energy}")
        _Schedule.__post_init__(self)

    def decide(self, ranks: Ranks, spectra: Spectra, progress: float) -> list[Rank]:
        """See `_Schedule`."""
        assert self.energy is not None
        found = self._at(ranks, spectra, self.energy)
        if self.budget is not None and ranks.ratio(found) <= self.budget:
            found = self._land(ranks, spectra, self.energy, self.budget)
            ranks.held = True
        ranks.count_cut(found, spectra)
        return found

    def _before(self, cut: float) -> float:
        """What counts as discarded already, of what earlier steps cut away."""
        return 0.0

    def _at(self, ranks: Ranks, spectra: Spectra, energy: float) -> list[Rank]:
        found = []
        for current, cuts, modes in zip(ranks.current, ranks.cut, spectra, strict=True):
            rank = []
            for k, cut, values in zip(current, cuts, modes, strict=True):
                tail, before = linalg.tail_energy(values), self._before(cut)
                allowed = tail + before <= energy * (tail[0] + before)
                wanted = int(np.argmax(allowed)) if allowed.any() else k
                rank.append(max(1, min(k, wanted)))
            found.append(tuple(rank))
        return found

    def _land(self, ranks: Ranks, spectra: Spectra, high: float, budget: float) -> list[Rank]:
        """The ranks of the smallest threshold that keeps the budget: the last step, no longer than needed."""
        low = 0.0
        for _ in range(50):
            middle = (low + high) / 2
            if ranks.ratio(self._at(ranks, spectra, middle)) <= budget:
                high = middle
            else:
                low = middle
        return self._at(ranks, spectra, high)


class Energy(Ratchet, frozen=True, tag="energy"):
    """The same, of the weights as they would be untruncated."""

    def _before(self, cut: float) -> float:
        return cut


RankSchedule = Fixed | Replan | Ratchet | Energy


def schedule_of(strategy: str, energy: float | None, budget: float | None, align: int = 1) -> RankSchedule:
    """The schedule that users call so.

    Raises:
        UsageError: A threshold or a budget is missing or out of range.
    """
    if strategy == "replan":
        return Replan(budget, align)
    if strategy == "ranks":
        return Fixed(budget)
    return (Energy if strategy == "energy" else Ratchet)(budget, energy)


class Ranks:
    """The ranks of all targets as training goes; `state` is what a checkpoint keeps.

    Attributes:
        targets: What is projected.
        total_macs: Of the dense network.
        rest_macs: Of the layers that are not projected.
        current: The ranks.
        cut: Energy that was cut away from each mode.
        held: Whether they stay as they are.
    """

    def __init__(
        self, targets: Sequence[Target], schedule: RankSchedule, total_macs: int = 0, rest_macs: int = 0
    ) -> None:  # fmt: skip
        """The planner's ranks for `Fixed`, full rank for the others."""
        self.targets, self._schedule = targets, schedule
        self.total_macs, self.rest_macs = total_macs, rest_macs
        self.held = isinstance(schedule, Fixed)
        self.current: list[Rank] = [target.rank if self.held else target.full_rank for target in targets]
        self.cut = [[0.0] * len(rank) for rank in self.current]

    def ratio(self, ranks: Sequence[Rank] | None = None) -> float:
        """MACs of the network at these ranks (the current ones), relative to the dense one."""
        ranks = self.current if ranks is None else ranks
        spent = sum(target.macs(rank) for target, rank in zip(self.targets, ranks, strict=True))
        return (self.rest_macs + spent) / max(1, self.total_macs)

    @property
    def within_budget(self) -> bool:
        """Whether the current ranks keep the limit, or there is none."""
        return self._schedule.budget is None or self.ratio() <= self._schedule.budget + 1e-12

    def update(self, spectra: Spectra, progress: float) -> list[Rank]:
        """Decide before a projection; same spectra, same ranks, on every worker.

        Args:
            spectra: Of all targets, as the weights are now.
            progress: Part of the training that is behind, 0 to 1.
        """
        if self.held:
            return self.current
        self.current = self._schedule.decide(self, spectra, progress)
        return self.current

    def count_cut(self, ranks: Sequence[Rank], spectra: Spectra) -> None:
        """Add what going down to `ranks` cuts away."""
        for index, (rank, modes) in enumerate(zip(ranks, spectra, strict=True)):
            for mode, (k, values) in enumerate(zip(rank, modes, strict=True)):
                if k < self.current[index][mode]:
                    self.cut[index][mode] += float(linalg.tail_energy(values)[k])

    def state(self) -> dict[str, Any]:
        """Everything that training changed, as JSON values."""
        return {"current": self.current, "cut": self.cut, "held": self.held}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.current = [tuple(rank) for rank in state["current"]]
        self.cut = [list(cuts) for cuts in state["cut"]]
        self.held = state["held"]


def _options(target: Target, modes: tuple[Array, ...], align: int) -> list[Option]:
    """Every rank of a pair that pays, and the full one; Tucker-2 moves both modes together."""
    full = target.full_rank
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
