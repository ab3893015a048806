"""What flows into a layer of two networks side by side, the original and the one that becomes of it.

With x what flows into the layer of the original, x' what flows into it now, and C their joint covariance,

    E |W x + b - W' x' - b'|^2 = tr([W -W'] C [W -W']^T) + |W E[x] + b - W' E[x'] - b'|^2

The best weight is `W* = W E[x x'^T] S^-1` with S = E[x' x'^T], and the bias takes up the means (Zhang et al., arXiv
1505.06798, section 3.3, "asymmetric reconstruction").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from trp_onnx.calibration.moments import Moments, flow_of, patches_of
from trp_onnx.graph.bias import corrects_bias
from trp_onnx.graph.inputs import Samples
from trp_onnx.graph.layers import Layer
from trp_onnx.graph.partial_run import Walk
from trp_onnx.lowrank.linalg import Array


class SideBySide:
    """Samples on their way through both networks; the second may change behind and before them."""

    def __init__(self, original: onnx.ModelProto, samples: Samples, *, most: int | None = None) -> None:
        """Begin at the inputs.

        Args:
            original: The first network, and the second one as it is now.
            samples: As they take them.
            most: Samples of a run at most.

        Raises:
            ModelError: It does not run on them.
        """
        self._original, self._count = original, len(samples)
        self._before, self._after = (Walk(original, samples, most=most or len(samples)) for _ in range(2))

    def patches(self, layer: Layer, now: onnx.ModelProto) -> Iterator[NDArray[np.float32]]:
        """Of each run the patches of a layer in both, side by side: (G, p, 2 D).

        Args:
            layer: Behind all that were asked for before.
            now: The second network as it is now.
        """
        output, flow = layer.node.outputs[0].name or "", flow_of(layer)
        self._before.advance(self._original, output)
        self._after.advance(now, output)
        positions = (np.random.default_rng(0), np.random.default_rng(0))
        for pair in zip(self._before.run(self._original, [flow]), self._after.run(now, [flow]), strict=True):
            both = zip(pair, positions, strict=True)
            yield np.concatenate([patches_of(layer, found[flow], self._count, rng) for (found, _), rng in both], axis=2)


@dataclass(frozen=True)
class Joint:
    """Moments of the patches of one layer in both networks.

    Attributes:
        layer: As it is in the original.
        moments: Of (x, x'), (G, 2 D).
    """

    layer: Layer
    moments: Moments

    @property
    def size(self) -> int:
        """D."""
        return int(self.moments.mean.shape[1]) // 2

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
        power = np.trace(held, axis1=1, axis2=2) / self.size
        held += ridge * power[:, None, None] * np.eye(self.size)
        # What holds W* is on both sides: where nothing has changed, and it is held to W, W* is W.
        flat, near = (w.reshape(*w.shape[:2], -1) for w in (self.layer.weight(), towards))
        across = flat @ whole[:, : self.size, self.size :] + near @ (held - whole[:, self.size :, self.size :])
        found = np.zeros_like(flat)
        for group in range(len(flat)):
            k = slice(None) if stays is None else np.flatnonzero(stays[group])
            found[group][:, k] = np.linalg.solve(held[group][k][:, k], across[group][:, k].T).T
        return found.reshape(towards.shape)

    def shift(self, weight: Array) -> Array | None:
        """What the bias takes up when the layer computes with another weight, (G N,); None where it cannot."""
        if not corrects_bias(self.layer):
            return None
        flat, new = (w.reshape(*w.shape[:2], -1) for w in (self.layer.weight(), weight))
        mean = self.moments.mean[:, :, None]
        return np.asarray(flat @ mean[:, : self.size] - new @ mean[:, self.size :]).reshape(-1)

    def error(self, weight: Array, shift: Array | None) -> float:
        """Squared error of the outputs with another weight, and so much added to the bias."""
        flat, new = (w.reshape(*w.shape[:2], -1) for w in (self.layer.weight(), weight))
        both = np.concatenate([flat, -new], axis=2)
        apart = (both @ self.moments.mean[:, :, None]).reshape(-1) - (0.0 if shift is None else shift)
        return float(((both @ self.moments.covariance) * both).sum() + np.square(apart).sum())
