"""Weights that stay in the file after their layers are factorised, because something else reads them too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from trp_onnx.graph.layers import Layer


@dataclass(frozen=True)
class Tie:
    """What keeps the weight of a layer that is factorised.

    Attributes:
        weight: The largest initializer that stays.
        entries: Entries of all that stay.
        reader: A node that reads them, or "an output of the model".
    """

    weight: str
    entries: int
    reader: str


def ties_of(sites: Sequence[tuple[Layer, ...]]) -> dict[str, Tie]:
    """The ties of layers, by name; layers whose weight goes have none.

    Args:
        sites: The layers that are factorised, those that share a weight together.
    """
    gone = {layer.node for layers in sites for layer in layers}
    chains = [layers[0].constant.nodes for layers in sites if layers[0].constant is not None]
    changed = True
    while changed:  # one chain may end in another
        changed = False
        for chain in chains:
            for node in reversed(chain):
                if node not in gone and not any(_readers(value, gone) for value in node.outputs):
                    gone.add(node)
                    changed = True
    found: dict[str, Tie] = {}
    for layers in sites:
        constant = layers[0].constant
        if constant is None:
            continue
        stored = [constant.value, *(value for node in constant.nodes for value in node.inputs)]
        staying: dict[ir.Value, str] = {}
        for value in stored:
            if value is not None and value.const_value is not None and (readers := _readers(value, gone)):
                staying[value] = readers[0]
        entries = sum(value.const_value.size for value in staying if value.const_value is not None)
        if entries:
            largest = max(staying, key=lambda value: value.const_value.size if value.const_value is not None else 0)
            tie = Tie(largest.name or "", entries, staying[largest])
            found |= {layer.name: tie for layer in layers}
    return found


def _readers(value: ir.Value, gone: set[ir.Node]) -> list[str]:
    """Who reads a value, besides the nodes that go."""
    readers = [f"{node.op_type} '{node.name}'" for node in value.consumers() if node not in gone]
    return [*readers, *(["an output of the model"] if value.is_graph_output() else [])]
