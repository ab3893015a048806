"""What a layer could become: every scheme and rank that costs noticeably less than the dense layer.

Cost is MACs, and time as well where it was measured. An option that saves next to nothing of its layer or of the
network is none: it costs accuracy, and a budget would take it for a slip of the clock. Layers that share one weight
are one `Site`: they get the same factors, and their costs add up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from trp_onnx.calibration.moments import Moments
from trp_onnx.graph.bias import corrects_bias
from trp_onnx.graph.layers import Layer
from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.schemes import SCHEMES, Moment, Rank, Scheme, candidates, error_curves
from trp_onnx.planning.curve import DamageCurve

if TYPE_CHECKING:
    from trp_onnx.latency.table import LatencyTable

LEAST_GAIN = 0.02
"""An option saves at least this part of its layer's MACs, and of its time."""

LEAST_SAVED, LEAST_OF_AVERAGE = 0.001, 0.1
"""It saves at least this part of the network, or, in a network of many layers, of what one layer is on average."""

_TUCKER_STEPS = 32
"""At most so many ranks of each Tucker mode are weighed, evenly spaced: the error changes smoothly."""


@dataclass(frozen=True)
class Evidence:
    """What is known of a network beyond its weights; each part may be missing.

    Attributes:
        moments: Of what flows into its layers, by name: errors are those of the outputs then.
        damage: What errors of each layer do to the network's outputs, by its name.
        table: What its layers and their factors take in time.
        left: Names of the layers that no budget changes, see `left_by_budgets`: nothing else is known of them.
        curves: What `errors` has found; goes along where more becomes known.
    """

    moments: Mapping[str, Moments] = field(default_factory=dict)
    damage: Mapping[str, DamageCurve] = field(default_factory=dict)
    table: LatencyTable | None = None
    left: frozenset[str] = frozenset()
    curves: dict[object, dict[str, Array]] = field(default_factory=dict, repr=False, compare=False)

    def errors(self, layer: Layer, schemes: Sequence[Scheme]) -> dict[str, Array]:
        """Relative squared errors at every rank, by scheme; each is computed once.

        Raises:
            ModelError: The weight holds NaN or infinity.
        """
        known = self.curves.setdefault((layer.key, id(self.moments.get(layer.name))), {})
        missing = [scheme for scheme in schemes if scheme.name not in known]
        if missing:
            known |= error_curves(missing, layer.weight(), self.moment(layer, exact=False))
        return {scheme.name: known[scheme.name] for scheme in schemes}

    def moment(self, layer: Layer, *, exact: bool = True) -> Moment | None:
        """What errors of a layer's weight are weighed with: (G, D, D), or a product; None for the weight itself.

        Without `exact` it is in float32.
        """
        moments = self.moments.get(layer.name)
        return None if moments is None else moments.moment(centred=corrects_bias(layer), exact=exact)


@dataclass(frozen=True)
class Option:
    """One way to write a layer.

    Attributes:
        scheme: Name of the scheme; None for the dense layer.
        rank: Its rank; empty for the dense layer.
        macs: Multiply-accumulates, summed over the layers of the site.
        parameters: Entries of the weights.
        error: Squared relative error, of the layer's outputs where moments are known, else of its weight.
        measured: What that does to the network's outputs, where it was measured (see `damage`).
        time: Part of the dense network's time, where there is a latency table.
    """

    scheme: str | None
    rank: Rank
    macs: int
    parameters: int
    error: float
    measured: float | None = None
    time: float | None = None

    @property
    def damage(self) -> float:
        """What the allocation makes least: the measured damage, or else the error."""
        return self.error if self.measured is None else self.measured


@dataclass(frozen=True, eq=False)
class Site:
    """The layers that share one weight, and what they could become.

    Attributes:
        layers: In graph order; the first gives the factors their names.
        dense: The layers as they are.
        options: Everything noticeably cheaper than that in MACs, and in time where it is known, at any rank >= 1.
        surveyed: Those that take too long as well; where none is cheaper, the cheapest of each scheme.
    """

    layers: tuple[Layer, ...]
    dense: Option
    options: tuple[Option, ...]
    surveyed: tuple[Option, ...] = ()

    @property
    def cheapest(self) -> Option | None:
        """The cheapest there is, whether it pays or not, to say what is missing."""
        return min(self.surveyed, key=lambda o: (o.macs >= self.dense.macs, o.time or 0.0, o.macs), default=None)

    def saves(self, option: Option) -> float:
        """What an option saves: of the network's time where it was measured, else MACs."""
        if option.time is not None and self.dense.time is not None:
            return self.dense.time - option.time
        return self.dense.macs - option.macs


def sites_of(layers: Sequence[Layer]) -> list[tuple[Layer, ...]]:
    """Group the layers that can be factorised by the weight they share."""
    groups: dict[object, list[Layer]] = {}
    for layer in layers:
        if layer.reason is None:
            groups.setdefault(layer.key, []).append(layer)
    return [tuple(group) for group in groups.values()]


def survey(layers: tuple[Layer, ...], choice: str, align: int, evidence: Evidence) -> Site:
    """Measure the spectra of one weight and list its options.

    Args:
        layers: One group of `sites_of`.
        choice: A scheme name or "auto".
        align: Ranks are multiples of this many channels, groups counted together.
        evidence: What errors and time are read from.

    Raises:
        ModelError: The weight holds NaN or infinity.
    """
    owner = layers[0]
    assert owner.geometry is not None
    dense = dense_option(layers, evidence.table)
    found: list[Option] = []
    schemes = candidates(choice, owner.geometry.kernel)
    for scheme, errors in zip(schemes, evidence.errors(owner, schemes).values(), strict=True):
        found += _options(layers, scheme, _ranks(scheme, layers, align), errors, evidence, _below(dense) + 1)
    return _site(layers, dense, found)


def most_saved(layers: tuple[Layer, ...], choice: str, align: int, table: LatencyTable | None) -> float:
    """What any option saves at most: of the network's time where there is a table, else MACs; 0 where none pays."""
    geometry = layers[0].geometry
    assert geometry is not None
    evidence, dense = Evidence(table=table), dense_option(layers, table)
    found: list[Option] = []
    for scheme in candidates(choice, geometry.kernel):
        errors = np.broadcast_to(0.0, tuple(size + 1 for size in scheme.full_rank(geometry)))  # whatever they are
        found += _options(layers, scheme, _ranks(scheme, layers, align), errors, evidence, _below(dense) + 1)
    site = _site(layers, dense, found)
    return max((site.saves(option) for option in site.options), default=0.0)


def least_saved(sites: int) -> float:
    """The part of a network of so many sites that an option saves at least."""
    return min(LEAST_SAVED, LEAST_OF_AVERAGE / sites)


def retimed(site: Site, table: LatencyTable) -> Site:
    """The site by another latency table of the same network."""
    found = [replace(option, time=_time(site.layers, option.scheme, option.rank, table)) for option in site.surveyed]
    return _site(site.layers, dense_option(site.layers, table), found)


def _site(layers: tuple[Layer, ...], dense: Option, found: Sequence[Option]) -> Site:
    paying = [option for option in found if option.macs <= _below(dense) and _in_time(option, dense)]
    return Site(layers, dense, tuple(paying), tuple(found))


def _below(dense: Option) -> int:
    """The MACs that an option has at most."""
    return int((1 - LEAST_GAIN) * dense.macs)


def _in_time(option: Option, dense: Option) -> bool:
    return option.time is None or dense.time is None or option.time <= (1 - LEAST_GAIN) * dense.time


def variational_ranks(layers: tuple[Layer, ...], choice: str, align: int) -> dict[str, Rank]:
    """For each scheme the rank that variational Bayes finds in the weight, aligned."""
    geometry = layers[0].geometry
    assert geometry is not None
    weight = layers[0].weight()
    return {
        scheme.name: _round_up(scheme.vbmf_rank(weight), scheme, layers, align)
        for scheme in candidates(choice, geometry.kernel)
    }


def dense_option(site_layers: tuple[Layer, ...], table: LatencyTable | None = None) -> Option:
    """The layers as they are."""
    geometry = site_layers[0].geometry
    assert geometry is not None
    time = None if table is None else _time(site_layers, None, (), table)
    macs = sum(layer.times * layer.geometry.macs for layer in site_layers if layer.geometry is not None)
    return Option(None, (), macs, geometry.parameters, 0.0, time=time)


def exact_option(site_layers: tuple[Layer, ...], scheme: Scheme, rank: Rank, evidence: Evidence) -> Option:
    """The option at one given rank, aligned or not."""
    owner = site_layers[0]
    return _options(site_layers, scheme, [rank], scheme.errors_by(owner.weight(), evidence.moment(owner)), evidence)[0]


Cost = Callable[[Option], int]


def in_macs(option: Option) -> int:
    """What an option costs in MACs."""
    return option.macs


def in_time(option: Option) -> int:
    """What an option costs in billionths of the dense network's time."""
    assert option.time is not None
    return math.ceil(option.time * 1e9)


def pareto(options: Sequence[Option], cost: Cost = in_macs) -> list[Option]:
    """The options that no other one beats in both cost and damage, by rising cost."""
    best: list[Option] = []
    for option in sorted(options, key=lambda o: (cost(o), o.damage)):
        if not best or option.damage < best[-1].damage:
            best.append(option)
    return best


def _options(
    layers: tuple[Layer, ...],
    scheme: Scheme,
    ranks: Sequence[Rank],
    errors: Array,
    evidence: Evidence,
    below: int = 0,
) -> list[Option]:
    """The options at those ranks that cost less than so many MACs; where none does, the cheapest of them."""
    geometry = layers[0].geometry
    assert geometry is not None
    modes = tuple(np.array(ranks, np.int64).T)
    macs = np.sum([layer.times * scheme.macs(layer.geometry, modes) for layer in layers if layer.geometry], axis=0)
    parameters, lost = scheme.parameters(geometry, modes), errors[modes]
    paying = np.flatnonzero(macs < below)
    return [
        Option(
            scheme.name,
            ranks[i],
            int(macs[i]),
            int(parameters[i]),
            float(lost[i]),
            *_judged(layers, scheme, ranks[i], float(lost[i]), evidence),
        )
        for i in (paying.tolist() or [int(np.argmin(macs))])
    ]


def _judged(
    layers: tuple[Layer, ...], scheme: Scheme, rank: Rank, error: float, evidence: Evidence
) -> tuple[float | None, float | None]:
    """What it does to the outputs and what time it takes, where either is known."""
    curve, table = evidence.damage.get(layers[0].name), evidence.table
    return (
        None if curve is None else curve(error),
        None if table is None else _time(layers, scheme.name, rank, table),
    )


def _time(layers: tuple[Layer, ...], scheme: str | None, rank: Rank, table: LatencyTable) -> float:
    """Part of the dense network's time."""
    if scheme is None:
        return sum(table.share(layer) for layer in layers)
    return sum(table.share(layer) * table.part(layer, SCHEMES[scheme], rank) for layer in layers)


def _step(layers: tuple[Layer, ...], align: int) -> int:
    """Ranks are per group: G groups of rank r make G r channels."""
    geometry = layers[0].geometry
    assert geometry is not None
    return align // math.gcd(align, geometry.groups)


def _ranks(scheme: Scheme, layers: tuple[Layer, ...], align: int) -> list[Rank]:
    geometry = layers[0].geometry
    assert geometry is not None
    full = scheme.full_rank(geometry)
    step = _step(layers, align)
    if len(full) == 1:
        return [(rank,) for rank in _multiples(full[0], step)]
    modes = []
    for size in full:
        coarse = step * max(1, math.ceil(size / step / _TUCKER_STEPS))
        modes.append(_multiples(size, coarse))
    return list(itertools.product(*modes))


def _multiples(full: int, step: int) -> list[int]:
    """Multiples of `step` up to full rank; full rank itself where the first step exceeds it."""
    return list(range(step, full + 1, step)) or [full]


def _round_up(rank: Rank, scheme: Scheme, layers: tuple[Layer, ...], align: int) -> Rank:
    geometry = layers[0].geometry
    assert geometry is not None
    step = _step(layers, align)
    return tuple(
        min(size, math.ceil(r / step) * step) for r, size in zip(rank, scheme.full_rank(geometry), strict=True)
    )
