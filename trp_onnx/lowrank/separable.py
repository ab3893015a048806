"""Second moments of patches that are too wide for a matrix: a product of one of channels and one of each kernel axis.

The moment of patches (C, k1, k2) is taken for a Kronecker product of its marginals,

    S = S_c (x) K_1 (x) K_2,    S_c[c, c'] = sum_t E[x_ct x_c't],    K_1[i, i'] = sum_cj E[x_cij x_ci'j],

as that of a convolution's inputs nearly is: channels go together in the same way wherever they are looked at, and
neighbours in the same way in all channels (Grosse and Martens, "A Kronecker-factored approximate Fisher matrix for
convolution layers", arXiv 1602.01407, section 3.1, which takes neighbours for uncorrelated). That is C^2 + k1^2 + k2^2
numbers in place of (C k1 k2)^2. Each axis of a weight is in one factor alone, so that

    tr((W - W') S (W - W')^T) = |(W - W') S^1/2|^2

is the error of the factors of `W S^1/2`, whose axes are turned back one by one: what is best for a weight is best here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trp_onnx.lowrank.linalg import Array


@dataclass(frozen=True)
class Separable:
    """A moment as a product.

    Attributes:
        channels: S_c of each group, (G, C, C), positive definite.
        axes: K of each kernel axis, (k, k), positive definite.
    """

    channels: Array
    axes: tuple[Array, ...]

    def whitened(self, weight: Array) -> Array:
        """`W S^1/2`: (G, N, C, *k)."""
        found = np.einsum("gncx,gcd->gndx", weight.reshape(*weight.shape[:3], -1), _power(self.channels, 0.5))
        return self.along_axes(found.reshape(weight.shape))

    def along_axes(self, weight: Array) -> Array:
        """`W K^1/2`: whitened along the kernel axes alone, (G, N, C, *k)."""
        return _turned(weight, self.axes, 0.5)

    def turned_back(self, factors: Sequence[Array]) -> tuple[Array, ...]:
        """Factors of a weight from those of the whitened one, each (G, out, in, *its kernel), the first one first."""
        first = factors[0]
        back = np.einsum("gncx,gcd->gndx", first.reshape(*first.shape[:3], -1), _power(self.channels, -0.5))
        return tuple(_turned(factor, self.axes, -0.5) for factor in (back.reshape(first.shape), *factors[1:]))


def _turned(weight: Array, axes: Sequence[Array], power: float) -> Array:
    """A weight with each kernel axis that it has multiplied by a power of that axis's moment."""
    for place, moment in enumerate(axes, start=3):
        if weight.shape[place] > 1:
            weight = np.moveaxis(np.moveaxis(weight, place, -1) @ _power(moment, power), -1, place)
    return weight


def _power(moment: Array, power: float) -> Array:
    values, vectors = np.linalg.eigh(moment)
    values = np.maximum(values, np.finfo(np.float64).tiny) ** power
    return np.asarray((vectors * values[..., None, :]) @ np.swapaxes(vectors, -1, -2))
