"""Pairs of factors that keep a layer's *outputs*, given the second moment of its inputs. NumPy only.

A layer computes `W x` on patches x with second moment `S = E[x x^T]`. The error of its outputs is

    E |W x - W' x|^2 = tr((W - W') S (W - W')^T)

A pair splits the entries of a patch in two: `a`, which the first factor sees, and `t`, the taps at which
the second one reads it, `W'[n, a, t] = sum_r second[n, r, t] first[r, a]`. As matrices, with the weight
unfolded to `M: (a, n t)`, that is rank r, and there are two cases.

One tap (kxk -> 1x1, and 1x1 -> 1x1): with the leading eigenvectors U of `W S W^T`, `W' = U U^T W` is the best
there is (Zhang et al., "Accelerating very deep convolutional networks", arXiv 1505.06798, section 3.1).

Several taps: the problem has no closed form. With the moment of one tap, `S_1 = sum_t S[:, t, :, t]`, in
place of the whole it has one, `M' = M V V^T` with V the leading eigenvectors of `M^T S_1 M`. That is where
alternating least squares starts: the second factor given the first solves a linear system exactly, the
first given the second by conjugate gradients on its normal equations.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trp_onnx.lowrank.linalg import Array, eigh, scaled

ALTERNATIONS = 2
"""Each lowers the error, the first ones most, and costs a few products with the whole moment."""

_ROUND_FROM = 256
"""From this rank on errors are told in float32, to 2e-5 of the whole, in half of the time."""

_FLOOR = {"float32": 1e-4, "float64": 1e-12}
"""Directions in which outputs are smaller than this part of the largest ones are lost in rounding."""

_CG_STEPS = 8
_RIDGE = 1e-10


def pair_errors(weight: Array, moment: Array) -> Array:
    """Relative squared output error of the start of `fit_pair` at every rank; what follows only lowers it.

    Args:
        weight: (G, A, N, T).
        moment: (G, A, T, A, T).

    Returns:
        (R + 1,) with R = min(A, N T): 1 at rank 0, 0 at full rank; never rising.
    """
    total: Array | float = 0.0
    for w, s in zip(scaled(weight)[0], scaled(moment)[0], strict=True):
        total = total + _tail(w, s)
    found = np.asarray(total)
    if found[0] <= 0:
        return np.zeros_like(found)
    return np.minimum.accumulate(np.clip(found / found[0], 0.0, 1.0))


def _tail(weight: Array, moment: Array) -> Array:
    """Squared error of one group at every rank: of all pairs of components from there on, (R + 1,)."""
    first, second, energy = _start(weight, moment)
    if weight.shape[-1] == 1:
        apart = energy
    else:  # of each component: with itself, and twice with each that is weaker
        first = first.astype(second.dtype, copy=False)
        gram = np.zeros((len(first), len(first)), second.dtype)
        for t, u in itertools.combinations_with_replacement(range(weight.shape[-1]), 2):
            across = first @ np.ascontiguousarray(moment[:, t, :, u], second.dtype) @ first.T
            across *= second[:, t].T @ second[:, u]
            gram += across if t == u else across + across.T
        apart = np.diagonal(gram) + 2 * np.triu(gram, 1).sum(axis=1, dtype=np.float64)
    return np.append(np.cumsum(apart[::-1])[::-1], 0.0)


def fit_pair(weight: Array, moment: Array, rank: int, *, exact: bool = True) -> tuple[Array, Array]:
    """Factors of least output error.

    Args:
        weight: (G, A, N, T).
        moment: (G, A, T, A, T).
        rank: From 1; above min(A, N T) the rest of the factors is zero.
        exact: False where the start of the alternation will do.

    Returns:
        `first` (G, rank, A) and `second` (G, N, rank, T), of the same norm at each rank.
    """
    near_one, peak = scaled(weight)
    pairs = [_fit(w, s, rank, exact) for w, s in zip(near_one, scaled(moment)[0], strict=True)]
    root = np.sqrt(peak)
    return root * np.stack([first for first, _ in pairs]), root * np.stack([second for _, second in pairs])


def regress_outputs(weight: Array, moment: Array, inner: Array) -> Array:
    """The matrix B of least output error for `W x = B (P x)`, P given: (G, N, D), (G, D, D), (G, r, D) -> (G, N, r)."""
    across = moment @ np.swapaxes(inner, 1, 2)
    return np.stack([_solve(w @ c, p @ c) for w, c, p in zip(weight, across, inner, strict=True)])


def _fit(weight: Array, moment: Array, rank: int, exact: bool) -> tuple[Array, Array]:
    first, right, _ = _truncation(weight, moment) if exact else _start(weight, moment)
    spare = max(0, rank - len(first))  # a rank above the full one, as one side of Tucker-2 may ask for
    first = np.pad(first[:rank], ((0, spare), (0, 0)))
    second = np.moveaxis(np.pad(right[..., :rank], ((0, 0), (0, 0), (0, spare))), 1, 2)  # (n, r, t)
    if exact and weight.shape[-1] > 1:
        second = _second(first, weight, moment)
        for _ in range(ALTERNATIONS):
            first = _first(first, second, weight, moment)
            second = _second(first, weight, moment)
    norms = np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=(0, 2))
    tiny = np.finfo(np.float64).tiny
    scale = np.sqrt(np.where((norms[0] > tiny) & (norms[1] > tiny), norms[1] / np.maximum(norms[0], tiny), 1.0))
    return first * scale[:, None], second / scale[:, None]


def _start(weight: Array, moment: Array) -> tuple[NDArray[Any], NDArray[Any], Array]:
    """`_truncation`, in float32 where it takes long."""
    rounds = min(weight.shape[0], weight.shape[1] * weight.shape[2]) >= _ROUND_FROM
    dtype = np.dtype(np.float32 if rounds else np.float64)
    return _truncation(weight.astype(dtype, copy=False), moment.astype(dtype, copy=False))


def _truncation(weight: NDArray[Any], moment: NDArray[Any]) -> tuple[Any, Any, Array]:
    """Components of `M V V^T`, strongest first, (R, A) and (N, T, R), and their energies under the marginal, (R,)."""
    size, n, taps = weight.shape
    matrix = weight.reshape(size, n * taps)
    marginal = np.einsum("atbt->ab", moment)
    if n * taps <= size:
        values, vectors = eigh(matrix.T @ marginal @ matrix)
        right = vectors[:, ::-1]
    else:
        root = _root(marginal)
        values, vectors = eigh(root @ (matrix @ matrix.T) @ root)
        right = matrix.T @ (root @ vectors[:, ::-1])
        norms = np.linalg.norm(right, axis=0)
        floor = _FLOOR[norms.dtype.name] * norms.max(initial=0.0)
        right = right * np.where(norms > floor, 1 / np.where(norms > floor, norms, 1), 0).astype(norms.dtype)
    return (matrix @ right).T, right.reshape(n, taps, -1), np.maximum(values[::-1], 0.0).astype(np.float64)


def _root(moment: NDArray[Any]) -> NDArray[Any]:
    values, vectors = eigh(moment)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)


def _second(first: Array, weight: Array, moment: Array) -> Array:
    """Least squares for the second factor: (n, r, t)."""
    across = np.moveaxis(np.tensordot(moment, first, (2, 1)), 3, 2)  # (a, t, r, t')
    inner = np.tensordot(first, across, (1, 0))  # (r, t, r', t')
    outer = np.tensordot(weight, across, ((0, 2), (0, 1)))  # (n, r, t)
    size = first.shape[0] * weight.shape[2]
    return _solve(outer.reshape(-1, size), inner.reshape(size, size)).reshape(outer.shape)


def _first(first: Array, second: Array, weight: Array, moment: Array) -> Array:
    """Conjugate gradients for the first factor, from where it stands: (r, a)."""
    size, _, taps = weight.shape
    flat = moment.reshape(size * taps, size * taps)

    def descend(error: Array) -> Array:
        """Half the negative gradient at an error (a, n, t) of the weight."""
        felt = np.moveaxis(error, 1, 0).reshape(-1, size * taps) @ flat
        return np.tensordot(second, felt.reshape(-1, size, taps), ((0, 2), (0, 2)))

    def merged(x: Array) -> Array:
        return np.asarray(np.tensordot(x, second, (0, 1)))  # (a, n, t)

    residual = descend(weight - merged(first))
    direction, power = residual, float(np.square(residual).sum())
    start = power
    for _ in range(_CG_STEPS):
        if power <= 1e-20 * start or power == 0:
            break
        bent = descend(merged(direction))
        curvature = float((direction * bent).sum())
        if curvature <= 0:
            break
        step = power / curvature
        first = first + step * direction
        residual = residual - step * bent
        before, power = power, float(np.square(residual).sum())
        direction = residual + (power / before) * direction
    return first


def _solve(right: Array, symmetric: Array) -> Array:
    """`right @ inv(symmetric)` for a positive semidefinite matrix; the least one where it is singular, 0 for zeros."""
    power = float(np.trace(symmetric)) / len(symmetric)
    if power <= np.finfo(np.float64).tiny:
        return np.zeros_like(right)
    held = symmetric / power + _RIDGE * np.eye(len(symmetric))
    return np.asarray(np.linalg.solve(held, right.T / power).T)
