"""The ways to split one layer into a chain of cheaper ones. Pure maths on weights; knows no ONNX.

Every layer is seen as a grouped convolution with weight

    W: (G, N, C, *k)    groups, output and input channels of one group, kernel

(Gemm and MatMul are the case of no kernel axes). A scheme chains 2 or 3 layers of `rank` channels in
between, and says for each kernel axis which of them carries it:

    name             chain                      unfolding(s)
    spatial          kx1 -> 1xk                 (C kh) x (N kw)
    spatial-mirror   1xk -> kx1                 (C kw) x (N kh)
    channel          kxk -> 1x1                 (C kh kw) x N
    channel-mirror   1x1 -> kxk                 C x (N kh kw)
    tucker2          1x1 -> kxk -> 1x1          C x (N kh kw)  and  N x (C kh kw)
    svd              1x1 -> 1x1                 C x N

Spatial and channel are TRP2 and TRP1 of arXiv 1812.02402 (after Jaderberg et al. 2014 and Zhang et al.
2015); Tucker-2 is Kim et al. 2016, by HOSVD. For pairs the weight error at rank r is the tail of the
unfolding's spectrum. For Tucker-2 with orthonormal bases it is the energy outside the core's leading
(r_in, r_out) block, so one full core gives the error at every pair of ranks.

Errors and factors are those of the weight, or, given the second moment of the layer's inputs, those of its
outputs (see `output_fit`). The moment of a patch is `(G, D, D)`, D = C times the kernel, in the order of W.

Convolution acts axis by axis, so each factor takes stride, dilation and padding of the axes it carries
and leaves the others alone: exact at full rank for any geometry. In a transposed convolution the same
holds with the order of sizes reversed. An axis of kernel 1 goes to the end where its stride makes the
maps smaller: first in a convolution, last in a transposed one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trp_onnx.lowrank import linalg, output_fit
from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.separable import Separable

Rank = tuple[int, ...]
"""One rank for a pair, (r_in, r_out) for Tucker-2."""

Moment = Array | Separable
"""What errors of a weight are weighed with: (G, D, D), or a product."""


@dataclass(frozen=True)
class Geometry:
    """What a layer's cost depends on.

    Attributes:
        groups: G; a batched MatMul has one group for each matrix of its constant.
        out_channels: N, of one group.
        in_channels: C, of one group.
        kernel: k; empty for Gemm and MatMul.
        in_size: Spatial size of the input, one entry a kernel axis.
        out_size: Spatial size of the output.
        repeats: How often the layer runs over such a map: batch, or rows of a Gemm.
        transposed: True for ConvTranspose.
    """

    groups: int
    out_channels: int
    in_channels: int
    kernel: tuple[int, ...] = ()
    in_size: tuple[int, ...] = ()
    out_size: tuple[int, ...] = ()
    repeats: int = 1
    transposed: bool = False

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense layer."""
        return int(_chain_macs(self, (0,) * len(self.kernel), (self.in_channels, self.out_channels)))

    @property
    def depthwise(self) -> bool:
        """Whether every input channel of a convolution has a group of its own: channels are groups there."""
        return self.groups > 1 and self.in_channels == 1 and bool(self.kernel)

    @property
    def parameters(self) -> int:
        """Entries of the dense weight."""
        return self.groups * self.out_channels * self.in_channels * prod(self.kernel)


def _chain_macs(geometry: Geometry, place: Sequence[int], widths: Sequence[Any]) -> Any:
    """MACs of a chain of layers; layer f maps widths[f] to widths[f + 1] channels.

    A convolution multiplies once for each *output* position, a transposed one for each *input* position.
    """
    total: Any = 0
    for f in range(len(widths) - 1):
        positions = taps = 1
        for axis, carrier in enumerate(place):
            taps *= geometry.kernel[axis] if carrier == f else 1
            reached = carrier < f if geometry.transposed else carrier <= f
            positions *= geometry.out_size[axis] if reached else geometry.in_size[axis]
        total = total + positions * taps * widths[f] * widths[f + 1]
    return total * geometry.groups * geometry.repeats


class Scheme(ABC):
    """One way to split a weight. Stateless: use the instances in `SCHEMES`."""

    name: str
    parts: tuple[str, ...]
    """Names of the factors, in the order in which they run; suffixes of the new nodes."""

    @property
    def modes(self) -> int:
        """How many ranks it has."""
        return len(self.parts) - 1

    def step(self, geometry: Geometry, step: int) -> int:
        """Of so many channels in one step of the kernels' time, the ranks of one group."""
        return step // gcd(step, geometry.groups)

    @abstractmethod
    def fits(self, kernel: Sequence[int]) -> bool:
        """Whether the scheme means something for a kernel of this shape."""

    @abstractmethod
    def place(self, kernel: Sequence[int], *, transposed: bool = False) -> tuple[int, ...]:
        """For each kernel axis the index of the factor that carries it."""

    @abstractmethod
    def unfold(self, weight: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """W (G, N, C, *k) -> one stack of matrices (G, rows, cols) for each rank of the scheme."""

    @abstractmethod
    def fold(self, matrix: Array, shape: tuple[int, ...], index: int = 0) -> Array:
        """The inverse: `fold(unfold(W)[i], W.shape, i)` is W."""

    @abstractmethod
    def errors(self, weight: Array, moment: Array | None = None) -> Array:
        """Relative squared error at every rank: `errors(W)[rank]`, 1 at rank 0, 0 at full rank."""

    @abstractmethod
    def curves(self, weight: NDArray[Any]) -> dict[str, Array]:
        """`errors` of a weight alone, whose entries are near 1, with those that come along, by scheme name.

        Args:
            weight: (G, N, C, *k), see `linalg.scaled`; in float32 where rounded ones will do.
        """

    @abstractmethod
    def split(self, weight: Array, rank: Rank, moment: Array | None = None, *, exact: bool = True) -> tuple[Array, ...]:
        """W (G, N, C, *k) -> the factors' weights, each (G, out, in, *its kernel), in running order.

        Without `exact` those of a moment need not be the best, see `output_fit`.
        """

    def errors_by(self, weight: Array, moment: Moment | None) -> Array:
        """`errors` under a moment of either kind."""
        if isinstance(moment, Separable):
            return self.errors(moment.whitened(weight))
        return self.errors(weight, moment)

    def split_by(self, weight: Array, rank: Rank, moment: Moment | None, *, exact: bool = True) -> tuple[Array, ...]:
        """`split` under a moment of either kind."""
        if isinstance(moment, Separable):
            return moment.turned_back(self.split(moment.whitened(weight), rank))
        return self.split(weight, rank, moment, exact=exact)

    def merge(self, factors: Sequence[Array]) -> Array:
        """The one weight (G, N, C, *k) that the factors stand for."""
        # On every kernel axis one of two factors is 1 wide, so a product of matrices at each tap does it.
        merged, *rest = [np.moveaxis(factor, (1, 2), (-2, -1)) for factor in factors]
        for factor in rest:
            merged = factor @ merged
        return np.moveaxis(merged, (-2, -1), (1, 2))

    def full_rank(self, geometry: Geometry) -> Rank:
        """The largest rank on each mode."""
        place = self.place(geometry.kernel)
        first = geometry.in_channels * prod(k for k, p in zip(geometry.kernel, place, strict=True) if p == 0)
        second = geometry.out_channels * prod(k for k, p in zip(geometry.kernel, place, strict=True) if p)
        return (min(first, second),)

    def macs(self, geometry: Geometry, rank: Sequence[Any]) -> Any:
        """MACs of the chain; `rank` may hold arrays."""
        place = self.place(geometry.kernel, transposed=geometry.transposed)
        return _chain_macs(geometry, place, (geometry.in_channels, *rank, geometry.out_channels))

    def parameters(self, geometry: Geometry, rank: Sequence[Any]) -> Any:
        """Entries of the factors' weights; `rank` may hold arrays."""
        place = self.place(geometry.kernel, transposed=geometry.transposed)
        widths = (geometry.in_channels, *rank, geometry.out_channels)
        return geometry.groups * sum(
            widths[f] * widths[f + 1] * prod(k for k, p in zip(geometry.kernel, place, strict=True) if p == f)
            for f in range(len(widths) - 1)
        )

    def shapes(self, geometry: Geometry, rank: Rank) -> list[tuple[int, ...]]:
        """Shapes of the factors' weights, (G, out, in, *kernel), in running order."""
        place = self.place(geometry.kernel)
        widths = (geometry.in_channels, *rank, geometry.out_channels)
        return [
            (geometry.groups, widths[f + 1], widths[f], *_unit(geometry.kernel, place, f))
            for f in range(len(widths) - 1)
        ]

    def vbmf_rank(self, weight: Array) -> Rank:
        """The rank that variational Bayes finds in each unfolding, at least 1."""
        return tuple(
            max(1, linalg.vbmf_rank(linalg.singular_values(m), m.shape[-2], m.shape[-1])) for m in self.unfold(weight)
        )


def _unit(kernel: Sequence[int], place: Sequence[int], part: int) -> tuple[int, ...]:
    """The kernel that factor `part` keeps: 1 on every axis that another factor carries."""
    return tuple(k if p == part else 1 for k, p in zip(kernel, place, strict=True))


class PairScheme(Scheme):
    """Two factors: `W[n, c, k] = sum_r second[n, r, k2] first[r, c, k1]`, k split over k1 and k2."""

    def __init__(self, name: str, parts: tuple[str, str], axes: str) -> None:
        """`axes`: which axes with kernel > 1 the first factor carries: "none", "all", "head" or "rest"."""
        self.name = name
        self.parts = parts
        self._axes = axes

    def fits(self, kernel: Sequence[int]) -> bool:  # noqa: D102
        wide = sum(k > 1 for k in kernel)
        if self.name == "svd":
            return wide == 0
        return wide >= (2 if self._axes in ("head", "rest") else 1)

    def place(self, kernel: Sequence[int], *, transposed: bool = False) -> tuple[int, ...]:  # noqa: D102
        wide = [axis for axis, k in enumerate(kernel) if k > 1]
        first = {"none": [], "all": wide, "head": wide[:1], "rest": wide[1:]}[self._axes]
        second = set(wide) - set(first)
        cheap_end = 1 if transposed else 0
        return tuple(0 if axis in first else 1 if axis in second else cheap_end for axis in range(len(kernel)))

    def _order(self, kernel: Sequence[int]) -> tuple[list[int], int]:
        """Permutation of W's axes to (G, C, k1..., N, k2...) and where N stands in it."""
        place = self.place(kernel)
        first = [3 + axis for axis, p in enumerate(place) if p == 0]
        second = [3 + axis for axis, p in enumerate(place) if p == 1]
        return [0, 2, *first, 1, *second], 2 + len(first)

    def unfold(self, weight: NDArray[Any]) -> tuple[NDArray[Any], ...]:  # noqa: D102
        order, split = self._order(weight.shape[3:])
        permuted = weight.transpose(order)
        return (permuted.reshape(weight.shape[0], prod(permuted.shape[1:split]), -1),)

    def fold(self, matrix: Array, shape: tuple[int, ...], index: int = 0) -> Array:  # noqa: D102
        order, _ = self._order(shape[3:])
        return matrix.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))

    def errors(self, weight: Array, moment: Array | None = None) -> Array:  # noqa: D102
        if moment is not None:
            return output_fit.pair_errors(*self._arranged(weight, moment))
        return self.curves(linalg.scaled(weight)[0])[self.name]

    def curves(self, weight: NDArray[Any]) -> dict[str, Array]:  # noqa: D102
        return {self.name: linalg.relative_errors(linalg.energies(self.unfold(weight)[0]))}

    def split(  # noqa: D102
        self, weight: Array, rank: Rank, moment: Array | None = None, *, exact: bool = True
    ) -> tuple[Array, ...]:
        groups, out_channels, in_channels, *kernel = weight.shape
        place = self.place(kernel)
        shapes = (in_channels, *_unit(kernel, place, 0)), _unit(kernel, place, 1)
        if moment is not None:
            inner, outer = output_fit.fit_pair(*self._arranged(weight, moment), rank[0], exact=exact)
            return inner.reshape(groups, rank[0], *shapes[0]), outer.reshape(groups, out_channels, rank[0], *shapes[1])
        left, right = linalg.factor_pair(self.unfold(weight)[0], rank[0])
        first = np.swapaxes(left, 1, 2).reshape(groups, rank[0], *shapes[0])
        second = np.swapaxes(right.reshape(groups, rank[0], out_channels, *shapes[1]), 1, 2)
        return first, second

    def _arranged(self, weight: Array, moment: Array) -> tuple[Array, Array]:
        """W as (G, A, N, T) and the moment as (G, A, T, A, T), see `output_fit`."""
        groups, n, c, *kernel = weight.shape
        place = self.place(kernel)
        first = [1 + axis for axis, p in enumerate(place) if p == 0]
        second = [1 + axis for axis, p in enumerate(place) if p == 1]
        order = [0, *first, *second]
        taps = prod(kernel[axis - 1] for axis in second)
        size = c * prod(kernel) // taps
        flat = weight.transpose(0, 1, *(2 + axis for axis in order)).reshape(groups, n, size, taps)
        rows = [1 + axis for axis in order]
        patches = moment.reshape(groups, c, *kernel, c, *kernel)
        arranged = patches.transpose(0, *rows, *(len(order) + axis for axis in rows))
        return flat.transpose(0, 2, 1, 3), arranged.reshape(groups, size, taps, size, taps)


class Tucker2Scheme(Scheme):
    """Three factors: both channel modes are projected, the core keeps the whole kernel."""

    name = "tucker2"
    parts = ("in", "core", "out")

    def fits(self, kernel: Sequence[int]) -> bool:  # noqa: D102
        return any(k > 1 for k in kernel)

    def place(self, kernel: Sequence[int], *, transposed: bool = False) -> tuple[int, ...]:  # noqa: D102
        return tuple(1 if k > 1 else 2 if transposed else 0 for k in kernel)

    def full_rank(self, geometry: Geometry) -> Rank:  # noqa: D102
        taps = prod(geometry.kernel)
        n, c = geometry.out_channels, geometry.in_channels
        return (min(c, n * taps), min(n, c * taps))

    def unfold(self, weight: NDArray[Any]) -> tuple[NDArray[Any], ...]:  # noqa: D102
        groups, n, c = weight.shape[:3]
        return np.swapaxes(weight, 1, 2).reshape(groups, c, -1), weight.reshape(groups, n, -1)

    def fold(self, matrix: Array, shape: tuple[int, ...], index: int = 0) -> Array:  # noqa: D102
        if index == 1:
            return matrix.reshape(shape)
        return np.swapaxes(matrix.reshape(shape[0], shape[2], shape[1], *shape[3:]), 1, 2)

    def _bases(self, weight: Array, rank: Rank) -> tuple[Array, Array, Array]:
        """Bases (G, C, r_in), (G, N, r_out) and the core (G, r_out, r_in, taps)."""
        by_input, by_output = self.unfold(weight)
        basis_in = linalg.leading_basis(by_input, rank[0])
        basis_out = linalg.leading_basis(by_output, rank[1])
        groups, n, c = weight.shape[:3]
        core = np.swapaxes(basis_out, 1, 2) @ weight.reshape(groups, n, -1)
        core = core.reshape(groups, rank[1], c, -1)
        core = np.swapaxes(basis_in, 1, 2)[:, None] @ core
        return basis_in, basis_out, core

    def errors(self, weight: Array, moment: Array | None = None) -> Array:  # noqa: D102
        if moment is not None:
            return _both(*(SCHEMES[name].errors(weight, moment) for name in _TUCKER_SIDES))
        return self.curves(linalg.scaled(weight)[0])[self.name]

    def curves(self, weight: NDArray[Any]) -> dict[str, Array]:
        """Its own, and those of the channel pairs, whose Gram matrices are those of its modes."""
        groups, n, c, *kernel = weight.shape
        modes = [linalg.eigenbasis(unfolded) for unfolded in self.unfold(weight)]
        full = self.full_rank(Geometry(1, n, c, tuple(kernel)))
        sides = [linalg.relative_errors(energy[:, :size]) for (energy, _), size in zip(modes, full, strict=True)]
        turn_in, turn_out = (np.swapaxes(basis[..., :size], 1, 2) for (_, basis), size in zip(modes, full, strict=True))
        core = turn_out @ weight.reshape(groups, n, -1).astype(turn_out.dtype, copy=False)
        core = turn_in @ np.swapaxes(core.reshape(groups, full[1], c, -1), 1, 2).reshape(groups, c, -1)
        energy = np.square(core, out=core).reshape(groups, *full, -1).sum(axis=(0, 3), dtype=np.float64)
        kept = np.zeros((energy.shape[0] + 1, energy.shape[1] + 1))
        kept[1:, 1:] = energy.cumsum(axis=0).cumsum(axis=1)
        total = kept[-1, -1]
        lost = np.maximum(0.0, 1.0 - kept / total) if total > 0 else np.zeros_like(kept)
        return {self.name: lost, **dict(zip(_TUCKER_SIDES, sides, strict=True))}

    def split(  # noqa: D102
        self, weight: Array, rank: Rank, moment: Array | None = None, *, exact: bool = True
    ) -> tuple[Array, ...]:
        if moment is not None:
            return self._split_by_outputs(weight, rank, moment, exact)
        groups, n, c, *kernel = weight.shape
        basis_in, basis_out, core = self._bases(weight, rank)
        # Share the core's scale with its neighbours, mode by mode: one range for all three factors.
        scale_in = _root_norm(core, axes=(1, 3))
        core = core / scale_in[:, None, :, None]
        scale_out = _root_norm(core, axes=(2, 3))
        core = core / scale_out[:, :, None, None]
        ones = (1,) * len(kernel)
        return (
            (np.swapaxes(basis_in, 1, 2) * scale_in[:, :, None]).reshape(groups, rank[0], c, *ones),
            core.reshape(groups, rank[1], rank[0], *kernel),
            (basis_out * scale_out[:, None, :]).reshape(groups, n, rank[1], *ones),
        )

    def _split_by_outputs(self, weight: Array, rank: Rank, moment: Array, exact: bool) -> tuple[Array, ...]:
        """Outputs first, exactly; then the inputs of what is left; then the last factor by output_fit."""
        groups, n = weight.shape[:2]
        by_input, by_output = (SCHEMES[name] for name in _TUCKER_SIDES)
        reduced, _ = by_output.split(weight, (rank[1],), moment, exact=exact)
        first, core = by_input.split(reduced, (rank[0],), moment, exact=exact)
        inner = by_input.merge((first, core)).reshape(groups, rank[1], -1)
        last = output_fit.regress_outputs(weight.reshape(groups, n, -1), moment, inner)
        return first, core, last.reshape(groups, n, rank[1], *(1,) * (weight.ndim - 3))


_TUCKER_SIDES = ("channel-mirror", "channel")


def _both(by_input: Array, by_output: Array) -> Array:
    """What both projections leave, as if they were independent: of outputs there is no cheap exact figure."""
    return 1.0 - (1.0 - by_input)[:, None] * (1.0 - by_output)


def _root_norm(core: Array, axes: tuple[int, int]) -> Array:
    norm = np.sqrt(np.square(core).sum(axis=axes))
    return np.where(norm > np.finfo(np.float64).tiny, np.sqrt(norm), 1.0)


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        PairScheme("spatial", ("v", "h"), "head"),
        PairScheme("spatial-mirror", ("h", "v"), "rest"),
        PairScheme("channel", ("core", "out"), "all"),
        PairScheme("channel-mirror", ("in", "core"), "none"),
        Tucker2Scheme(),
        PairScheme("svd", ("in", "out"), "none"),
    )
}

# Where a kernel is too narrow for a scheme, the next one that does the same thing there: a 1-d kernel
# has no second axis to split off, a 1x1 kernel none at all.
_FALLBACK: dict[str, tuple[str, ...]] = {
    "spatial": ("spatial", "channel", "svd"),
    "spatial-mirror": ("spatial-mirror", "channel-mirror", "svd"),
    "channel": ("channel", "svd"),
    "channel-mirror": ("channel-mirror", "svd"),
    "tucker2": ("tucker2", "svd"),
    "svd": ("svd",),
}


def error_curves(schemes: Sequence[Scheme], weight: Array, moment: Moment | None = None) -> dict[str, Array]:
    """`errors` under several schemes, by name, from what they share, rounded (see `linalg`): for planning."""
    found: dict[str, Array] = {}
    if isinstance(moment, Separable):
        weight, moment = moment.whitened(weight), None
    near_one = linalg.scaled(weight)[0].astype(np.float32)
    for scheme in sorted(schemes, key=lambda scheme: scheme.name != "tucker2"):  # it brings others along
        if scheme.name in found:
            continue
        if moment is None:
            found |= scheme.curves(near_one)
        elif scheme.name == "tucker2":
            sides = {name: SCHEMES[name].errors(weight, moment) for name in _TUCKER_SIDES}
            found |= {scheme.name: _both(*sides.values()), **sides}
        else:
            found[scheme.name] = scheme.errors(weight, moment)
    return {scheme.name: found[scheme.name] for scheme in schemes}


def candidates(choice: str, kernel: Sequence[int]) -> list[Scheme]:
    """The schemes to weigh for a layer: all that fit for "auto", else the named one or its fallback."""
    if choice == "auto":
        return [scheme for scheme in SCHEMES.values() if scheme.fits(kernel)]
    fitting = [SCHEMES[name] for name in _FALLBACK[choice] if SCHEMES[name].fits(kernel)]
    return fitting[:1]
