"""Layers that make up for those before them.

Factorised alone, a layer keeps its outputs on the inputs that it had; behind other factorised layers it gets others.
So the layers are taken in running order, and each is fitted to give, on what flows into it *now*, what it gave before:

    minimise E |W x - W' x'|^2 = tr((W* - W') S (W* - W')^T) + const,    S = E[x' x'^T],    W* = W E[x x'^T] S^-1

x being its inputs in the original network and x' those in the one that is compressed up to it; the bias takes up the
means, b' = b + W E[x] - W' E[x'] (Zhang et al., arXiv 1505.06798, section 3.3, "asymmetric reconstruction"). That goes
for every layer behind the first factorised one: what stays dense can make up for an error as well, at no cost in
time, W' = W* then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from trp_onnx.calibration.moments import LAYER_BYTES, Moments, Sums, flow_of, moment_bytes, observable, patches_of
from trp_onnx.calibration.output_factors import by_outputs
from trp_onnx.graph.bias import corrects_bias
from trp_onnx.graph.inputs import Samples
from trp_onnx.graph.layers import Layer
from trp_onnx.graph.model import to_proto
from trp_onnx.graph.partial_run import Walk
from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.schemes import Rank, Scheme
from trp_onnx.passes import FactorisePass, ReplaceWeightsPass
from trp_onnx.passes.factorise import Keep, in_memory

RIDGE = 1e-2
"""W* is held to W by this part of the mean variance: what few samples say of the rarest directions is noise."""

ENOUGH = 4
"""A layer that stays dense is refitted where there are so many patches for each of their entries."""


def factorise_in_turn(
    model: ir.Model,
    layers: Sequence[Layer],
    chosen: Mapping[str, tuple[str, Rank]],
    samples: Samples,
    moments: Mapping[str, Moments],
    keep: Keep = in_memory,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    untouched: Collection[str] = (),
    progress: Callable[[Sequence[Layer]], Iterable[Layer]] = lambda layers: layers,
) -> list[str]:
    """Carry out a plan, each layer fitted behind the ones before it.

    Args:
        model: Normalised, changed in place.
        layers: Its layers.
        chosen: Scheme name and rank, by layer name.
        samples: As the model takes them.
        moments: For layers that share a weight, which are fitted once; those not observed go by their weights.
        keep: How to store the factors, see `FactorisePass`.
        input_shapes: Shapes for inputs with dynamic sizes.
        untouched: Names of the layers that keep their weights.
        progress: Wraps the list of layers to fit.

    Returns:
        Names of the layers that stay dense and were refitted.

    Raises:
        ModelError: The model does not run on the samples.
    """
    users = Counter(layer.key for layer in layers if layer.reason is None)
    alone = {
        layer.name
        for layer in layers
        if observable(layer) and not layer.place and users[layer.key] == 1 and moment_bytes(layer, 2) <= LAYER_BYTES
    }
    together = [layer for layer in layers if layer.name in chosen and layer.name not in alone]
    original = to_proto(model, apart=True)
    factorise = partial(FactorisePass, keep=keep, input_shapes=input_shapes)
    factorise({layer.name: chosen[layer.name] for layer in together}, by_outputs(moments))(model)
    before, after = Walk(original, samples), Walk(original, samples)
    refitted: list[str] = []
    first = next((i for i, layer in enumerate(layers) if layer.name in chosen), len(layers))
    for layer in progress([layer for layer in layers[first:] if layer.name in alone and layer.name not in untouched]):
        now, output, flow = to_proto(model, apart=True), layer.node.outputs[0].name or "", flow_of(layer)
        before.advance(original, output)
        after.advance(now, output)
        sums, positions = Sums(), (np.random.default_rng(0), np.random.default_rng(0))
        for pair in zip(before.run(original, [flow]), after.run(now, [flow]), strict=True):
            patches = [
                patches_of(layer, values[flow], len(samples), rng)
                for (values, _), rng in zip(pair, positions, strict=True)
            ]
            sums.add(np.concatenate(patches, axis=2))
        if not sums.finite:  # by its weights, or as it is
            factorise({name: chosen[name] for name in (layer.name,) if name in chosen})(model)
            continue
        joint = sums.moments()
        if layer.name in chosen:
            factorise({layer.name: chosen[layer.name]}, _fitted_to(joint))(model)
        elif joint.patches >= ENOUGH * joint.mean.shape[1] // 2:
            best, _ = _best(layer, joint)
            ReplaceWeightsPass({layer.name: (best, _shift(layer, best, joint))}, keep)(model)
            refitted.append(layer.name)
    return refitted


def _fitted_to(joint: Moments) -> Callable[[Layer, Scheme, Rank], tuple[Sequence[Array], Array | None]]:
    """The split of one layer by the joint moments of its patches before and now, (G, 2 D)."""

    def split(layer: Layer, scheme: Scheme, rank: Rank) -> tuple[Sequence[Array], Array | None]:
        best, moment = _best(layer, joint)
        factors = scheme.split(best, rank, moment)
        return factors, _shift(layer, scheme.merge(factors), joint)

    return split


def _best(layer: Layer, joint: Moments) -> tuple[Array, Array]:
    """W*, (G, N, C, *k), and the moment S of what flows in now, (G, D, D)."""
    weight = layer.weight()
    flat = weight.reshape(*weight.shape[:2], -1)
    size = flat.shape[-1]
    centred = corrects_bias(layer)
    whole = joint.second(centred=centred)
    now = Moments(joint.mean[:, size:], joint.spread[:, size:, size:], joint.patches, joint.scale)
    moment = now.matrix(centred=centred)
    power = np.trace(moment, axis1=1, axis2=2) / size
    held = moment + RIDGE * power[:, None, None] * np.eye(size)
    # What holds W* to W is on both sides: where nothing has changed, W* is W.
    target = flat @ (whole[:, :size, size:] + held - whole[:, size:, size:])
    best = np.swapaxes(np.linalg.solve(held, np.swapaxes(target, 1, 2)), 1, 2)
    return best.reshape(weight.shape), moment


def _shift(layer: Layer, weight: Array, joint: Moments) -> Array | None:
    """What the bias takes up when the layer computes with another weight: (G N,)."""
    if not corrects_bias(layer):
        return None
    old, new = (w.reshape(*w.shape[:2], -1) for w in (layer.weight(), weight))
    size = old.shape[-1]
    return np.asarray(old @ joint.mean[:, :size, None] - new @ joint.mean[:, size:, None]).reshape(-1)
