"""Which operators tell the units of a space apart: those of all other spaces can be turned to another basis.

A node that reads the units of a value as a vector h, and gives nothing but h, sums of such vectors, and multiples by
what is the same for all units, gives E times the same for E h.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from trp_onnx.graph.spaces.elementwise import Operand, operands_of
from trp_onnx.graph.spaces.rules import ranks_known
from trp_onnx.graph.spaces.trace import Label, Trace

_PASSING = frozenset(
    ("AveragePool", "Concat", "Dropout", "Expand", "Flatten", "GlobalAveragePool", "Identity", "Neg", "ReduceMean",
     "ReduceSum", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
)  # fmt: skip
"""Entries stay what they are, change places, or are summed over axes that hold no units."""

_MIXING = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def told_apart(trace: Trace, node: ir.Node) -> list[Label]:
    """The labels around a node whose units it does not treat alike, but for those that a product sums over."""
    if node.op_type in _PASSING:
        return []
    if node.op_type in _MIXING:
        return _by_layer(trace, node)
    if node.op_type not in ("Add", "Sub", "Sum", "Mul", "Div") or not ranks_known(trace, node):
        return _around(trace, node)
    operands, made = operands_of(trace, node), trace.of(node.outputs[0])
    if node.op_type in ("Mul", "Div"):
        return [label for label in made if _multiplied(label, operands, 2 if node.op_type == "Mul" else 1)]
    return [label for label in made if _added_alike(label, operands)]


def _around(trace: Trace, node: ir.Node) -> list[Label]:
    return [label for value in (*node.inputs, *node.outputs) for label in trace.of(value)]


def _by_layer(trace: Trace, node: ir.Node) -> list[Label]:
    """Those of a convolution of single channels, or of one whose groups share outputs; a bias that all units share."""
    layer = trace.layers.get(node)
    geometry = layer.geometry if layer is not None else None
    if geometry is not None and (geometry.depthwise or (geometry.transposed and geometry.groups > 1)):
        return _around(trace, node)
    if node.op_type == "Gemm" and len(node.inputs) > 2:
        beside = operands_of(trace, node, 2, first=2)
        return [label for label in trace.of(node.outputs[0]) if _added_alike(label, beside)]
    return []


def _added_alike(label: Label, operands: Sequence[Operand]) -> bool:
    """Whether one and the same number is added to several units."""
    return any(label.axes[label.inner] not in operand.axes for operand in operands)


def _multiplied(label: Label, operands: Sequence[Operand], factors: int) -> bool:
    """Whether units are multiplied by different numbers, or divide: are behind so many factors."""
    own = [operand.index for operand in operands if set(operand.axes) & set(label.axes)]
    return len(own) != 1 or own[0] >= factors
