"""What a plan will come to in time, said before anyone trains for hours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trp_onnx.graph.layers import Layer
from trp_onnx.latency.table import LatencyTable
from trp_onnx.lowrank.schemes import SCHEMES, Rank

NOTHING = 1.1
"""A speed-up below this is not worth training for: it is within what a kernel's update or a busy device moves."""


def forecast(table: LatencyTable, layers: Sequence[Layer], chosen: Mapping[str, tuple[str, Rank]] | None) -> str:
    """One sentence: how fast the ranks will make the network, or what it could come to where they are not known.

    Args:
        table: Of this network.
        layers: Its layers.
        chosen: Scheme and rank by layer name; None where training finds the ranks.
    """
    most, here = table.fastest(layers), f"on {table.target}"
    if most < NOTHING:
        return (
            f"low rank has nothing to win in time {here}: with every layer at its fastest rank the network runs "
            f"{most:.2f}x as fast; it gets smaller, not faster"
        )
    if chosen is None:
        return f"{here}, training can make the network {most:.2f}x as fast at the very most, whatever ranks it finds"
    free = [layer for layer in layers if layer.name in chosen]
    parts = [table.part(layer, SCHEMES[chosen[layer.name][0]], chosen[layer.name][1]) for layer in free]
    speedup = 1.0 / (1.0 - sum(table.share(layer) * (1.0 - part) for layer, part in zip(free, parts, strict=True)))
    found = f"{here}, these ranks are predicted to make the network {speedup:.2f}x as fast"
    slower = [layer for layer, part in zip(free, parts, strict=True) if part >= 1]
    if slower:
        found += f"; {len(slower)} layers ('{slower[0].name}', ...) get no faster by theirs"
    if speedup < NOTHING or slower:
        found += f". --speedup plans ranks in the steps of the kernels ({table.step} channels); {most:.2f}x is the most"
    return found
