"""The projection step: every m steps each planned layer goes to the nearest weight of its rank.

Trained Rank Pruning (arXiv 1812.02402, eq. 2 and 4): before the forward pass of every m-th step

    W <- fold(U_k U_k^T M),    M = unfold(W) under the layer's scheme, (C kh) x (N kw) for spatial, ...

and the gradient is taken there. What decides on k, says `schedules`.

The nuclear-norm sub-gradient lambda U_k V_k^T (eq. 6) comes out of the same decomposition; at the
projected weight it is exact.

Tucker-2 truncates one mode after the other; spectra of both are those of the weight before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from trp_onnx.lowrank import linalg
from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.schemes import SCHEMES, Rank
from trp_onnx.training.schedules import Fixed, RankSchedule
from trp_onnx.training.targets import Target


@dataclass(frozen=True)
class Projection:
    """What is projected, when, and to which ranks.

    Attributes:
        targets: The weights; none for training without projection.
        schedule: What decides on the ranks.
        every: m.
        total_macs: Of the dense network.
        rest_macs: Of the layers that are not projected.
        nuclear: lambda; 0 for none.
        nuclear_every_step: Whether lambda / m is added on every step.
    """

    targets: tuple[Target, ...] = ()
    schedule: RankSchedule = field(default_factory=Fixed)
    every: int = 1
    total_macs: int = 0
    rest_macs: int = 0
    nuclear: float = 0.0
    nuclear_every_step: bool = False


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
