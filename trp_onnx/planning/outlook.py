"""Does low rank help this network? A verdict before anything is compressed, from spectra and rules of thumb.

One option a layer is taken at a price of what it costs, which gives all trade-offs of a Lagrangian at once:

    option_l = argmin_o  error_l(o) + price cost_l(o)
    strain   = sum_l MACs_l error_l(option_l) / sum_l MACs_l

error is the squared relative error of a layer, of its outputs where moments are known, else of its weight; cost is
time where there is a latency table, else MACs. What a strain does to a network's task, and all that is said of
training, int8 and minutes, are rules of thumb from `benchmarks/results`; docs/verdicts.md holds verdicts beside what
came true. Their sources:

    loss      without_training, tasks: `--speedup S --data --asymmetric --no-widths` on five networks. The least strain
              at which more than a point was lost was 0.018 by outputs and 0.072 by weights (SqueezeNet); MobileNetV2
              lost 24 points at 0.040 and 0.093, so half of that and less counts as little
    training  trp_cifar10: 2.5 to 2.84 times fewer MACs for 0.4 points on two ResNets of 3x3 convolutions, after 12 and
              24 epochs of 48,000 images; training_generality: 336 steps gave SqueezeNet half of its loss back
    int8      edge: 2.2 to 3.4 times as fast on five convolutional networks, for 0.04 points at most; low rank made it
              slower at 2 million MACs a layer, 1.2 times as fast again at 15 and 1.7 times at 86
    minutes   tasks, without_training: whole commands; trp_cifar10: 13 to 19 billion MACs a second on two cores
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

import numpy as np

from trp_onnx.graph.layers import Layer, network_macs
from trp_onnx.planning.options import Cost, Evidence, Site, in_macs, in_time, pareto, sites_of, survey
from trp_onnx.process.parallel import each

LITTLE = {"weights": 0.03, "outputs": 0.01}
"""Strain up to which about a point is lost at most, by what errors are of."""

SEVERAL = 2.0
"""At so many times that, a few points."""

LEAST_SPEEDUP = 1.1
"""Less is not worth a file of its own."""

TRAINED_MACS = 2.5
"""Times fewer MACs that training kept within half a point, of networks whose MACs lie in kernels wider than 1x1."""

TRAINED_ON, MACS_A_SECOND = 500_000, 12e9
"""Samples that such a training sees, and what two cores train."""

MULTIPLIES, SLOWS = 10e6, 5e6
"""MACs a layer from which low rank makes int8 faster, and below which slower."""

_PRICES = np.geomspace(1e-4, 1e4, 400)
"""Error for the whole network's cost."""

Means = Literal["rank", "width", "training", "int8"]


@dataclass(frozen=True)
class Outlook:
    """What compression is expected to bring; every number is a prediction.

    Attributes:
        means: By which means something is to be won; empty where by none.
        judged_by: What speed-ups are of: "time", by a latency table, or "MACs".
        kernels: What the latency table was measured on; None without one.
        errors_of: Whether errors are those of "weights" or of "outputs" on samples.
        fastest: The largest speed-up of any ranks, whatever that loses.
        by_rank: Speed-up that ranks alone bring for a loss of about a point at most; None below 1.1.
        at_a_loss: Speed-up that ranks alone bring for a few points; None below 1.1.
        by_training: Speed-up at as many MACs as training left two ResNets for about half a point; None below 1.1, and
            where most MACs lie in kernels of 1x1.
        open_spaces: Spaces of channels, hidden units and dimensions of heads of which some can be removed.
        macs_a_layer: Multiply-accumulates of a layer, on average.
        minutes: Of a command on two cores that trains nothing.
        training_minutes: Of such a training; None where `by_training` is.
    """

    means: tuple[Means, ...]
    judged_by: Literal["time", "MACs"]
    kernels: str | None
    errors_of: Literal["weights", "outputs"]
    fastest: float
    by_rank: float | None
    at_a_loss: float | None
    by_training: float | None
    open_spaces: int
    macs_a_layer: int
    minutes: float
    training_minutes: float | None


class _Point(NamedTuple):
    """One choice of options: its speed-up, the MACs that remain, and its strain."""

    speedup: float
    macs: float
    strain: float


def look_out(layers: Sequence[Layer], evidence: Evidence, align: int, open_spaces: int) -> Outlook | None:
    """The verdict on a network; None where not all of its MACs are known.

    Args:
        layers: From `find_layers`.
        evidence: Moments and the latency table, as far as they are known.
        align: Ranks are multiples of this many channels.
        open_spaces: Spaces of which units can be removed.

    Raises:
        ModelError: A weight holds NaN or infinity.
    """
    total = network_macs((layer, layer.macs) for layer in layers)
    if not total or any(layer.macs is None for layer in layers):
        return None
    table, little = evidence.table, LITTLE["outputs" if evidence.moments else "weights"]
    sites = list(each(lambda group: survey(group, "auto", align, evidence), sites_of(layers)))
    points = _points(sites, total, timed=table is not None)
    by_rank = _fastest(point for point in points if point.strain <= little)
    trained = None
    if _share(layers, total, _is_wide) > 0.5:
        trained = _fastest(point for point in points if point.macs >= 1 / TRAINED_MACS)
    means: dict[Means, bool] = {
        "rank": by_rank is not None, "width": open_spaces > 0, "training": trained is not None,
        "int8": _share(layers, total, _is_convolution) > 0.5,
    }  # fmt: skip
    return Outlook(
        tuple(name for name, helps in means.items() if helps),
        "MACs" if table is None else "time", None if table is None else str(table.target),
        "outputs" if evidence.moments else "weights", round(max(point.speedup for point in points), 3), by_rank,
        _fastest(point for point in points if point.strain <= SEVERAL * little), trained, open_spaces,
        total // len(layers), max(2.0, 2e-9 * total),
        None if trained is None else round(TRAINED_ON * total / MACS_A_SECOND / 60, 1),
    )  # fmt: skip


def _points(sites: Sequence[Site], total: int, *, timed: bool) -> list[_Point]:
    """What comes out at each price."""
    cost: Cost = in_time if timed else in_macs
    whole = 1e9 if timed else float(total)
    fronts = [pareto((site.dense, *site.options), cost) for site in sites]
    table = [np.array([(cost(o) / whole, o.error, o.macs / total) for o in front]) for front in fronts]
    dense = sum(np.array([cost(site.dense) / whole, 0.0, site.dense.macs / total]) for site in sites)
    rest = np.array([1.0, 0.0, 1.0]) - dense
    shares = [site.dense.macs / total for site in sites]
    found = []
    for price in (0.0, *_PRICES):
        picks = [options[np.argmin(options[:, 1] + price * options[:, 0])] for options in table]
        spent, _, macs = sum(picks, rest)
        strain = sum(share * pick[1] for share, pick in zip(shares, picks, strict=True))
        found.append(_Point(float(1.0 / spent), float(macs), float(strain)))
    return found


def _fastest(points: Iterable[_Point]) -> float | None:
    """The largest speed-up, where it is worth a file of its own."""
    found = max((point.speedup for point in points), default=1.0)
    return round(found, 3) if found >= LEAST_SPEEDUP else None


def _share(layers: Sequence[Layer], total: int, counts: Callable[[Layer], bool]) -> float:
    """Part of the MACs in layers of a kind."""
    return network_macs((layer, layer.macs) for layer in layers if counts(layer)) / total


def _is_convolution(layer: Layer) -> bool:
    return "Conv" in layer.op


def _is_wide(layer: Layer) -> bool:
    """Whether its kernel is wider than 1x1, and it is no depthwise convolution."""
    geometry = layer.geometry
    return layer.reason is None and geometry is not None and prod(geometry.kernel) > 1 and not geometry.depthwise
