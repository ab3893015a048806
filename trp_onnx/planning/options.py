"""What a layer could become: every scheme and rank that costs less than the dense layer.

Layers that share one weight are one `Site`: they get the same factors, and their costs add up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from trp_onnx.layers import Layer
from trp_onnx.linalg import Array
from trp_onnx.planning.curve import DamageCurve
from trp_onnx.schemes import Rank, Scheme, candidates

_TUCKER_STEPS = 32
"""At most so many ranks of each Tucker mode are weighed, evenly spaced: the error changes smoothly."""


@dataclass(frozen=True)
class Option:
    """One way to write a layer.

    Attributes:
        scheme: Name of the scheme; None for the dense layer.
        rank: Its rank; empty for the dense layer.
        macs: Multiply-accumulates, summed over the layers of the site.
        parameters: Entries of the weights.
        error: Squared relative error of the weight, `|W - W'|^2 / |W|^2`.
        measured: What that does to the network's outputs, where it was measured (see `damage`).
    """

    scheme: str | None
    rank: Rank
    macs: int
    parameters: int
    error: float
    measured: float | None = None

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
        options: Everything strictly cheaper than that, at any rank >= 1.
        cheapest: The cheapest option before the break-even guard, to say what is missing.
        vbmf: For each scheme the rank that variational Bayes finds; only filled on request.
    """

    layers: tuple[Layer, ...]
    dense: Option
    options: tuple[Option, ...]
    cheapest: Option | None
    vbmf: dict[str, Rank]


def sites_of(layers: Sequence[Layer]) -> list[tuple[Layer, ...]]:
    """Group the layers that can be factorised by the weight they share."""
    groups: dict[object, list[Layer]] = {}
    for layer in layers:
        if layer.reason is None:
            groups.setdefault(layer.key, []).append(layer)
    return [tuple(group) for group in groups.values()]


def survey(
    layers: tuple[Layer, ...], choice: str, align: int, *, vbmf: bool = False, curve: DamageCurve | None = None
) -> Site:
    """Measure the spectra of one weight and list its options.

    Args:
        layers: One group of `sites_of`.
        choice: A scheme name or "auto".
        align: Ranks are multiples of this many channels, groups counted together.
        vbmf: Whether to compute the variational ranks as well.
        curve: What errors of this weight do to the network's outputs.

    Raises:
        ModelError: The weight holds NaN or infinity.
    """
    owner = layers[0]
    geometry = owner.geometry
    assert geometry is not None
    weight = owner.weight()
    dense = dense_option(layers)
    found: list[Option] = []
    variational: dict[str, Rank] = {}
    for scheme in candidates(choice, geometry.kernel):
        errors = scheme.errors(weight)
        ranks = _ranks(scheme, layers, align)
        found += [_option(layers, scheme, rank, errors, curve) for rank in ranks]
        if vbmf:
            variational[scheme.name] = _round_up(scheme.vbmf_rank(weight), scheme, layers, align)
    paying = tuple(option for option in found if option.macs < dense.macs)
    return Site(layers, dense, paying, min(found, key=lambda o: o.macs, default=None), variational)


def dense_option(site_layers: tuple[Layer, ...]) -> Option:
    """The layers as they are."""
    geometry = site_layers[0].geometry
    assert geometry is not None
    return Option(None, (), _cost(site_layers, None, ()), geometry.parameters, 0.0)


def exact_option(site_layers: tuple[Layer, ...], scheme: Scheme, rank: Rank) -> Option:
    """The option at one given rank, aligned or not."""
    return _option(site_layers, scheme, rank, scheme.errors(site_layers[0].weight()))


def pareto(options: Sequence[Option]) -> list[Option]:
    """The options that no other one beats in both MACs and damage, by rising MACs."""
    best: list[Option] = []
    for option in sorted(options, key=lambda o: (o.macs, o.damage)):
        if not best or option.damage < best[-1].damage:
            best.append(option)
    return best


def _option(
    layers: tuple[Layer, ...], scheme: Scheme, rank: Rank, errors: Array, curve: DamageCurve | None = None
) -> Option:
    geometry = layers[0].geometry
    assert geometry is not None
    parameters = int(scheme.parameters(geometry, rank))
    error = float(errors[rank])
    measured = None if curve is None else curve(error)
    return Option(scheme.name, rank, _cost(layers, scheme, rank), parameters, error, measured)


def _cost(layers: tuple[Layer, ...], scheme: Scheme | None, rank: Rank) -> int:
    return sum(
        layer.geometry.macs if scheme is None else int(scheme.macs(layer.geometry, rank))
        for layer in layers
        if layer.geometry is not None
    )


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
