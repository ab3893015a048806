"""The matrix maths of low rank. NumPy only; knows neither layers nor ONNX.

Every routine takes a stack of matrices `(..., rows, cols)`, one per group, and works in float64.

With `M = U diag(s) V^T`, the best rank-r approximation keeps the r largest singular values and its
squared Frobenius error is the tail `sum_{j>r} s_j^2` (Eckart and Young, 1936).

We never compute the full SVD. With `G = M M^T` (the smaller side first) `eigh` gives `U` and `s^2`, at
a third to a tenth of the time. The absolute error of an eigenvalue is about `eps * s_1^2`, so the tail
energy is exact to about 1e-15 of the whole. The second factor is `U_r^T M`, not `diag(s) V^T`: `U` is
orthogonal to machine precision, so the product of the factors is as exact as that of a full SVD.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def _gram(matrix: Array) -> Array:
    """`M M^T` or `M^T M`, whichever is smaller: (..., n, n) with n = min(rows, cols)."""
    transposed = np.swapaxes(matrix, -1, -2)
    return matrix @ transposed if matrix.shape[-2] <= matrix.shape[-1] else transposed @ matrix


def singular_values(matrix: Array) -> Array:
    """Singular values, largest first: (..., rows, cols) -> (..., min(rows, cols))."""
    eigenvalues = np.linalg.eigvalsh(_gram(matrix))[..., ::-1]
    return np.asarray(np.sqrt(np.maximum(eigenvalues, 0.0)))


def leading_basis(matrix: Array, rank: int) -> Array:
    """The first `rank` left singular vectors as columns: (..., rows, cols) -> (..., rows, rank).

    `rank` may exceed `cols`; the surplus columns complete an orthonormal basis.
    """
    _, vectors = np.linalg.eigh(matrix @ np.swapaxes(matrix, -1, -2))
    return np.asarray(vectors[..., ::-1][..., :rank])


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
    basis = leading_basis(matrix, rank)
    scaled = np.swapaxes(basis, -1, -2) @ matrix
    norms = np.linalg.norm(scaled, axis=-1)
    # A direction of no energy has no scale to share: leave its basis vector as it is.
    root = np.where(norms > np.finfo(np.float64).tiny, np.sqrt(norms), 1.0)
    return basis * root[..., None, :], scaled / root[..., :, None]


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
    eigenvalues, vectors = np.linalg.eigh(_gram(matrix))
    values = np.sqrt(np.maximum(eigenvalues[..., ::-1], 0.0))
    return Decomposition(matrix, np.asarray(values), np.asarray(vectors[..., ::-1]))


def tail_energy(values: Array) -> Array:
    """Squared error at every rank, summed over the stack: (..., n) -> (n + 1,), index = rank."""
    energy = np.square(values).reshape(-1, values.shape[-1]).sum(axis=0)
    return np.append(np.cumsum(energy[::-1])[::-1], 0.0)


def relative_tail(values: Array) -> Array:
    """`tail_energy` as a fraction of the whole; all zero for a zero matrix."""
    tail = tail_energy(values)
    return tail / tail[0] if tail[0] > 0 else np.zeros_like(tail)


def energy_rank(values: Array, energy: float) -> int:
    """The smallest k >= 1 that discards at most `energy` of the squared singular values.

    TRP's rule (arXiv 1812.02402, eq. 4): `sum_{j>k} s_j^2 <= energy * sum_i s_i^2`.
    """
    return max(1, int(np.argmax(relative_tail(values) <= energy)))


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
