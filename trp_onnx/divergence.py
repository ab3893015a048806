"""How far a network's outputs moved, sample by sample, in one number that small changes already show.

mean_b KL(softmax(z_b / T) || softmax(z'_b / T))      for outputs of one score a class
mean((y - y')^2) / mean(y^2)                          for any other
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trp_onnx.errors import ModelError
from trp_onnx.runtime import Arrays

SURE = 0.9
"""Scores are divided by 2 until the mean of the largest probability is at most this: the divergence of a network
that is sure of every answer stays near zero until answers flip."""

RUINED = 1e3
"""Of outputs that are no numbers any more; far above anything that a plan would accept."""


def divergence(expected: Arrays, actual: Arrays) -> float:
    """How far outputs moved; both by name, of the same samples, (b, ...).

    Outputs of several names add up; those that are no floats are passed over.

    Raises:
        ModelError: An expected output holds NaN or infinity.
    """
    total = 0.0
    for name, reference in expected.items():
        if reference.dtype.kind != "f":
            continue
        # Half precision overflows when it is squared.
        before, after = reference.astype(np.float64), actual[name].astype(np.float64)
        if not np.isfinite(before).all():
            raise ModelError(
                f"output '{name}' of the model is NaN or infinite on the data: nothing can be measured by it"
            )
        if not np.isfinite(after).all():
            return RUINED
        scores = before.reshape(len(before), -1)
        if before.ndim > 1 and scores.shape[1] == max(before.shape[1:]) > 1:
            temperature, p = 1.0, _log_softmax(scores)
            while np.exp(p.max(axis=1)).mean() > SURE:
                temperature *= 2
                p = _log_softmax(scores / temperature)
            q = _log_softmax(after.reshape(len(after), -1) / temperature)
            total += float((np.exp(p) * (p - q)).sum(axis=1).mean())
        else:
            total += float(np.mean(np.square(before - after)) / max(float(np.mean(np.square(before))), 1e-30))
    return total


def _log_softmax(z: np.ndarray) -> NDArray[np.float64]:
    shifted = z - z.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
