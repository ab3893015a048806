"""The spectrum of each layer as the report draws it: what is left out at every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trp_onnx.graph.layers import Layer
from trp_onnx.lowrank.schemes import SCHEMES, candidates
from trp_onnx.planning import Decision, Evidence

POINTS = 128
"""At most so many ranks of a spectrum are kept."""


@dataclass(frozen=True)
class Spectrum:
    """One layer under one scheme.

    Attributes:
        scheme: Its name.
        ranks: Ascending from 0; for Tucker-2 of the mode with more ranks, the other one at its full rank.
        errors: Relative squared error at those ranks, of the weight or of the outputs.
        rank: The chosen one, of the same mode; None for a layer that is kept.
    """

    scheme: str
    ranks: tuple[int, ...]
    errors: tuple[float, ...]
    rank: int | None


def spectra_of(layers: Sequence[Layer], decisions: Sequence[Decision], evidence: Evidence) -> dict[str, Spectrum]:
    """Of every layer that can be factorised, by its name; before the weights are replaced by factors."""
    decided = {decision.name: decision for decision in decisions}
    found: dict[str, Spectrum] = {}
    for layer in layers:
        if layer.reason is not None or layer.geometry is None:
            continue
        decision = decided[layer.name]
        fitting = candidates("auto", layer.geometry.kernel)
        scheme = SCHEMES[decision.scheme] if decision.scheme else fitting[0]
        errors = evidence.errors(layer, [scheme])[scheme.name]
        rank = decision.rank[0] if decision.rank else None
        if errors.ndim == 2:
            mode = int(errors.shape[1] > errors.shape[0])
            rank = decision.rank[mode] if decision.rank else None
            errors = errors[-1] if mode else errors[:, -1]
        step = max(1, -(-len(errors) // POINTS))
        ranks = sorted({*range(0, len(errors), step), len(errors) - 1, *(() if rank is None else (rank,))})
        found[layer.name] = Spectrum(scheme.name, tuple(ranks), tuple(float(errors[r]) for r in ranks), rank)
    return found
