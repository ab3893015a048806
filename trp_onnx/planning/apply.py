"""Carry out a plan: factors alone or in turn, then the statistics of what is behind them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx_ir as ir

from trp_onnx.calibration.batch_norm import reestimate_statistics, unfolded
from trp_onnx.calibration.joint import Original
from trp_onnx.calibration.moments import Moments, collect_moments
from trp_onnx.calibration.narrow import refit_in_turn, refit_readers
from trp_onnx.calibration.output_factors import by_outputs
from trp_onnx.calibration.sequential import factorise_in_turn
from trp_onnx.graph.inputs import Samples
from trp_onnx.graph.layers import Layer, find_layers
from trp_onnx.graph.model import to_proto
from trp_onnx.graph.spaces import Space, find_spaces
from trp_onnx.passes import CutChannelsPass, FactorisePass, TurnSpacesPass
from trp_onnx.passes.factorise import Keep, in_memory
from trp_onnx.planning import Evidence, Plan
from trp_onnx.planning.spaces import columns_gone, was_before
from trp_onnx.progress import track

ASYMMETRIC_SAMPLES = 256
"""Samples that walk through both networks side by side, which keeps their activations twice."""

STATISTICS_SAMPLES = 128
"""Samples on which a BatchNormalization that stays gets its statistics anew."""


def carry_out(
    plan: Plan,
    model: ir.Model,
    layers: Sequence[Layer],
    evidence: Evidence,
    samples: Samples | None = None,
    keep: Keep = in_memory,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    asymmetric: bool = False,
    untouched: Collection[str] = (),
) -> list[str]:
    """Factorise a model in place as the plan says.

    Args:
        plan: Scheme and rank by layer.
        model: Normalised.
        layers: Its layers.
        evidence: With the moments that factors are fitted to.
        samples: What they are fitted to, where there is data.
        keep: How to store the factors, see `FactorisePass`.
        input_shapes: Shapes for inputs with dynamic sizes.
        asymmetric: Whether each layer makes up for those before it, see `sequential`; needs `samples`.
        untouched: Names of the layers whose weights may not change.

    Returns:
        Notes for the owner.

    Raises:
        ModelError: The model does not run on the samples.
    """
    notes: list[str] = []

    def progress(layers: Sequence[Layer]) -> Iterable[Layer]:
        return track(layers, "factorising")

    moments = evidence.moments
    before = None
    if plan.bases:
        layers, moments = _turn(plan, model, moments, samples, keep, input_shapes)
    if plan.kept:
        spaces = [space for space in find_spaces(model, layers, input_shapes) if space.name in plan.kept]
        if asymmetric and samples is not None:
            before = Original(to_proto(model, apart=True), was_before(layers, spaces, plan.kept))
        layers, moments = _cut(plan, model, layers, spaces, moments, samples, keep, input_shapes)
    original = to_proto(model, apart=True) if samples is not None and unfolded(model) else None
    if asymmetric and samples is not None:
        walking = samples.first(ASYMMETRIC_SAMPLES)
        refitted = factorise_in_turn(
            model, layers, plan.chosen, walking, moments, keep,
            input_shapes=input_shapes, untouched=untouched, original=before, progress=progress,
        )  # fmt: skip
        if refitted:
            notes.append(
                f"{len(refitted)} layers that stay dense ('{refitted[0]}', ...) got new weights, which make up for the "
                "factorised layers before them; keep = true in --config leaves one as it is"
            )
    else:
        fitted = by_outputs(moments)
        FactorisePass(plan, fitted, keep=keep, input_shapes=input_shapes, progress=progress)(model)
    if original is not None and samples is not None:
        count = reestimate_statistics(
            model, original, samples.first(STATISTICS_SAMPLES), progress=lambda nodes: track(nodes, "statistics")
        )  # fmt: skip
        if count:
            notes.append(f"{count} BatchNormalizations that cannot be folded got their statistics anew")
    return notes


def _cut(
    plan: Plan,
    model: ir.Model,
    layers: Sequence[Layer],
    spaces: Sequence[Space],
    moments: Mapping[str, Moments],
    samples: Samples | None,
    keep: Keep,
    input_shapes: Mapping[str, Sequence[int]] | None,
) -> tuple[list[Layer], Mapping[str, Moments]]:
    """Cut spaces; the layers of the thinner network, and the moments of those that are factorised."""
    gone = columns_gone(spaces, plan.kept)
    if samples is None:
        refit_readers(model, layers, gone, moments)
    else:
        refit_in_turn(model, layers, gone, samples, moments, progress=lambda layers: track(layers, "refitting"))
    CutChannelsPass(plan.kept, keep=keep, input_shapes=input_shapes)(model)
    thin = find_layers(model, input_shapes)
    if samples is None or not plan.chosen:
        return thin, {}
    wanted = [layer for layer in thin if layer.name in plan.chosen]
    return thin, collect_moments(model, wanted, samples, progress=lambda runs: track(runs, "moments"))


def _turn(
    plan: Plan,
    model: ir.Model,
    moments: Mapping[str, Moments],
    samples: Samples | None,
    keep: Keep,
    input_shapes: Mapping[str, Sequence[int]] | None,
) -> tuple[list[Layer], Mapping[str, Moments]]:
    """Turn the units of spaces to components; the layers then, and the moments of what flows into them."""
    reading = {
        consumer.layer.name
        for space in find_spaces(model, find_layers(model, input_shapes), input_shapes)
        for consumer in space.consumers
        if space.name in plan.bases
    }
    TurnSpacesPass(plan.bases, keep=keep, input_shapes=input_shapes)(model)
    layers = find_layers(model, input_shapes)
    known = {name: found for name, found in moments.items() if name not in reading}
    if samples is not None:
        again = [layer for layer in layers if layer.name in reading]
        known |= collect_moments(model, again, samples, progress=lambda runs: track(runs, "moments"))
    return layers, known
