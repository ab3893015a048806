"""The spectrum of each layer as the report draws it: what is left out at every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trp_onnx.graph.layers import Layer
from trp_onnx.lowrank.schemes import SCHEMES, candidates
from trp_onnx.planning import Decision, Evidence

POINTS = 128
"""At most so many ranks of a spectrum are drawn."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """One layer under one scheme.

    Attributes:
        scheme: Its name.
        errors: Relative squared error at every rank from 0 on, (full rank + 1,), of the weight or of the outputs; for
            Tucker-2 of the mode with more ranks, the other one at its full rank.
        rank: The chosen one, of the same mode; None for a layer that is kept.
    """

    scheme: str
    errors: np.ndarray
    rank: int | None

    @property
    def full_rank(self) -> int:
        """The largest rank."""
        return len(self.errors) - 1

    def points(self) -> tuple[list[int], list[float]]:
        """Ranks and errors of a curve that is drawn: evenly spaced, with both ends and the chosen rank."""
        step = max(1, -(-len(self.errors) // POINTS))
        chosen = set() if self.rank is None else {self.rank}
        ranks = sorted({*range(0, len(self.errors), step), self.full_rank, *chosen})
        return ranks, self.errors[ranks].tolist()


def spectra_of(layers: Sequence[Layer], decisions: Sequence[Decision], evidence: Evidence) -> dict[str, Spectrum]:
    """Of every layer that can be factorised, by its name; before the weights are replaced by factors."""
    decided = {decision.name: decision for decision in decisions}
    found: dict[str, Spectrum] = {}
    for layer in layers:
        if layer.reason is not None or layer.geometry is None:
            continue
        decision = decided[layer.name]
        scheme = SCHEMES[decision.scheme] if decision.scheme else candidates("auto", layer.geometry.kernel)[0]
        errors = evidence.errors(layer, [scheme])[scheme.name]
        rank = decision.rank[0] if decision.rank else None
        if errors.ndim == 2:
            mode = int(errors.shape[1] > errors.shape[0])
            rank = decision.rank[mode] if decision.rank else None
            errors = (errors[-1] if mode else errors[:, -1]).copy()  # no view: that would keep the whole
        found[layer.name] = Spectrum(scheme.name, errors, rank)
    return found
