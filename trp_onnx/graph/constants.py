"""Constants behind a value: an initializer, or an expression of initializers that never changes.

Exporters hide weights behind Reshape, Transpose, Cast, Identity or DequantizeLinear. Such a chain is
evaluated by ONNX Runtime, and only when the weight is asked for: a layer that is
kept keeps its chain (and its int8 bytes).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.session import run_model
from trp_onnx.graph.shapes import Shape

_IR_VERSION = 10
"""Old enough for every supported runtime, new enough for every type a weight is stored in."""

_LONGEST = 100
"""Nodes of an expression that is evaluated; exporters hide a weight behind two or three."""

# Nodes whose result is not the same every time.
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")


@dataclass(frozen=True)
class Constant:
    """A value that is the same in every run.

    Attributes:
        value: The value in the graph.
        nodes: The nodes that compute it from initializers, in running order; empty for an initializer.
        opset: Version of the default opset that the nodes mean.
    """

    value: ir.Value
    nodes: tuple[ir.Node, ...] = ()
    opset: int = 17

    @property
    def dtype(self) -> ir.DataType | None:
        """Element type; evaluates the chain where the graph does not say."""
        if self.value.const_value is not None:
            return self.value.const_value.dtype
        return self.value.dtype or ir.DataType.from_numpy(self.array().dtype)

    def shape(self, shapes: Mapping[ir.Value, Shape]) -> tuple[int, ...]:
        """Shape; evaluates the chain where shape inference does not know it."""
        if self.value.const_value is not None:
            return tuple(int(d) for d in self.value.const_value.shape.numpy())
        known = shapes.get(self.value)
        if known is not None and None not in known:
            return tuple(d for d in known if d is not None)
        return tuple(self.array().shape)

    def array(self) -> np.ndarray:
        """The constant itself, in its own type."""
        if self.value.const_value is not None:
            return _read(self.value.const_value)
        import onnx

        name = self.value.name or ""
        stored = {
            value.name or "": ir.to_proto(value.const_value)
            for node in self.nodes
            for value in node.inputs
            if value is not None and value.const_value is not None
        }
        for key, proto in stored.items():
            proto.name = key
        graph = onnx.helper.make_graph(
            [ir.to_proto(node) for node in self.nodes],
            "constant",
            [],
            [onnx.helper.make_empty_tensor_value_info(name)],
            list(stored.values()),
        )
        opsets = [onnx.helper.make_opsetid("", self.opset)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        return np.asarray(run_model(model, {})[name])


def _read(tensor: ir.TensorProtocol) -> np.ndarray:
    """A tensor's array; external data is copied and its map let go, so that a large model never piles up."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    array = tensor.numpy().copy()
    let_go(tensor)
    return array


def let_go(tensor: ir.TensorProtocol) -> None:
    """Close the memory map of an external tensor, if nobody looks at it any more."""
    if isinstance(tensor, ir.ExternalTensor):
        with contextlib.suppress(BufferError):
            tensor.release()


def resolve_constant(value: ir.Value | None, opset: int) -> Constant | str:
    """The constant behind a value, or one clause that says why there is none."""
    if value is None:
        return "its weight is missing"
    nodes: dict[ir.Node, None] = {}
    reason = _collect(value, nodes, set())
    return reason or Constant(value, tuple(nodes), opset)


def _collect(value: ir.Value, nodes: dict[ir.Node, None], seen: set[ir.Node]) -> str | None:
    """Add the nodes behind a value in running order; a node that was seen is not walked again, however many ask."""
    if value.const_value is not None:
        return None
    node = value.producer()
    if node is None:
        return f"weight '{value.name}' is an input of the graph: make it an initializer"
    if node in seen:
        return None
    seen.add(node)
    computed = f"weight '{value.name}' is computed at run time by {node.op_type} '{node.name}'"
    if node.op_type in _RANDOM or node.domain not in ("", "ai.onnx") or not node.inputs:
        return computed
    if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
        return computed
    if len(seen) > _LONGEST:
        return f"weight '{value.name}' is computed by more than {_LONGEST} nodes: fold them first"
    for source in node.inputs:
        if source is not None and _collect(source, nodes, seen) is not None:
            return computed
    nodes[node] = None
    return None
