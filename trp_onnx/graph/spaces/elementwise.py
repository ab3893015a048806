"""Rules of operators that work entry by entry, or along axes that hold no units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.spaces.rules import Labels, closed, integers, listed, named, ranks_known, rule, unknown
from trp_onnx.graph.spaces.trace import NONE, Label, Trace


@rule(
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "CastLike", "Ceil", "Celu", "Clip",
    "Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "FastGelu", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "QuickGelu", "Reciprocal", "Relu", "Round", "Selu",
    "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh",
    "ThresholdedRelu",
)  # fmt: skip
def _unary(trace: Trace, node: ir.Node) -> Labels:
    labels = trace.of(node.inputs[0])
    for value in node.inputs[1:]:
        trace.close_value(value, f"{named(node)} reads them as a parameter")
        if labels and value is not None and trace.shape(value) not in ((), (1,)):  # FastGelu's bias
            return closed(trace, node, f"{named(node)} has a parameter for each of them")
    return labels


@dataclass(frozen=True, eq=False)
class Operand:
    """A value that is broadcast against others.

    Attributes:
        index: Its place among the node's inputs.
        value: The value.
        labels: Its labels, on axes of the result.
        axes: Its own axes, by those of the result; those that are broadcast are left out.
    """

    index: int
    value: ir.Value
    labels: tuple[Label, ...]
    axes: dict[int, int]


def operands_of(trace: Trace, node: ir.Node, rank: int = 0, first: int = 0) -> list[Operand]:
    """The inputs of a node, which are of known rank, from one on; the result has at least `rank` axes."""
    values = [(index, value) for index, value in enumerate(node.inputs) if value is not None and index >= first]
    rank = max(rank, *(len(trace.shape(value) or ()) for _, value in values))
    found = []
    for index, value in values:
        shape = trace.shape(value) or ()
        shift = rank - len(shape)
        axes = {axis + shift: axis for axis, size in enumerate(shape) if size != 1}
        found.append(Operand(index, value, tuple(label.shifted(shift) for label in trace.of(value)), axes))
    return found


@rule(
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
def _broadcasting(trace: Trace, node: ir.Node) -> Labels:
    return meet(trace, node, operands_of(trace, node)) if ranks_known(trace, node) else unknown(trace, node)


def meet(trace: Trace, node: ir.Node, operands: Sequence[Operand], given: Sequence[Label] = ()) -> list[Label]:
    """The labels of what comes of operands that are broadcast against one another.

    Args:
        trace: Where labels stand.
        node: The node that reads them.
        operands: What it reads.
        given: Labels that the result has already.
    """
    found = list(given)
    for operand in operands:
        for label in operand.labels:
            found = _merged(trace, node, found, label)
    for operand in operands:
        mine = {axis for label in operand.labels for axis in label.axes}
        shape = trace.shape(operand.value) or ()
        for label in found:
            axes = {axis: operand.axes[axis] for axis in label.axes if axis in operand.axes and axis not in mine}
            if any(shape[axis] is None for axis in axes.values()):
                trace.close(label.ids, f"a size of '{operand.value.name}' is not known: give it (--input-shape)")
            else:
                trace.attach(label, operand.value, (node, operand.index), axes, named(node))
    return found


def _merged(trace: Trace, node: ir.Node, found: Sequence[Label], label: Label) -> list[Label]:
    """Labels of a result, with one more: those that share an axis with it become one with it."""
    apart = [other for other in found if not set(other.axes) & set(label.axes)]
    for other in found:
        if other not in apart:
            label = _joined(trace, node, other, label)
    return [*apart, label]


def _joined(trace: Trace, node: ir.Node, a: Label, b: Label) -> Label:
    axes = tuple(sorted({*a.axes, *b.axes}))
    ids = [np.expand_dims(label.ids, [i for i, axis in enumerate(axes) if axis not in label.axes]) for label in (a, b)]
    reason = f"{named(node)} combines it with entries that stay"
    trace.join(ids[0], ids[1], reason)
    first, second = np.broadcast_arrays(*ids)
    wider = a if len(a.axes) >= len(b.axes) else b
    return Label(axes, np.where(first == NONE, second, first), axes.index(wider.axes[wider.inner]))


@rule("BatchNormalization", "InstanceNormalization")
def _per_channel(trace: Trace, node: ir.Node) -> Labels:
    """Parameters by channel; what InstanceNormalization averages over is not labelled."""
    shape = trace.shape(node.inputs[0])
    if shape is None:
        return unknown(trace, node)
    labels: Labels = trace.of(node.inputs[0])
    if node.op_type == "InstanceNormalization":
        labels = _along(trace, node, labels, range(2, len(shape)), "averages over them")
    for label in labels:
        for index, value in enumerate(node.inputs[1:], 1):
            if value is not None and 1 in label.axes:
                trace.attach(label, value, (node, index), {1: 0}, named(node))
    if any(value.uses() for value in node.outputs[1:]):
        return closed(trace, node, f"{named(node)} is in training mode")
    return labels


def _along(trace: Trace, node: ir.Node, labels: Sequence[Label], axes: Iterable[int], does: str) -> list[Label]:
    """Forbid axes along which a node mixes entries, which keep their places."""
    axes = set(axes)
    for label in labels:
        trace.forbid(label, axes, f"{named(node)} {does}")
    return list(labels)


@rule("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "CumSum")
def _along_one_axis(trace: Trace, node: ir.Node) -> Labels:
    shape = trace.shape(node.inputs[0])
    if shape is None:
        return unknown(trace, node)
    old = node.op_type != "LpNormalization" and trace.opset < 13
    axis = node.attributes.get_int("axis", 1 if old else -1)
    if node.op_type == "CumSum":
        given = integers(trace, node.inputs[1])
        axes = {given[0] % len(shape)} if given else set(range(len(shape)))
    elif old:  # flattened to two axes before
        axes = set(range(axis % len(shape), len(shape)))
    else:
        axes = {axis % len(shape)}
    labels = trace.of(node.inputs[0])
    return _along(trace, node, labels, axes, "mixes them: each output depends on all")


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "MeanVarianceNormalization",
      "GroupNormalization", "LRN")  # fmt: skip
def _normalising(trace: Trace, node: ir.Node) -> Labels:
    shape = trace.shape(node.inputs[0])
    if shape is None:
        return unknown(trace, node)
    if node.op_type == "MeanVarianceNormalization":
        axes = {axis % len(shape) for axis in node.attributes.get_ints("axes", (0, 2, 3))}
    elif node.op_type in ("GroupNormalization", "LRN"):
        axes = set(range(1, len(shape) if node.op_type == "GroupNormalization" else 2))
    else:
        axes = set(range(node.attributes.get_int("axis", -1) % len(shape), len(shape)))
    for value in node.inputs[1:]:
        trace.close_value(value, f"{named(node)} reads them as a parameter")
    does = "normalises over them, so that each output depends on all"
    return _along(trace, node, trace.of(node.inputs[0]), axes, does)


@rule("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
      "ReduceSum", "ReduceSumSquare", "ArgMax", "ArgMin")  # fmt: skip
def _reducing(trace: Trace, node: ir.Node) -> Labels:
    shape = trace.shape(node.inputs[0])
    if shape is None:
        return unknown(trace, node)
    if node.op_type.startswith("Arg"):
        numbers: tuple[int, ...] | None = (node.attributes.get_int("axis", 0),)
    else:
        numbers, given = listed(trace, node, 1, "axes")
        if not given or numbers == ():
            if node.attributes.get_int("noop_with_empty_axes", 0):
                return trace.of(node.inputs[0])
            numbers = tuple(range(len(shape)))
    if numbers is None:
        return closed(trace, node, f"{named(node)} reduces axes that are computed at run time")
    axes = {number % len(shape) for number in numbers}
    labels = reduced(trace, trace.of(node.inputs[0]), axes, f"{named(node)} puts them together to one")
    if not node.attributes.get_int("keepdims", 1):
        labels = [without(label, axes) for label in labels]
    return labels


def reduced(trace: Trace, labels: Sequence[Label], axes: set[int], reason: str) -> list[Label]:
    """Labels of a value of which axes are summed up: an inner axis must not shrink, rows shrink alike."""
    found = []
    for label in labels:
        here = [axis for axis in label.axes if axis in axes]
        if label.axes[label.inner] in here:
            trace.forbid(label, [label.axes[label.inner]], reason)
            continue
        left: Label | None = label
        for axis in here:
            left = trace.whole(left, axis) if left is not None else None
        if left is not None:
            found.append(left)
    return found


def without(label: Label, axes: Iterable[int]) -> Label:
    """A label of a value that lost axes which it did not have."""
    gone = sorted(axes)
    return Label(tuple(axis - sum(a < axis for a in gone) for axis in label.axes), label.ids, label.inner)


@rule("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
def _pooling(trace: Trace, node: ir.Node) -> Labels:
    labels = trace.of(node.inputs[0])
    rank = max((axis + 1 for label in labels for axis in label.axes), default=2)
    if len(node.outputs) > 1 and node.outputs[1].uses():
        return closed(trace, node, f"the places of maxima that {named(node)} gives count entries of all channels")
    labels = tuple(_along(trace, node, labels, range(2, rank), "moves a window over them"))
    return [label for label in labels if max(label.axes) < 2]


@rule("QuantizeLinear", "DequantizeLinear")
def _quantising(trace: Trace, node: ir.Node) -> Labels:
    if trace.shape(node.inputs[1]) not in ((), (1,)):
        return closed(trace, node, f"{named(node)} has a scale for each of them: compress the float model first")
    return trace.of(node.inputs[0])
