"""Rules of operators that put entries elsewhere, side by side or apart, and leave their values as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.shapes import Shape
from trp_onnx.graph.spaces.elementwise import Operand, meet, operands_of, without
from trp_onnx.graph.spaces.rules import Labels, closed, integers, listed, named, ranks_known, rule, unknown
from trp_onnx.graph.spaces.sizes import number as told_number
from trp_onnx.graph.spaces.sizes import size_targets
from trp_onnx.graph.spaces.trace import NONE, Ids, Label, ShrinkCount, Target, Trace


@rule("Transpose")
def _transpose(trace: Trace, node: ir.Node) -> Labels:
    if not ranks_known(trace, node):
        return unknown(trace, node)
    rank = len(trace.shape(node.inputs[0]) or ())
    order = node.attributes.get_ints("perm", tuple(reversed(range(rank))))
    labels = trace.of(node.inputs[0])
    return [label.moved([order.index(axis) for axis in label.axes]) for label in labels]


@rule("Squeeze", "Unsqueeze")
def _squeeze(trace: Trace, node: ir.Node) -> Labels:
    if not ranks_known(trace, node):
        return unknown(trace, node)
    labels = trace.of(node.inputs[0])
    numbers, given = listed(trace, node, 1, "axes")
    if numbers is None and given:
        return closed(trace, node, f"the axes of {named(node)} are computed at run time")
    shape = trace.shape(node.inputs[0]) or ()
    if node.op_type == "Squeeze":
        if numbers is None:
            numbers = tuple(axis for axis, size in enumerate(shape) if size == 1)
        gone = {number % len(shape) for number in numbers}
        return [without(label, gone) for label in labels]
    rank = len(trace.shape(node.outputs[0]) or ())
    new = {number % rank for number in numbers or ()}
    places = [axis for axis in range(rank) if axis not in new]
    return [replace(label, axes=tuple(places[axis] for axis in label.axes)) for label in labels]


@rule("Concat")
def _concat(trace: Trace, node: ir.Node) -> Labels:
    if not ranks_known(trace, node):
        return unknown(trace, node)
    rank = len(trace.shape(node.outputs[0]) or ())
    axis = node.attributes.get_int("axis", 0) % rank
    operands = operands_of(trace, node)
    across = [
        replace(
            operand,
            labels=tuple(label for label in operand.labels if axis not in label.axes),
            axes={a: b for a, b in operand.axes.items() if a != axis},
        )
        for operand in operands
    ]
    return [*meet(trace, node, across), *_side_by_side(trace, node, operands, axis)]


def _side_by_side(trace: Trace, node: ir.Node, operands: Sequence[Operand], axis: int) -> list[Label]:
    """The labels along the axis on which operands are put together."""
    along = [next((label for label in operand.labels if axis in label.axes), None) for operand in operands]
    found = [label for label in along if label is not None]
    if not found:
        return []
    axes = found[0].axes
    sizes = [size for operand in operands if (size := (trace.shape(operand.value) or ())[axis]) is not None]
    if any(label.axes != axes for label in found) or len(sizes) < len(operands):
        for label in found:
            trace.close(label.ids, f"{named(node)} puts them beside entries of another kind, or of unknown number")
        return []
    index = axes.index(axis)
    pieces = []
    for part, size in zip(along, sizes, strict=True):
        shape = [size if i == index else found[0].ids.shape[i] for i in range(len(axes))]
        pieces.append(np.full(shape, NONE, np.int64) if part is None else part.ids)
        if part is None and len(axes) > 1 and found[0].inner != index:
            # Rows that nothing is removed from stand beside others, along the axis that shrinks.
            for other in found:
                trace.close(other.ids, f"{named(node)} puts them beside rows that stay")
    return [Label(axes, np.concatenate(pieces, axis=index), found[0].inner)]


@rule("Split")
def _split(trace: Trace, node: ir.Node) -> Labels:
    shape = trace.shape(node.inputs[0])
    if shape is None:
        return unknown(trace, node)
    axis = node.attributes.get_int("axis", 0) % len(shape)
    labels = trace.of(node.inputs[0])
    along = [label for label in labels if axis in label.axes]
    sizes, given = listed(trace, node, 1, "split")
    if sizes is None and not given and shape[axis] is not None:
        sizes = _even(shape[axis] or 0, len(node.outputs))
    if sizes is None or sum(sizes) != shape[axis]:
        for label in along:
            trace.close(label.ids, f"the sizes of {named(node)} are computed at run time")
        along = []
    where: int | str = "split" if trace.opset < 13 else 1
    starts = np.cumsum([0, *(sizes or ())])
    outputs = []
    for position in range(len(node.outputs)):
        parts = [label for label in labels if axis not in label.axes]
        for label in along:
            index = label.axes.index(axis)
            ids = label.ids.take(range(starts[position], starts[position + 1]), index)
            piece = replace(label, ids=ids)
            trace.place(piece, _at(label, axis, ShrinkCount(node, where, tuple(sizes or ()), position)))
            parts.append(piece)
        outputs.append(parts)
    for output, parts in zip(node.outputs[1:], outputs[1:], strict=True):
        trace.put(output, parts)
    return outputs[0]


def _even(size: int, parts: int) -> tuple[int, ...]:
    """Sizes where none are given: equal, the last one smaller where it must be."""
    each = -(-size // parts)
    return (*[each] * (parts - 1), size - each * (parts - 1))


def _at(label: Label, axis: int, target: Target) -> list[Target]:
    """Targets of a label, for one of its axes."""
    return [target if a == axis else None for a in label.axes]


@rule("Slice")
def _slice(trace: Trace, node: ir.Node) -> Labels:
    shape = trace.shape(node.inputs[0])
    if shape is None:
        return unknown(trace, node)
    starts, _ = listed(trace, node, 1, "starts")
    ends, _ = listed(trace, node, 2, "ends")
    axes, axes_given = listed(trace, node, 3, "axes")
    steps, steps_given = listed(trace, node, 4, "steps")
    labels = list(trace.of(node.inputs[0]))
    if axes is None and not axes_given and starts is not None:
        axes = tuple(range(len(starts)))
    if axes is None or (steps is None and steps_given):
        return closed(trace, node, f"the axes of {named(node)} are computed at run time")
    for position, axis in enumerate(axis % len(shape) for axis in axes):
        step = steps[position] if steps else 1
        for number, label in enumerate(labels):
            if axis not in label.axes:
                continue
            if starts is None or ends is None or step not in (1, -1):
                trace.close(label.ids, f"{named(node)} takes entries at places that removing some would move")
                labels[number] = replace(label, ids=np.full_like(label.ids, NONE))
            else:
                labels[number] = _sliced(trace, node, label, axis, position, starts, ends, step)
    return [label for label in labels if label.ids.size]


def _sliced(
    trace: Trace, node: ir.Node, label: Label, axis: int, position: int, starts: Sequence[int], ends: Sequence[int],
    step: int,
) -> Label:  # fmt: skip
    """The ids between two bounds, which are numbers that shrink."""
    index = label.axes.index(axis)
    size = label.ids.shape[index]
    taken = range(size)[starts[position] : ends[position] : step]
    if step == 1:
        low, high = taken.start, max(taken.start, taken.stop)
        for where, name, numbers, bound in ((1, "starts", starts, low), (2, "ends", ends, high)):
            if 0 < bound < size:
                before = replace(label, ids=label.ids.take(range(bound), index))
                values = tuple(bound if i == position else number for i, number in enumerate(numbers))
                how = ShrinkCount(node, name if name in node.attributes else where, values, position)
                trace.place(before, _at(label, axis, how))
    elif len(taken) < size:
        trace.close(label.ids, f"{named(node)} takes a part of them backwards")
    piece = replace(label, ids=label.ids.take(taken, index))
    if piece.ids.size:
        trace.place(piece, [None] * len(label.axes))
    return piece


@rule("Gather")
def _gather(trace: Trace, node: ir.Node) -> Labels:
    trace.close_value(node.inputs[1], f"{named(node)} reads them as places")
    shape, picked = trace.shape(node.inputs[0]), trace.shape(node.inputs[1])
    if shape is None or picked is None:
        return unknown(trace, node)
    axis = node.attributes.get_int("axis", 0) % len(shape)
    indices = integers(trace, node.inputs[1])
    found = []
    for label in trace.of(node.inputs[0]):
        if axis in label.axes:
            trace.forbid(label, [axis], f"{named(node)} picks them by their numbers: write it as Slice or Split")
            if indices is None or len(label.axes) == 1:
                trace.close(label.ids, f"{named(node)} picks them by numbers that are computed at run time")
                continue
            index = label.axes.index(axis)
            ids = label.ids.take([number % label.ids.shape[index] for number in indices], index)
            if not picked:
                inner = min(label.inner - (label.inner > index), ids.ndim - 2)
                one = Label(tuple(a - (a > axis) for a in label.axes if a != axis), np.take(ids, 0, index), inner)
                trace.place(one, [None] * len(one.axes))
                found.append(one)
                continue
            if len(picked) > 1:
                trace.close(label.ids, f"{named(node)} picks them by a table of numbers")
                continue
            label = replace(label, ids=ids)
        by = len(picked) - 1
        found.append(replace(label, axes=tuple(a + by if a > axis else a for a in label.axes)))
    return found


@rule("Pad")
def _pad(trace: Trace, node: ir.Node) -> Labels:
    """What is padded along an axis of units is as good as new units."""
    shape = trace.shape(node.inputs[0])
    if shape is None:
        return unknown(trace, node)
    pads, _ = listed(trace, node, 1, "pads")
    axes = integers(trace, node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    if pads is None or (len(node.inputs) > 3 and node.inputs[3] is not None and axes is None):
        return closed(trace, node, f"the sizes of {named(node)} are computed at run time")
    padded = [axis % len(shape) for axis in axes] if axes is not None else list(range(len(shape)))
    constant = node.attributes.get_string("mode", "constant") == "constant"
    found = []
    for label in trace.of(node.inputs[0]):
        for place, axis in enumerate(padded):
            ends = (place, place + len(padded))
            if axis not in label.axes or not any(pads[end] for end in ends):
                continue
            if len(label.axes) > 1 or not constant or min(pads[end] for end in ends) < 0:
                trace.close(label.ids, f"{named(node)} pads or crops along them")
                continue
            pieces = []
            for end in ends:
                new = Label((axis,), trace.fresh(pads[end]))
                where = "pads" if "pads" in node.attributes else 1
                if pads[end]:
                    trace.place(new, [ShrinkCount(node, where, pads, end)], apart=False)
                pieces.append(new.ids)
            label = replace(label, ids=np.concatenate([pieces[0], label.ids, pieces[1]]))
        found.append(label)
    return found


@rule("Resize", "Upsample")
def _resize(trace: Trace, node: ir.Node) -> Labels:
    shape, after = trace.shape(node.inputs[0]), trace.shape(node.outputs[0])
    if shape is None or after is None:
        return unknown(trace, node)
    for label in trace.of(node.inputs[0]):
        for axis in label.axes:
            if shape[axis] != after[axis]:
                trace.forbid(label, [axis], f"{named(node)} interpolates along them")
    sizes = node.inputs[3] if len(node.inputs) > 3 else None
    if sizes is not None:
        axes = node.attributes.get_ints("axes", tuple(range(len(shape))))
        numbers = integers(trace, sizes)
        for label in trace.of(node.inputs[0]):
            targets: list[Target] = []
            for axis in label.axes:
                if axis in axes and numbers is not None:
                    targets.append(ShrinkCount(node, 3, numbers, axes.index(axis)))
                else:
                    targets.append(None)
            if numbers is None:
                trace.close(label.ids, f"the sizes of {named(node)} are computed at run time")
            trace.place(label, targets)
    return trace.of(node.inputs[0])


@rule("Expand")
def _expand(trace: Trace, node: ir.Node) -> Labels:
    if not ranks_known(trace, node):
        return unknown(trace, node)
    shape, after = trace.shape(node.inputs[0]) or (), trace.shape(node.outputs[0]) or ()
    told = len(trace.shape(node.inputs[1]) or ()) and (trace.shape(node.inputs[1]) or (0,))[0]
    labels = [label.shifted(len(after) - len(shape)) for label in trace.of(node.inputs[0])]
    for label in labels:
        targets: list[Target] = []
        for axis in label.axes:
            position = axis - len(after) + (told or 0)
            found = told_number(trace, node, 1, position) if position >= 0 else None
            alone = found is not None and found.alone and found.value != 1
            targets.append(found.where if alone and found is not None else None)
            if position >= 0 and not alone and (found is None or found.value != 1):
                trace.close(label.ids, f"{named(node)} takes their number from what is computed at run time")
        trace.place(label, targets)
    return labels


@rule("Tile")
def _tile(trace: Trace, node: ir.Node) -> Labels:
    repeats = integers(trace, node.inputs[1])
    if repeats is None:
        return closed(trace, node, f"the numbers of {named(node)} are computed at run time")
    found = []
    for label in trace.of(node.inputs[0]):
        times = [repeats[axis] for axis in label.axes]
        if len(label.axes) > 1 and max(times) > 1:
            trace.close(label.ids, f"{named(node)} repeats them")
        else:
            found.append(replace(label, ids=np.tile(label.ids, times)))
    return found


@rule("DepthToSpace", "SpaceToDepth")
def _depth(trace: Trace, node: ir.Node) -> Labels:
    block = node.attributes.get_int("blocksize", 1) ** 2
    found = []
    for label in trace.of(node.inputs[0]):
        if label.axes == (0,):
            found.append(label)
        elif label.axes != (1,):
            trace.close(label.ids, f"{named(node)} takes them apart")
        elif node.op_type == "SpaceToDepth":
            found.append(Label((1,), np.tile(label.ids, block)))
        else:
            first = node.attributes.get_string("mode", "DCR") == "DCR"
            ids = label.ids.reshape((block, -1) if first else (-1, block))
            left = trace.whole(Label((0, 1), ids, int(first)), int(not first))
            assert left is not None
            found.append(Label((1,), left.ids))
    return found


@rule("Flatten")
def _flatten(trace: Trace, node: ir.Node) -> Labels:
    if not ranks_known(trace, node):
        return unknown(trace, node)
    shape = trace.shape(node.inputs[0]) or ()
    axis = node.attributes.get_int("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    segments = [(range(axis), range(1)), (range(axis, len(shape)), range(1, 2))]
    after = tuple(prod(d or 0 for d in shape[r.start : r.stop]) if None not in shape[r.start : r.stop] else None
                  for r, _ in segments)  # fmt: skip
    return regrouped(trace, node, shape, after, segments)


Segment = tuple[range, range]
"""Axes before, and the axes after that hold the same entries in the same order."""


@rule("Reshape")
def _reshape(trace: Trace, node: ir.Node) -> Labels:
    if not ranks_known(trace, node):
        return unknown(trace, node)
    shape, after = trace.shape(node.inputs[0]) or (), trace.shape(node.outputs[0]) or ()
    segments = _segments(shape, after)
    labels = regrouped(trace, node, shape, after, segments)
    same = {out.start for into, out in segments if len(into) == len(out) == 1 and into.start == out.start}
    for label, targets in zip(labels, size_targets(trace, node, labels, len(after), same), strict=True):
        trace.place(label, targets)
    return labels


def _segments(before: Shape, after: Shape) -> list[Segment]:
    """Groups of axes with equally many entries, as small as the sizes that are known allow."""
    front: list[Segment] = []
    i = j = 0
    while i < len(before) and j < len(after):
        start = i, j
        found = _meeting(before[i:], after[j:])
        if found is None:
            break
        i, j = i + found[0], j + found[1]
        front.append((range(start[0], i), range(start[1], j)))
    back: list[Segment] = []
    k, m = len(before), len(after)
    while k > i and m > j:
        found = _meeting(before[i:k][::-1], after[j:m][::-1])
        if found is None:
            break
        back.append((range(k - found[0], k), range(m - found[1], m)))
        k, m = k - found[0], m - found[1]
    middle = [(range(i, k), range(j, m))] if i < k or j < m else []
    return [*front, *middle, *reversed(back)]


def _meeting(before: Shape, after: Shape) -> tuple[int, int] | None:
    """How many axes from the start on hold equally many entries, at least one of each; None where that is not known."""
    i = j = 0
    a = b = 1
    while not (i and j and a == b):
        ours = i == 0 or (j > 0 and a < b)
        sizes, at = (before, i) if ours else (after, j)
        size = sizes[at] if at < len(sizes) else None
        if size is None:
            return None
        a, b, i, j = (a * size, b, i + 1, j) if ours else (a, b * size, i, j + 1)
    return i, j


def regrouped(trace: Trace, node: ir.Node, before: Shape, after: Shape, segments: Sequence[Segment]) -> list[Label]:
    """The labels of a value whose axes are split and merged."""
    found: list[Label] = []
    for label in trace.of(node.inputs[0]):
        moved = _moved(trace, node, label, before, after, segments)
        if moved is not None and any(set(moved.axes) & set(other.axes) for other in found):
            trace.close(moved.ids, f"{named(node)} merges their axis with another from which units can be removed")
        elif moved is not None:
            found.append(moved)
    return found


def _moved(
    trace: Trace, node: ir.Node, label: Label, before: Shape, after: Shape, segments: Sequence[Segment]
) -> Label | None:
    touched = [segment for segment in segments if any(axis in segment[0] for axis in label.axes)]
    for into, out in touched:
        sizes = [*(before[axis] for axis in into), *(after[axis] for axis in out)]
        if len(into) == len(out) == 1:
            continue
        if None in sizes:
            trace.close(label.ids, f"sizes of {named(node)} are not known: give those of the inputs (--input-shape)")
            return None
        label = _made_ready(trace, label, into, before)
    ids = label.ids
    here = [axis for into, _ in touched for axis in into]
    axes = [axis for _, out in touched for axis in out]
    ids = np.expand_dims(ids, [i for i, axis in enumerate(here) if axis not in label.axes])
    full = [ids.shape[i] if axis in label.axes else before[axis] or 1 for i, axis in enumerate(here)]
    alone = {out.start: full[here.index(into.start)] for into, out in touched if len(into) == len(out) == 1}
    ids = np.broadcast_to(ids, full).reshape([alone.get(axis, after[axis]) or 1 for axis in axes])
    inner_axis = label.axes[label.inner]
    ends = next(out for into, out in touched if inner_axis in into)
    return _smallest(axes, ids, axes.index(ends[-1]))


def _made_ready(trace: Trace, label: Label, into: range, before: Shape) -> Label:
    """What goes alike, because axes are merged: rows behind the inner axis, and rows between entries of no label."""
    mine = [axis for axis in label.axes if axis in into]
    inner = label.axes[label.inner]
    beside = any(before[axis] != 1 for axis in into if axis not in label.axes)
    for axis in mine:
        behind = inner in mine and axis > inner
        apart = beside and len(label.axes) > len(mine)
        if (behind or apart) and len(label.axes) > 1:
            left = trace.whole(label, axis)
            assert left is not None
            label = left
    return label


def _smallest(axes: Sequence[int], ids: Ids, inner: int) -> Label:
    """A label on the axes along which ids differ."""
    keep = [i for i in range(ids.ndim) if (ids != ids.take([0], i)).any()]
    keep = keep or [int(np.argmax(ids.shape))]
    ids = ids[tuple(slice(None) if i in keep else 0 for i in range(ids.ndim))]
    before = [i for i in keep if i <= inner]
    return Label(tuple(axes[i] for i in keep), ids, keep.index(before[-1]) if before else 0)
