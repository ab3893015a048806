"""Sizes that a graph computes: what Shape tells of labelled axes, and where the numbers come from that Reshape is told.

Exporters keep batches and lengths dynamic: Shape, Gather, Concat make the vector that says how to reshape. What is told
of an axis that shrinks shrinks by itself. A number that stands in such a vector is changed where it stands, if nothing
else reads it; else the vector is replaced by one of the node's own, in which sizes that stay are copied.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.spaces.rules import Labels, integers, listed, named, rule
from trp_onnx.graph.spaces.trace import Dims, Label, ShrinkCount, Target, Trace

COPY, REST = 0, -1
"""What Reshape is told for the size of the same axis before, and for what is left."""

_LONGEST = 32
"""Nodes through which a number is followed."""


@rule("Shape")
def _shape(trace: Trace, node: ir.Node) -> Labels:
    shape = trace.shape(node.inputs[0])
    labels = trace.of(node.inputs[0])
    if shape is None:
        told: Dims = [(label, axis) for label in labels for axis in label.axes]
        refuse(trace, node, told)
        return ()
    dims: Dims = [next(((la, axis) for la in labels if axis in la.axes), None) for axis in range(len(shape))]
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
    trace.tell(node.outputs[0], dims[start:end])
    return ()


def pass_on(trace: Trace, node: ir.Node) -> None:
    """Follow sizes of labelled axes through a node that reads some of them; what computes with them keeps them."""
    moves = _MOVES.get(node.op_type)
    found = moves(trace, node) if moves is not None else None
    if found is not None:
        trace.tell(node.outputs[0], found)
    elif not (node.op_type in ("Expand", "Reshape") and trace.of(node.inputs[0])):
        for value in node.inputs:
            refuse(trace, node, trace.told(value))


def refuse(trace: Trace, node: ir.Node, dims: Dims) -> None:
    """Axes whose sizes a node reads must not shrink."""
    for dim in dims:
        if dim is not None:
            trace.forbid(dim[0], [dim[1]], f"{named(node)} computes with their number")


def _same(trace: Trace, node: ir.Node) -> Dims:
    return trace.told(node.inputs[0])


def _picked(trace: Trace, node: ir.Node) -> Dims | None:
    dims, indices = trace.told(node.inputs[0]), integers(trace, node.inputs[1])
    return None if indices is None or not dims else [dims[index] for index in indices]


def _sliced(trace: Trace, node: ir.Node) -> Dims | None:
    dims = trace.told(node.inputs[0])
    starts, ends = listed(trace, node, 1, "starts")[0], listed(trace, node, 2, "ends")[0]
    steps, stepped = listed(trace, node, 4, "steps")
    if not dims or starts is None or ends is None or (stepped and steps != (1,)):
        return None
    return dims[starts[0] : ends[0]]


def _concatenated(trace: Trace, node: ir.Node) -> Dims | None:
    found: Dims = []
    for value in node.inputs:
        length = _length(trace, value)
        if length is None:
            return None
        found += trace.told(value) or [None] * length
    return found


_MOVES = {
    "Cast": _same, "Concat": _concatenated, "Gather": _picked, "Identity": _same, "Slice": _sliced, "Squeeze": _same,
    "Unsqueeze": _same,
}  # fmt: skip


def _length(trace: Trace, value: ir.Value | None) -> int | None:
    shape = trace.shape(value)
    return (
        None
        if shape is None or len(shape) > 1
        else int(np.prod([1 if d is None else d for d in shape]))
        if None not in shape
        else None
    )


@dataclass(frozen=True)
class Number:
    """A number that a node is told: where it stands, and whether nothing else reads it."""

    where: ShrinkCount
    alone: bool

    @property
    def value(self) -> int:
        """The number."""
        return self.where.values[self.where.position]


def number(trace: Trace, node: ir.Node, index: int, position: int) -> Number | None:
    """The constant behind an entry of the vector that a node reads; None where it is computed at run time."""
    alone = True
    for _ in range(_LONGEST):
        value = node.inputs[index]
        values = integers(trace, value)
        if value is None or values is not None:
            return Number(ShrinkCount(node, index, values, position), alone) if values else None
        alone = alone and len(value.uses()) == 1
        maker = value.producer()
        if maker is None or maker.op_type not in ("Cast", "Concat", "Identity", "Reshape", "Squeeze", "Unsqueeze"):
            return None
        node, index = maker, 0
        if maker.op_type == "Concat":
            found = _operand(trace, maker, position)
            if found is None:
                return None
            index, position = found
    return None


def _operand(trace: Trace, node: ir.Node, position: int) -> tuple[int, int] | None:
    """The operand of a Concat of vectors in which a position lies, and where in it."""
    for index, value in enumerate(node.inputs):
        length = _length(trace, value)
        if length is None:
            return None
        if position < length:
            return index, position
        position -= length
    return None


def size_targets(
    trace: Trace, node: ir.Node, labels: Sequence[Label], rank: int, same: Collection[int]
) -> list[list[Target]]:
    """What changes in the sizes that a Reshape is told where labelled axes of its result shrink.

    Args:
        trace: Where labels stand.
        node: Told by its second input.
        labels: Of the result.
        rank: Of the result.
        same: Axes of the result that are the same axes of what is reshaped.
    """
    numbers = {axis: number(trace, node, 1, axis) for axis in range(rank)}
    labelled = {axis for label in labels for axis in label.axes}
    refuse(trace, node, [dim for axis, dim in enumerate(trace.told(node.inputs[1])) if axis not in labelled])
    found: list[list[Target]] = []
    if all(_in_place(trace, node, label, axis, numbers[axis], same) for label in labels for axis in label.axes):
        for label in labels:
            found.append([_counting(label, axis, numbers[axis]) for axis in label.axes])
        return found
    own = _own_sizes(labelled, numbers, rank, same)
    if own is None:
        for label in labels:
            trace.close(label.ids, f"the sizes of {named(node)} are computed at run time, and read elsewhere too")
        return [[None] * len(label.axes) for label in labels]
    return [[ShrinkCount(node, 1, own, axis) if own[axis] > 0 else None for axis in label.axes] for label in labels]


def _counting(label: Label, axis: int, found: Number | None) -> Target:
    return found.where if found is not None and found.value not in (COPY, REST) else None


def _in_place(
    trace: Trace, node: ir.Node, label: Label, axis: int, found: Number | None, same: Collection[int]
) -> bool:
    """Whether a size shrinks where it stands, or by itself."""
    if found is not None:
        copied = found.value == COPY
        return axis in same if copied else found.value == REST or found.alone
    dims = trace.told(node.inputs[1])
    dim = dims[axis] if axis < len(dims) else None
    return dim is not None and _alike(label, axis, *dim)


def _alike(a: Label, axis: int, b: Label, other: int) -> bool:
    """Whether two axes are of the same entries."""
    rows = [np.moveaxis(la.ids, la.axes.index(ax), 0).reshape(la.ids.shape[la.axes.index(ax)], -1)
            for la, ax in ((a, axis), (b, other))]  # fmt: skip
    return len(rows[0]) == len(rows[1]) and np.array_equal(rows[0].min(axis=1), rows[1].min(axis=1))


def _own_sizes(
    labelled: Collection[int], numbers: dict[int, Number | None], rank: int, same: Collection[int]
) -> tuple[int, ...] | None:
    """Sizes for a node alone, in which those that are not known are copied, or are what is left."""
    sizes = []
    for axis in range(rank):
        found = numbers[axis]
        if found is not None and (found.value != COPY or axis in same):
            sizes.append(found.value)
        elif axis in same and axis not in labelled:
            sizes.append(COPY)
        else:
            sizes.append(REST)
    return tuple(sizes) if sizes.count(REST) < 2 else None
