"""What flows into a layer of two networks side by side, the original and the one that becomes of it.

With x what flows into the layer of the original, x' what flows into it now, and C their joint covariance,

    E |W x + b - W' x' - b'|^2 = tr([W -W'] C [W -W']^T) + |W E[x] + b - W' E[x'] - b'|^2

The best weight is `W* = W E[x x'^T] S^-1` with S = E[x' x'^T], and the bias takes up the means (Zhang et al., arXiv
1505.06798, section 3.3, "asymmetric reconstruction"). Whether it pays is told by samples that it was not fitted to:
what a few hundred say of a large weight can be learnt by heart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from trp_onnx.calibration.moments import Moments, Sums, flow_of, patches_of, pooled, seen_by
from trp_onnx.graph.bias import bias_of, corrects_bias
from trp_onnx.graph.inputs import Samples
from trp_onnx.graph.layers import Layer
from trp_onnx.graph.partial_run import Walk
from trp_onnx.lowrank.linalg import Array

HELD_OUT, LEAST_RUNS = 4, 8
"""One run of the samples in so many is held out; so many runs at least are made of them, where there are so many."""


@dataclass(frozen=True)
class Was:
    """A layer as it is in the original, whatever becomes of its node, and what is left of it.

    Attributes:
        layer: The layer.
        stored: Its weight, as it is stored.
        bias: (G N,), or None.
        rows: Which of its outputs are left, (G, N), equally many of each group that is left; None for all.
    """

    layer: Layer
    stored: np.ndarray
    bias: Array | None = None
    rows: NDArray[np.bool_] | None = None

    @classmethod
    def of(cls, layer: Layer, rows: NDArray[np.bool_] | None = None) -> Was:
        """As it is now."""
        assert layer.constant is not None
        bias = bias_of(layer)
        return cls(layer, layer.constant.array(), None if bias is None else bias.array().reshape(-1), rows)

    @property
    def groups(self) -> NDArray[np.int64] | slice:
        """The groups that are left."""
        return slice(None) if self.rows is None else np.flatnonzero(self.rows.any(axis=1))

    def weight(self) -> Array:
        """Of the outputs that are left: (G', N', D)."""
        assert self.layer.layout is not None
        weight = self.layer.layout.to_canonical(self.stored)
        flat = weight.reshape(*weight.shape[:2], -1)
        return flat if self.rows is None else flat[self.rows].reshape(len(flat[self.groups]), -1, flat.shape[2])

    def left_of_bias(self) -> Array | float:
        """Of the outputs that are left: (G' N',), or 0."""
        if self.bias is None:
            return 0.0
        values = self.bias.astype(np.float64)
        return values if self.rows is None else values[self.rows.reshape(-1)]


@dataclass(frozen=True)
class Original:
    """A network before spaces of it were cut.

    Attributes:
        model: The network.
        layers: By name, what they were.
    """

    model: onnx.ModelProto
    layers: Mapping[str, Was]


class SideBySide:
    """Samples on their way through both networks; the second may change behind and before them."""

    def __init__(self, original: onnx.ModelProto, samples: Samples) -> None:
        """Begin at the inputs.

        Args:
            original: The first network, and the second one as it is now.
            samples: As they take them.

        Raises:
            ModelError: It does not run on them.
        """
        self._original, self._count = original, len(samples)
        most = max(1, len(samples) // LEAST_RUNS)
        self._before, self._after = (Walk(original, samples, most=most) for _ in range(2))

    def patches(self, layer: Layer, now: onnx.ModelProto, was: Was | None = None) -> Iterator[NDArray[np.float32]]:
        """Of each run the patches of a layer in both, side by side: (G, p, D + D').

        Args:
            layer: Behind all that were asked for before.
            now: The second network as it is now.
            was: The layer in the original, where more of it was there.
        """
        output, flow = layer.node.outputs[0].name or "", flow_of(layer)
        was = was or Was.of(layer)
        self._before.advance(self._original, output)
        self._after.advance(now, output)
        positions = (np.random.default_rng(0), np.random.default_rng(0))
        runs = zip(self._before.run(self._original, [flow]), self._after.run(now, [flow]), strict=True)
        for (run, before), (again, after) in runs:
            then = patches_of(was.layer, seen_by(was.layer, run, before[flow]), self._count, positions[0])[was.groups]
            here = patches_of(layer, seen_by(layer, again, after[flow]), self._count, positions[1], was.layer)
            yield np.concatenate([then, here], axis=2)


@dataclass(frozen=True)
class Divided:
    """Joint moments of two parts of the samples: one is fitted to, the other one is held out.

    Attributes:
        fitted: Those of the first.
        held_out: Those of the second; None where there are too few runs for one.
    """

    fitted: Moments
    held_out: Moments | None

    @classmethod
    def of(cls, runs: Iterable[NDArray[np.float32]]) -> Divided | None:
        """Of the patches of each run; None where they are not finite, or there are none."""
        fitted, held_out = Sums(), Sums()
        for number, patches in enumerate(runs, start=1):
            (fitted if number % HELD_OUT else held_out).add(patches)
        if not (fitted.count and fitted.finite and held_out.finite):
            return None
        return cls(fitted.moments(), held_out.moments() if held_out.count else None)

    def whole(self) -> Moments:
        """Of both parts."""
        return self.fitted if self.held_out is None else pooled(self.fitted, self.held_out)


@dataclass(frozen=True)
class Joint:
    """Moments of the patches of one layer in both networks.

    Attributes:
        layer: As it is in the original; where that was wider, as it is now.
        moments: Of (x, x'), (G, D + D').
        was: As it was, where the original is wider.
    """

    layer: Layer
    moments: Moments
    was: Was | None = None

    @property
    def size(self) -> int:
        """D."""
        return int(self.moments.mean.shape[1]) - int(np.prod((self.layer.shape or ())[2:]))

    def _original(self) -> Array:
        """The weight that is made up for, (G, N, D)."""
        return (self.was or Was.of(self.layer)).weight()

    def before(self) -> Moments:
        """Of x alone."""
        return self._part(slice(None, self.size))

    def now(self) -> Array:
        """The moment S of x', with the ridge of all moments: (G, D, D)."""
        return self._part(slice(self.size, None)).matrix(centred=corrects_bias(self.layer))

    def _part(self, here: slice) -> Moments:
        spread = self.moments.spread[:, here, here]
        return Moments(self.moments.mean[:, here], spread, self.moments.patches, self.moments.scale)

    def best(self, towards: Array, ridge: float = 0.0, stays: NDArray[np.bool_] | None = None) -> Array:
        """W*, (G, N, C, *k).

        Args:
            towards: What W* is held to where the samples say little, of the same shape.
            ridge: By so much of the mean variance, beside the ridge of all moments.
            stays: Which of its columns are not zero, (G, D); all by default.
        """
        whole = self.moments.second(centred=corrects_bias(self.layer))
        held = self.now()
        power = np.trace(held, axis1=1, axis2=2) / held.shape[1]
        held += ridge * power[:, None, None] * np.eye(held.shape[1])
        # What holds W* is on both sides: where nothing has changed, and it is held to W, W* is W.
        near = towards.reshape(*towards.shape[:2], -1)
        across = self._original() @ whole[:, : self.size, self.size :]
        across += near @ (held - whole[:, self.size :, self.size :])
        found = np.zeros_like(near)
        for group in range(len(near)):
            k = slice(None) if stays is None else np.flatnonzero(stays[group])
            found[group][:, k] = np.linalg.solve(held[group][k][:, k], across[group][:, k].T).T
        return found.reshape(towards.shape)

    def shift(self, weight: Array) -> Array | None:
        """What the bias takes up when the layer computes with another weight, (G N,); None where it cannot."""
        if not corrects_bias(self.layer):
            return None
        new, mean = weight.reshape(*weight.shape[:2], -1), self.moments.mean[:, :, None]
        moved = np.asarray(self._original() @ mean[:, : self.size] - new @ mean[:, self.size :]).reshape(-1)
        return moved + self._off()

    def _off(self) -> Array | float:
        """By how much the bias of the original is above the one that the layer has now, (G N,)."""
        return 0.0 if self.was is None else self.was.left_of_bias() - Was.of(self.layer).left_of_bias()

    def error(self, weight: Array, shift: Array | None) -> float:
        """Squared error of the outputs with another weight, and so much added to the bias."""
        both = np.concatenate([self._original(), -weight.reshape(*weight.shape[:2], -1)], axis=2)
        apart = (both @ self.moments.mean[:, :, None]).reshape(-1) + self._off() - (0.0 if shift is None else shift)
        return float(((both @ self.moments.covariance) * both).sum() + np.square(apart).sum())
