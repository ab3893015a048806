"""The matrix maths of low rank. NumPy only; knows neither layers nor ONNX.

Every routine takes a stack of matrices `(..., rows, cols)`, one per group, and works in float64, but for `energies`
and `eigenbasis`, which round where they are given float32.

With `M = U diag(s) V^T`, the best rank-r approximation keeps the r largest singular values and its
squared Frobenius error is the tail `sum_{j>r} s_j^2` (Eckart and Young, 1936).

We never compute the full SVD. With `G = M M^T` (the smaller side first) `eigh` gives `U` and `s^2`, at
a third to a tenth of the time. The absolute error of an eigenvalue is about `eps * s_1^2`, so the tail
energy is exact to about 1e-15 of the whole; in float32 to less than 1e-6, and that of Tucker-2, where
directions of nearly equal energy may mix, to 1e-5 (`tests/test_spectra.py`). The second factor is `U_r^T M`,
not `diag(s) V^T`: `U` is orthogonal to machine precision, so the product of the factors is as exact as that
of a full SVD.

A curve of errors for planning does with float32, at half of the time, as long as the errors that it tells apart are
well above that: where `_DEEP` of the ranks leave less than `_FINE` of the energy, float64 takes over.

The scale of a matrix changes no direction and no ratio, so Gram matrices are of `M / max|M|`: weights of 1e30 do not
overflow, those of 1e-40 do not vanish.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    _umath_linalg: Any = import_module("numpy.linalg._umath_linalg")
except ImportError:  # it is not of NumPy's public face
    _umath_linalg = None

Array = NDArray[np.float64]


_ROUND_FROM = 256
"""Smaller matrices than this take no time in float64 either."""

_DEEP, _FINE = 0.75, 1e-4


def _gram(matrix: NDArray[Any]) -> NDArray[Any]:
    """`M M^T` or `M^T M`, whichever is smaller: (..., n, n) with n = min(rows, cols)."""
    transposed = np.swapaxes(matrix, -1, -2)
    return np.asarray(matrix @ transposed if matrix.shape[-2] <= matrix.shape[-1] else transposed @ matrix)


def singular_values(matrix: Array) -> Array:
    """Singular values, largest first: (..., rows, cols) -> (..., min(rows, cols))."""
    near_one, peak = scaled(matrix)
    return np.asarray(peak * np.sqrt(energies(near_one)))


def energies(matrix: NDArray[Any]) -> Array:
    """Squared singular values, largest first: (..., rows, cols) -> (..., min(rows, cols)).

    Args:
        matrix: Its entries may not be far from 1, see `scaled`; in float32 where sums may be off by 1e-6 of the whole.
    """
    if _rounds(matrix, min(matrix.shape[-2:])):
        found = _descending(eigvalsh(_gram(matrix)))
        if not _runs_out(found):
            return found
    return _descending(eigvalsh(_gram(matrix.astype(np.float64, copy=False))))


def eigenbasis(matrix: NDArray[Any]) -> tuple[Array, NDArray[Any]]:
    """`energies` and left singular vectors: (..., rows, cols) -> (..., rows) and (..., rows, rows).

    Energies from `cols` on are zero; their columns complete an orthonormal basis, which may be one of float32 where the
    matrix is.
    """
    if _rounds(matrix, matrix.shape[-2]):
        values, vectors = eigh(matrix @ np.swapaxes(matrix, -1, -2))
        found = _descending(values)
        if not _runs_out(found):
            return found, vectors[..., ::-1]
    matrix = matrix.astype(np.float64, copy=False)
    values, vectors = eigh(matrix @ np.swapaxes(matrix, -1, -2))
    return _descending(values), vectors[..., ::-1]


def eigvalsh(symmetric: NDArray[Any]) -> NDArray[Any]:
    """Eigenvalues in the type of the matrices, smallest first: (..., n, n) -> (..., n); NaN where they do not converge.

    Numpy's own front end computes in float64 whatever it is given; scipy's holds the interpreter's lock meanwhile.
    """
    if _umath_linalg is None:
        return np.asarray(np.linalg.eigvalsh(symmetric))
    kind = symmetric.dtype.char
    with np.errstate(all="ignore"):
        return np.asarray(_umath_linalg.eigvalsh_lo(symmetric, signature=f"{kind}->{kind}"))


def eigh(symmetric: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """`eigvalsh`, and the eigenvectors as columns: (..., n, n)."""
    if _umath_linalg is None:
        values, vectors = np.linalg.eigh(symmetric)
        return values, vectors
    kind = symmetric.dtype.char
    with np.errstate(all="ignore"):
        values, vectors = _umath_linalg.eigh_lo(symmetric, signature=f"{kind}->{kind}{kind}")
    return values, vectors


def _rounds(matrix: NDArray[Any], size: int) -> bool:
    return matrix.dtype == np.float32 and size >= _ROUND_FROM


def _descending(eigenvalues: NDArray[Any]) -> Array:
    return np.maximum(eigenvalues[..., ::-1].astype(np.float64), 0.0)


def _runs_out(energy: Array) -> bool:
    """Whether little enough is left at deep ranks for float32 to be felt there; (..., n)."""
    total = energy.sum()
    return bool(energy[..., int(_DEEP * energy.shape[-1]) :].sum() < _FINE * total) or not np.isfinite(total)


def scaled(matrix: Array) -> tuple[Array, float]:
    """A stack divided by its largest entry, and that entry; 1 for zeros."""
    peak = float(np.abs(matrix).max(initial=0.0)) or 1.0
    return matrix / peak, peak


def leading_basis(matrix: Array, rank: int) -> Array:
    """The first `rank` left singular vectors as columns: (..., rows, cols) -> (..., rows, rank).

    `rank` may exceed `cols`; the surplus columns complete an orthonormal basis.
    """
    gram = matrix @ np.swapaxes(matrix, -1, -2)
    return np.asarray(np.linalg.eigh(gram)[1][..., ::-1][..., :rank])


def factor_pair(matrix: Array, rank: int) -> tuple[Array, Array]:
    """The best rank-`rank` product, sigma shared as a square root between both sides.

    Args:
        matrix: (..., rows, cols).
        rank: 1 <= rank <= min(rows, cols).

    Returns:
        `left` (..., rows, rank) and `right` (..., rank, cols) with `left @ right` closest to `matrix`.
        Column i of `left` and row i of `right` have the same norm `sqrt(s_i)`: int8 needs one scale.
    """
    if matrix.shape[-2] > matrix.shape[-1]:
        right, left = factor_pair(np.swapaxes(matrix, -1, -2), rank)
        return np.swapaxes(left, -1, -2), np.swapaxes(right, -1, -2)
    basis = leading_basis(scaled(matrix)[0], rank)
    other = np.swapaxes(basis, -1, -2) @ matrix
    norms = np.linalg.norm(other, axis=-1)
    # A direction of no energy has no scale to share: leave its basis vector as it is.
    root = np.where(norms > np.finfo(np.float64).tiny, np.sqrt(norms), 1.0)
    return basis * root[..., None, :], other / root[..., :, None]


@dataclass(frozen=True)
class Decomposition:
    """A stack of matrices and what one `eigh` of their Gram matrices tells.

    Attributes:
        matrix: M, (..., rows, cols).
        values: Singular values, largest first, (..., min(rows, cols)).
        basis: Singular vectors of the smaller side as columns, in the same order.
    """

    matrix: Array
    values: Array
    basis: Array

    def truncate(self, rank: int) -> Array:
        """The best approximation of that rank, `U_r U_r^T M`: (..., rows, cols)."""
        basis, wide = self._leading(rank)
        return self._turned(basis @ (np.swapaxes(basis, -1, -2) @ wide))

    def polar(self, rank: int) -> Array:
        """`U_r V_r^T`, the sub-gradient of the nuclear norm at `truncate(rank)`: (..., rows, cols).

        Directions of no energy are left out: any contraction there is a sub-gradient, zero is one.
        """
        basis, wide = self._leading(rank)
        scaled = np.swapaxes(basis, -1, -2) @ wide
        norms = np.linalg.norm(scaled, axis=-1, keepdims=True)
        floor = 1e-12 * norms.max(initial=np.finfo(np.float64).tiny)
        return self._turned(basis @ np.where(norms > floor, scaled / np.maximum(norms, floor), 0.0))

    def _leading(self, rank: int) -> tuple[Array, Array]:
        return self.basis[..., :rank], self._turned(self.matrix)

    def _turned(self, matrix: Array) -> Array:
        tall = self.matrix.shape[-2] > self.matrix.shape[-1]
        return np.swapaxes(matrix, -1, -2) if tall else matrix


def decompose(matrix: Array) -> Decomposition:
    """Singular values and vectors of the smaller side: (..., rows, cols)."""
    near_one, peak = scaled(matrix)
    eigenvalues, vectors = np.linalg.eigh(_gram(near_one))
    return Decomposition(matrix, peak * np.sqrt(_descending(eigenvalues)), np.asarray(vectors[..., ::-1]))


def tail_energy(values: Array) -> Array:
    """Squared error at every rank, summed over the stack: (..., n) -> (n + 1,), index = rank."""
    return _tail(np.square(values))


def relative_tail(values: Array) -> Array:
    """`tail_energy` as a fraction of the whole; all zero for a zero matrix."""
    return relative_errors(np.square(values))


def relative_errors(energy: Array) -> Array:
    """The same from squared singular values."""
    tail = _tail(energy)
    return tail / tail[0] if tail[0] > 0 else np.zeros_like(tail)


def _tail(energy: Array) -> Array:
    summed = energy.reshape(-1, energy.shape[-1]).sum(axis=0)
    return np.append(np.cumsum(summed[::-1])[::-1], 0.0)


def energy_rank(values: Array, energy: float) -> int:
    """The smallest k >= 1 that discards at most `energy` of the squared singular values.

    TRP's rule (arXiv 1812.02402, eq. 4): `sum_{j>k} s_j^2 <= energy * sum_i s_i^2`.
    """
    return rank_within(relative_tail(values), energy)


def rank_within(tail: Array, energy: float) -> int:
    """The same from a `relative_tail`."""
    return max(1, int(np.argmax(tail <= energy)))


def vbmf_rank(values: Array, rows: int, cols: int) -> int:
    """Rank of the signal under Gaussian noise of unknown variance, by empirical variational Bayes.

    The global analytic solution of Nakajima, Sugiyama, Babacan and Tomioka, "Global analytic solution of
    fully-observed variational Bayesian matrix factorization", JMLR 14 (2013), theorem 2 and eq. 20-25.
    For a stack the largest rank of its members counts, so that no group loses signal.

    Args:
        values: Singular values, largest first, (..., min(rows, cols)).
        rows: Rows of the matrix.
        cols: Columns of the matrix.

    Returns:
        The number of singular values above the noise threshold; 0 when all is noise.
    """
    from scipy.optimize import minimize_scalar  # about half a second: only who asks pays

    L, M = min(rows, cols), max(rows, cols)
    alpha = L / M
    tau_bar = 2.5129 * np.sqrt(alpha)
    x_bar = (1 + tau_bar) * (1 + alpha / tau_bar)

    def rank_of(s: Array) -> int:
        square = np.square(s)
        if square.sum() == 0:
            return 0
        square = np.maximum(square, square[0] * 1e-30)

        def free_energy(variance: float) -> float:
            x = square / (M * variance)
            noise, signal = x[x <= x_bar], x[x > x_bar]
            shifted = signal - (1 + alpha)
            tau = 0.5 * (shifted + np.sqrt(np.maximum(shifted**2 - 4 * alpha, 0.0)))
            return float(
                np.sum(noise - np.log(noise))
                + np.sum(signal - tau + np.log((tau + 1) / signal))
                + alpha * np.sum(np.log(tau / alpha + 1))
            )

        first_noise = max(0, min(int(np.ceil(L / (1 + alpha))) - 1, L) - 1)
        upper = square.sum() / (L * M)
        rest = square[first_noise + 1 :] if first_noise + 1 < L else square[-1:]
        lower = max(rest[0] / (M * x_bar), rest.mean() / M)
        variance = upper
        if lower < upper:
            variance = minimize_scalar(free_energy, bounds=(lower, upper), method="bounded").x
        return int(np.sum(square > M * variance * x_bar))

    return max(rank_of(s) for s in values.reshape(-1, values.shape[-1]))
