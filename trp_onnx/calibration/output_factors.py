"""Factors that keep the outputs of a layer instead of its weight.

With the moments of what flows into it, errors count as its outputs see them, and its bias takes up what the factors
change in the mean: b' = b + (W - W') E[x].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trp_onnx.calibration.moments import Moments, mean_error
from trp_onnx.graph.bias import corrects_bias
from trp_onnx.graph.layers import Layer
from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.schemes import Rank, Scheme
from trp_onnx.passes.factorise import Split, by_weight


def by_outputs(moments: Mapping[str, Moments]) -> Split:
    """Factors that keep the outputs of the layers whose moments are known, and the weights of the others.

    Args:
        moments: Of what flows into the layers, by name.
    """

    def split(layer: Layer, scheme: Scheme, rank: Rank) -> tuple[Sequence[Array], Array | None]:
        found = moments.get(layer.name)
        if found is None:
            return by_weight(layer, scheme, rank)
        weight, centred = layer.weight(), corrects_bias(layer)
        factors = scheme.split_by(weight, rank, found.moment(centred=centred))
        return factors, mean_error(weight - scheme.merge(factors), found) if centred else None

    return split
