"""What becomes of the layers that share one weight under the per-layer map, --energy or --vbmf, in words too."""

from __future__ import annotations

from collections.abc import Sequence

from trp_onnx.errors import UsageError
from trp_onnx.graph.layers import Layer
from trp_onnx.lowrank.schemes import SCHEMES, Geometry, candidates
from trp_onnx.planning.options import LEAST_GAIN, Evidence, Option, Site, exact_option, variational_ranks
from trp_onnx.planning.rules import LayerRule


def by_rule(
    site: Site, rule: LayerRule, choice: str, align: int, evidence: Evidence, left: Geometry
) -> tuple[Option, str] | None:
    """What the map asks for; None where it only restricts the scheme.

    Args:
        site: The layers, as the spaces that the map cuts leave them.
        rule: Its entry.
        choice: A scheme name or "auto".
        align: Ranks are multiples of this many channels.
        evidence: What errors are read from.
        left: The geometry that the first of the layers has left.

    Raises:
        UsageError: It asks for what the layer cannot be.
    """
    name = site.layers[0].name
    if rule.keep:
        return site.dense, "the configuration keeps it"
    if rule.energy is not None:
        return by_energy(site, rule.energy)
    if rule.vbmf:
        return by_vbmf(site, choice, align)
    if rule.ratio is not None:
        within = [option for option in site.options if option.macs <= rule.ratio * site.dense.macs]
        if not within:
            raise UsageError(f"'{name}' cannot be brought to {rule.ratio:g} of its MACs: {_cheapest(site)}")
        best = min(within, key=lambda option: (option.error, option.macs))
        return best, f"the configuration asks for at most {rule.ratio:g} of its MACs"
    if rule.rank is None:
        return None
    geometry = site.layers[0].geometry
    assert geometry is not None
    fitting = [s for s in candidates(choice, geometry.kernel) if len(s.full_rank(geometry)) == len(rule.rank)]
    if not fitting:
        raise UsageError(
            f"'{name}': rank {list(rule.rank)} does not fit scheme {choice} and kernel {list(geometry.kernel)}"
        )
    possible = [s for s in fitting if all(r <= f for r, f in zip(rule.rank, s.full_rank(left), strict=True))]
    if not possible:
        asked, full = f"'{name}': rank {list(rule.rank)}", f"full rank {list(fitting[0].full_rank(left))}"
        if left == geometry:
            raise UsageError(f"{asked} exceeds its {full}")
        raise UsageError(
            f"{asked} exceeds the {full} that its cut spaces leave: give a lower rank, or keep more of their units"
        )
    options = [exact_option(site.layers, scheme, rule.rank, evidence) for scheme in possible]
    best = min(options, key=lambda option: (option.error, option.macs))
    cheaper = SCHEMES[best.scheme or ""].macs(left, best.rank) < left.macs
    return best, f"the configuration gives the rank{'' if cheaper else ', dearer than the dense layer'}"


def by_energy(site: Site, energy: float) -> tuple[Option, str]:
    """The cheapest option that discards at most so much of the energy."""
    if not site.options:
        return site.dense, f"no rank pays: {_cheapest(site)}"
    within = [option for option in site.options if option.error <= energy]
    if not within:
        best = min(site.options, key=lambda option: option.error)
        return (
            site.dense,
            f"no rank that pays discards at most {energy:g} of the energy; the best, {best.scheme} at rank "
            f"{show_rank(best.rank)}, discards {best.error:.3f}",
        )
    best = min(within, key=lambda option: (option.macs, option.error))
    return best, f"discards {best.error:.4f} of the energy"


def by_vbmf(site: Site, choice: str, align: int) -> tuple[Option, str]:
    """The cheapest scheme at the rank that variational Bayes finds for it."""
    ranks = variational_ranks(site.layers, choice, align)
    options = [option for option in site.options if ranks.get(option.scheme or "") == option.rank]
    if not options:
        found = ", ".join(f"{name} {show_rank(rank)}" for name, rank in ranks.items())
        return site.dense, f"no rank that variational Bayes finds pays ({found})"
    return min(options, key=lambda option: (option.macs, option.error)), "the rank that variational Bayes finds"


def why_chosen(option: Option) -> str:
    """Why a budget took an option."""
    if option.measured is None:
        return f"discards {option.error:.4f} of the energy"
    return f"discards {option.error:.4f} of the energy, for a damage of {option.measured:.2g} to the outputs"


def why_dense(site: Site) -> str:
    """Why a budget left a layer as it is."""
    if not site.options:
        return f"no rank pays: {_cheapest(site)}"
    return "the budget is better spent here than elsewhere"


def _cheapest(site: Site) -> str:
    option = site.cheapest
    if option is None:
        geometry = site.layers[0].geometry
        assert geometry is not None
        return f"no chosen scheme fits its kernel {list(geometry.kernel)}"
    rank = show_rank(option.rank)
    if option.time is not None and site.dense.time:
        part = option.time / site.dense.time
        cheapest = f"the fastest, {option.scheme} at rank {rank}, takes {part:.2f} of the dense layer's time"
    else:
        part = option.macs / max(1, site.dense.macs)
        cheapest = f"{option.scheme} at rank {rank} costs {part:.2f} of the dense layer"
    little = ", which is next to nothing of the network" if part <= 1 - LEAST_GAIN else ""
    return f"{cheapest}{little}"


def show_rank(rank: Sequence[int] | None) -> str:
    """A rank for people: 16, or 16,24 for Tucker-2."""
    return ",".join(map(str, rank or ()))


def nothing_to_do(layers: Sequence[Layer]) -> str:
    """Why there is no layer to plan for."""
    if not layers:
        return "the model has no Conv, ConvTranspose, Gemm or MatMul: there is nothing to factorise"
    first = layers[0]
    return f"none of the {len(layers)} layers can be factorised; the first, {first.op} '{first.name}': {first.reason}"
