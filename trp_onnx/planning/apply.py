"""Carry out a plan: factors alone or in turn, then the statistics of what is behind them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx_ir as ir

from trp_onnx.calibration.batch_norm import reestimate_statistics, unfolded
from trp_onnx.calibration.output_factors import by_outputs
from trp_onnx.calibration.sequential import factorise_in_turn
from trp_onnx.graph.inputs import Samples
from trp_onnx.graph.layers import Layer
from trp_onnx.graph.model import to_proto
from trp_onnx.passes import FactorisePass
from trp_onnx.passes.factorise import Keep, in_memory
from trp_onnx.planning import Evidence, Plan
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

    original = to_proto(model, apart=True) if samples is not None and unfolded(model) else None
    if asymmetric and samples is not None:
        walking = samples.first(ASYMMETRIC_SAMPLES)
        refitted = factorise_in_turn(
            model, layers, plan.chosen, walking, evidence.moments, keep,
            input_shapes=input_shapes, untouched=untouched, progress=progress,
        )  # fmt: skip
        if refitted:
            notes.append(
                f"{len(refitted)} layers that stay dense ('{refitted[0]}', ...) got new weights, which make up for the "
                "factorised layers before them; keep = true in --config leaves one as it is"
            )
    else:
        fitted = by_outputs(evidence.moments)
        FactorisePass(plan, fitted, keep=keep, input_shapes=input_shapes, progress=progress)(model)
    if original is not None and samples is not None:
        count = reestimate_statistics(
            model, original, samples.first(STATISTICS_SAMPLES), progress=lambda nodes: track(nodes, "statistics")
        )  # fmt: skip
        if count:
            notes.append(f"{count} BatchNormalizations that cannot be folded got their statistics anew")
    return notes
