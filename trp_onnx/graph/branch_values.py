"""Values within the branches of If, as further outputs of it; of a branch that is not taken they are empty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx


@dataclass(frozen=True)
class Asked:
    """A value that a node reads, and the type of its elements (`TensorProto.DataType`)."""

    value: str
    dtype: int


def give_out(graph: onnx.GraphProto, asked: Mapping[str, Asked]) -> dict[str, str]:
    """Make values outputs of the nodes of a graph, in place.

    Args:
        graph: Of a model, whose names are unique in all its subgraphs.
        asked: By the first output of the node that reads the value, which may stand in a branch of a branch.

    Returns:
        What each is called in this graph, by the same.
    """
    given: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "If":
            branches = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
            inner = [give_out(branch, asked) | _read_here(branch, asked) for branch in branches]
            for reader in [reader for found in inner for reader in found]:
                for branch, found in zip(branches, inner, strict=True):
                    given[reader] = f"{reader}/read"
                    _end_with(branch, found.get(reader), f"{given[reader]} of {node.name}", asked[reader].dtype)
                node.output.append(given[reader])
    return given


def _read_here(graph: onnx.GraphProto, asked: Mapping[str, Asked]) -> dict[str, str]:
    readers = [node.output[0] for node in graph.node if node.output and node.output[0] in asked]
    return {reader: asked[reader].value for reader in readers}


def _end_with(branch: onnx.GraphProto, value: str | None, name: str, dtype: int) -> None:
    """A further output of a branch: a value, or nothing."""
    name = f"{name}, {'taken' if value is not None else 'not taken'}"
    if value is not None:
        branch.node.append(onnx.helper.make_node("Identity", [value], [name]))
    else:
        empty = onnx.helper.make_tensor(name, dtype, [0], [])
        branch.node.append(onnx.helper.make_node("Constant", [], [name], value=empty))
    branch.output.append(onnx.helper.make_tensor_value_info(name, dtype, None))
