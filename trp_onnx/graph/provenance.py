"""Which layer a node is a factor of, written down at the node: names are the owner's, and say nothing.

ONNX gives nodes metadata from IR version 10 on. In files of older versions it stands in the same field, which their
readers pass over and which the checker and ONNX Runtime accept; the file's version stays what it is.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

LAYER, PART = "trp_onnx.layer", "trp_onnx.part"


def mark_factor(factor: ir.Node, layer: ir.Node, name: str, part: str) -> None:
    """Note down that a node is a part of a layer; factors of a factor are parts of the layer that was there first.

    Args:
        factor: The new node.
        layer: The node in whose place it stands.
        name: The name of that layer.
        part: Which part it is, e.g. "v".
    """
    before = layer.metadata_props.get(PART)
    factor.metadata_props[LAYER] = origin_of(layer) or name
    factor.metadata_props[PART] = f"{before}/{part}" if before else part


def origin_of(node: ir.Node) -> str | None:
    """Name of the layer that a node is a factor of; None for every other node."""
    return node.metadata_props.get(LAYER)


def origins_of(graph: Iterable[ir.Node]) -> dict[str, str]:
    """For every factor in a graph, by its node's name, the layer that it was."""
    return {node.name: layer for node in graph if node.name and (layer := origin_of(node)) is not None}
