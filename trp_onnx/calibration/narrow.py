"""Layers that lose columns, refitted in running order: each makes up for what was cut before it.

First every layer that lost columns is refitted by itself, as the plan has it (`lowrank.surgeon`). Then the layers are
taken in running order, and each is fitted to give, on what flows into it now, what it gave in the original (`joint`),
by its columns that stay. Samples held out say whether that pays: of the plain refit, the same with a new bias, and the
new weight, each fitted to the other samples, the layer gets the one that errs least there, fitted to all. So a
classifier that a few samples of pooled features would overfit keeps its weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_onnx.calibration.joint import Divided, Joint, SideBySide
from trp_onnx.calibration.moments import LAYER_BYTES, Moments, mean_error, moment_bytes, observable
from trp_onnx.graph.bias import corrects_bias
from trp_onnx.graph.inputs import Samples
from trp_onnx.graph.layers import Layer, LayerKey
from trp_onnx.graph.model import to_proto
from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.surgeon import NO_UNIT, Reader, refit
from trp_onnx.passes import ReplaceWeightsPass
from trp_onnx.passes.factorise import Keep, in_memory

Columns = NDArray[np.bool_]
"""Which columns of a weight go, (G, D)."""

_Change = tuple[Array, Array | None]
"""A weight, (G, N, C, *k), and what is added to the bias of the original, (G N,)."""


def refit_readers(
    model: ir.Model,
    layers: Sequence[Layer],
    gone: Mapping[str, Columns],
    moments: Mapping[str, Moments],
    keep: Keep = in_memory,
) -> dict[str, _Change]:
    """Zero columns of layers, and fit the others of each to make up for them.

    Args:
        model: Normalised, changed in place; all shapes stay.
        layers: Its layers.
        gone: The columns that go, by layer name; equal for layers that share a weight.
        moments: Of what flows into the layers; one without them keeps its other columns.
        keep: How to store weights.

    Returns:
        The new weights and what was added to biases, by layer name.
    """
    found: dict[LayerKey, _Change] = {}
    for layer in layers:
        if layer.name in gone and gone[layer.name].any() and layer.key not in found:
            found[layer.key] = _alone(layer, gone[layer.name], moments.get(layer.name))
    changed = {layer.name: found[layer.key] for layer in layers if layer.name in gone and layer.key in found}
    ReplaceWeightsPass(changed, keep)(model)
    return changed


def refit_in_turn(
    model: ir.Model,
    layers: Sequence[Layer],
    gone: Mapping[str, Columns],
    samples: Samples,
    moments: Mapping[str, Moments],
    keep: Keep = in_memory,
    *,
    progress: Callable[[Sequence[Layer]], Iterable[Layer]] = lambda layers: layers,
) -> list[str]:
    """`refit_readers`, then each of them again behind the ones before it.

    Args:
        model: Normalised, changed in place; all shapes stay.
        layers: Its layers.
        gone: See `refit_readers`.
        samples: As the model takes them.
        moments: See `refit_readers`.
        keep: How to store weights.
        progress: Wraps the list of layers to fit in turn.

    Returns:
        Names of the layers whose weight or bias makes up for what was cut before it.

    Raises:
        ModelError: The model does not run on the samples.
    """
    original = to_proto(model, apart=True)
    plain = refit_readers(model, layers, gone, moments, keep)
    users = Counter(layer.key for layer in layers)
    alone = [
        layer
        for layer in layers
        if layer.name in plain and observable(layer) and not layer.place
        if users[layer.key] == 1 and moment_bytes(layer, 2) <= LAYER_BYTES and layer.name != next(iter(plain))
    ]  # fmt: skip
    if not alone:
        return []
    walk = SideBySide(original, samples)
    improved = []
    for layer in progress(alone):
        moments_now = Divided.of(walk.patches(layer, to_proto(model, apart=True)))
        if moments_now is None or moments_now.held_out is None:
            continue
        before = plain[layer.name]
        after = _fitted(layer, gone[layer.name], moments_now, before)
        if after is not before:
            weight, shift = after
            more = shift if shift is None or before[1] is None else shift - before[1]
            ReplaceWeightsPass({layer.name: (weight, more)}, keep)(model)
            improved.append(layer.name)
    return improved


def _alone(layer: Layer, gone: Columns, moments: Moments | None) -> _Change:
    """The weight of one layer without some columns, and what its bias takes up."""
    weight, centred = layer.weight(), corrects_bias(layer)
    flat = weight.reshape(*weight.shape[:2], -1)
    if moments is None:
        return np.where(gone[:, None], 0.0, flat).reshape(weight.shape), None
    reader = Reader(flat, moments.moment(centred=centred), np.where(gone, 0, NO_UNIT))
    found = refit(reader, np.zeros(0, np.int64)).reshape(weight.shape)
    return found, mean_error(weight - found, moments) if centred else None


def _fitted(layer: Layer, gone: Columns, moments: Divided, before: _Change) -> _Change:
    """What a layer becomes: of three ways to fit it the one that errs least on samples held out, then on all."""
    assert moments.held_out is not None
    judge = Joint(layer, moments.held_out)
    errors = [judge.error(*change) for change in _choices(Joint(layer, moments.fitted), gone)]
    best = int(np.argmin(errors))
    return _choices(Joint(layer, moments.whole()), gone, before)[best]


def _choices(joint: Joint, gone: Columns, plain: _Change | None = None) -> list[_Change]:
    """The plain refit, the same with a new bias, and the weight that does best on what flows in now."""
    plain = plain or _alone(joint.layer, gone, joint.before())
    weight = joint.best(plain[0], stays=~gone)
    return [plain, (plain[0], joint.shift(plain[0])), (weight, joint.shift(weight))]
