"""Which layers int8 hurts, and how few of them must stay in float.

Each layer is quantised alone, and the divergence of the network's outputs (see `divergence`) is what it does. Then
layers return to float in that order, the worst first, as few as keep the answers: their number is found by bisection,
each candidate run on samples that nothing was calibrated on. With c and c' the classes of the largest scores before and
after, and p the original's probabilities,

    lost = mean_b (p_b(c_b) - p_b(c'_b))      for outputs of one score a class
           |y - y'|^2 / |y|^2                  for any other floats
           part of the samples that changed    for the rest

The first is the accuracy that is lost if p is to be believed, and needs no labels: an answer that changes between two
classes that the original held for equally likely costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from trp_onnx.divergence import divergence
from trp_onnx.edge.calibrated import Calibrated
from trp_onnx.progress import track
from trp_onnx.runtime import Arrays, open_session, relative_error, run_session

SWEPT = 64
"""Samples on which single layers are judged."""


@dataclass(frozen=True)
class InFloat:
    """A layer that stays in float.

    Attributes:
        layer: Its name.
        reason: Why.
    """

    layer: str
    reason: str


def outputs_of(model: onnx.ModelProto, batches: Sequence[dict[str, np.ndarray]]) -> Arrays:
    """Outputs on all batches, one after the other."""
    session = open_session(model)
    found = [run_session(session, batch) for batch in batches]
    arrays = [name for name, value in found[0].items() if isinstance(value, np.ndarray)]  # no sequences
    return {name: np.concatenate([np.atleast_1d(outputs[name]) for outputs in found]) for name in arrays}


def lost(expected: Arrays, actual: Arrays) -> float:
    """See the module; of several outputs the worst."""
    worst = 0.0
    for name, before in expected.items():
        after, scores = actual[name], before.reshape(len(before), -1)
        if before.dtype.kind != "f":
            same = before.shape == after.shape and (before == after).reshape(len(before), -1).all(axis=1)
            worst = max(worst, 1.0 - float(np.mean(same)))
            continue
        if before.ndim > 1 and scores.shape[1] == max(before.shape[1:]) > 1:
            p, rows = _probabilities(scores), np.arange(len(scores))
            now = after.reshape(len(after), -1).argmax(axis=1)
            worst = max(worst, float((p.max(axis=1) - p[rows, now]).mean()))
        else:
            worst = max(worst, relative_error(before, after) ** 2)
    return worst


def _probabilities(scores: np.ndarray) -> np.ndarray:
    """Of scores, (b, classes), which may be probabilities already."""
    if scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        return scores
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def keep_what_is_hurt(
    calibrated: Calibrated,
    float_model: onnx.ModelProto,
    judging: Sequence[dict[str, np.ndarray]],
    allowed: float,
    always: Sequence[str] = (),
) -> tuple[onnx.ModelProto, list[InFloat], float]:
    """An int8 model that loses no more than is allowed, with as few layers in float as that takes.

    Args:
        calibrated: What int8 models are made of.
        float_model: The original.
        judging: Batches that nothing was calibrated on.
        allowed: What may be lost, see the module, 0 to 1.
        always: Layers that stay in float whatever they do.

    Returns:
        The model, what stays in float, and what it loses.
    """
    expected = outputs_of(float_model, judging)
    kept = [InFloat(name, "asked for: first or last layer") for name in always]

    def attempt(worst: Sequence[tuple[str, float]]) -> tuple[onnx.ModelProto, float]:
        model = calibrated.quantised(kept=[*always, *(name for name, _ in worst)])
        return model, lost(expected, outputs_of(model, judging))

    model, loses = attempt([])
    kept += [
        InFloat(name, f"onnxruntime's quantiser does not take it: {why}")
        for name, why in calibrated.refused.items()
        if name not in always
    ]
    always = [entry.layer for entry in kept]
    if loses <= allowed:
        return model, kept, loses
    order = _by_damage(calibrated, float_model, judging, always)
    low, high = 0, len(order)  # `low` loses too much
    found = attempt(order)
    while high - low > 1:
        middle = (low + high) // 2
        candidate = attempt(order[:middle])
        if candidate[1] <= allowed:
            high, found = middle, candidate
        else:
            low = middle
    kept += [
        InFloat(name, f"int8 hurts it: alone it moves the outputs by {damage:.2g} ({place} of {len(order)})")
        for place, (name, damage) in enumerate(order[:high], start=1)
    ]
    return found[0], kept, found[1]


def _by_damage(
    calibrated: Calibrated,
    float_model: onnx.ModelProto,
    judging: Sequence[dict[str, np.ndarray]],
    always: Sequence[str],
) -> list[tuple[str, float]]:
    """Layers and what each of them does alone, the worst first."""
    size = max(1, len(next(iter(judging[0].values()))))
    few = judging[: max(1, -(-SWEPT // size))]
    expected = outputs_of(float_model, few)
    found = []
    for name in track([name for name in calibrated.layers if name not in always], "int8, layer by layer"):
        found.append((name, divergence(expected, outputs_of(calibrated.quantised(only=[name]), few))))
    return sorted(found, key=lambda entry: -entry[1])
