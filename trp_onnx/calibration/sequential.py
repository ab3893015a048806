"""Layers that make up for those before them.

Factorised alone, a layer keeps its outputs on the inputs that it had; behind other factorised layers it gets others.
So the layers are taken in running order, and each is fitted to give, on what flows into it *now*, what it gave before
(`joint`), by the least of tr((W* - W') S (W* - W')^T). That goes for every layer behind the first factorised one: what
stays dense can make up for an error as well, at no cost in time, W' = W* then; it does where that errs less on samples
held out than its own weight, and than that with a new bias.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from trp_onnx.calibration.joint import Divided, Joint, Original, SideBySide, Was
from trp_onnx.calibration.moments import LAYER_BYTES, Moments, moment_bytes, observable
from trp_onnx.calibration.output_factors import by_outputs
from trp_onnx.graph.inputs import Samples
from trp_onnx.graph.layers import Layer
from trp_onnx.graph.model import to_proto
from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.schemes import Rank, Scheme
from trp_onnx.passes import FactorisePass, ReplaceWeightsPass
from trp_onnx.passes.factorise import Keep, in_memory

ENOUGH = 4
"""A layer that stays dense is refitted where there are so many patches for each of their entries."""

RIDGE = 1e-2
"""W* is held to W by this part of the mean variance: what few samples say of the rarest directions is noise."""


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
    original: Original | None = None,
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
        original: What is made up for; the model as it is by default.
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
    original = original or Original(to_proto(model, apart=True), {})
    was = original.layers
    factorise = partial(FactorisePass, keep=keep, input_shapes=input_shapes)
    factorise({layer.name: chosen[layer.name] for layer in together}, by_outputs(moments))(model)
    walk = SideBySide(original.model, samples)
    refitted: list[str] = []
    changed = {*chosen, *(layer.name for layer in layers if _narrower(layer, was.get(layer.name)))}
    first = next((i for i, layer in enumerate(layers) if layer.name in changed), len(layers))
    for layer in progress([layer for layer in layers[first:] if layer.name in alone and layer.name not in untouched]):
        moments_now = Divided.of(walk.patches(layer, to_proto(model, apart=True), was.get(layer.name)))
        if layer.name in chosen:
            wanted = {layer.name: chosen[layer.name]}
            if moments_now is None:
                factorise(wanted)(model)
            else:
                factorise(wanted, _fitted_to(Joint(layer, moments_now.whole(), was.get(layer.name))))(model)
            continue
        change = None if moments_now is None else _refitted(layer, moments_now, was.get(layer.name))
        if change is not None:
            ReplaceWeightsPass({layer.name: change}, keep)(model)
            refitted.append(layer.name)
    return refitted


def _narrower(layer: Layer, was: Was | None) -> bool:
    """Whether a layer lost inputs."""
    return was is not None and (layer.shape or ())[2:] != (was.layer.shape or ())[2:]


def _refitted(layer: Layer, moments: Divided, was: Was | None) -> tuple[Array, Array | None] | None:
    """What a dense layer becomes, and what is added to its bias; None where it errs least as it is."""
    whole = Joint(layer, moments.whole(), was)
    if moments.held_out is None or whole.moments.patches < ENOUGH * whole.size:
        return None
    own = layer.weight()

    def choices(joint: Joint) -> list[tuple[Array, Array | None]]:
        best = joint.best(own, RIDGE)
        return [(own, None), (own, joint.shift(own)), (best, joint.shift(best))]

    judge = Joint(layer, moments.held_out, was)
    errors = [judge.error(*change) for change in choices(Joint(layer, moments.fitted, was))]
    best = int(np.argmin(errors))
    return choices(whole)[best] if best else None


def _fitted_to(joint: Joint) -> Callable[[Layer, Scheme, Rank], tuple[Sequence[Array], Array | None]]:
    """The split of one layer by the joint moments of its patches before and now."""

    def split(layer: Layer, scheme: Scheme, rank: Rank) -> tuple[Sequence[Array], Array | None]:
        factors = scheme.split(joint.best(layer.weight(), RIDGE), rank, joint.now())
        return factors, joint.shift(scheme.merge(factors))

    return split
