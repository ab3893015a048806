"""Rules of convolutions and matrix products: they read units, and make new ones."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.layers import Layer
from trp_onnx.graph.spaces.elementwise import Operand, meet, operands_of, reduced
from trp_onnx.graph.spaces.rules import Labels, closed, named, ranks_known, rule, unknown
from trp_onnx.graph.spaces.trace import NONE, Ids, Label, Place, ShrinkCount, ShrinkPart, Trace


def _weight_of(trace: Trace, node: ir.Node) -> Layer | None:
    """The layer of a node, where its weight is a constant that can shrink."""
    layer = trace.layers.get(node)
    return layer if layer is not None and layer.reason is None else None


@rule("Conv", "ConvTranspose")
def _convolution(trace: Trace, node: ir.Node) -> Labels:
    layer = _weight_of(trace, node)
    if layer is None or layer.geometry is None:
        return closed(trace, node, f"the weight of {named(node)} is computed at run time")
    outside = [label for label in trace.of(node.inputs[0]) if label.axes != (1,)]
    for label in outside:
        trace.close(label.ids, f"{named(node)} moves a window over them")
    geometry = layer.geometry
    source = np.full(geometry.groups * geometry.in_channels, NONE, np.int64)
    source = next((label.ids for label in trace.of(node.inputs[0]) if label.axes == (1,)), source)
    made = _depthwise(trace, layer, source) if geometry.depthwise else _mixing(trace, layer, source)
    label = Label((1,), made)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and (made != NONE).any():
        trace.attach(label, bias, (node, 2), {1: 0}, named(node))
    trace.close_value(bias, f"{named(node)} reads them as its bias")
    return [label]


def _depthwise(trace: Trace, layer: Layer, source: Ids) -> Ids:
    """Each channel is worked on alone: its units pass."""
    assert layer.geometry is not None
    if (source == NONE).all():
        return np.repeat(source, layer.geometry.out_channels)
    shared = _shared(trace, layer, np.repeat(source, layer.geometry.out_channels), source)
    if shared is not None:
        source = shared[1]
    made = np.repeat(source, layer.geometry.out_channels)
    weight = source if layer.geometry.transposed else made
    _place(trace, weight, _weight_part(layer, 0))
    trace.place(Label((0,), source), [ShrinkCount(layer.node, "group", (layer.geometry.groups,), 0)])
    trace.passed.append((layer, source))
    return made


def _mixing(trace: Trace, layer: Layer, read: Ids) -> Ids:
    """Units are read, group by group, and new ones made."""
    geometry = layer.geometry
    assert geometry is not None
    groups, n, transposed = geometry.groups, geometry.out_channels, geometry.transposed
    # A transposed convolution stores one set of outputs for all groups: a unit goes from all at once.
    made = _made(trace, n if transposed else groups * n)
    shared = _shared(trace, layer, made, read)
    if shared is not None:
        made, read = shared
    else:
        in_axis, out_axis = (0, 1) if transposed else (1, 0)
        _place(trace, made, _weight_part(layer, out_axis))
        if transposed or groups == 1:
            _place(trace, read, _weight_part(layer, in_axis))
        if groups > 1:
            part = None if transposed else _weight_part(layer, in_axis)
            _place(trace, read.reshape(groups, -1), part, strict=True)
            if not transposed:
                _place(trace, made.reshape(groups, -1), None, strict=True)
    trace.produced.append((layer, made))
    trace.consumed.append((layer, np.repeat(read, prod(geometry.kernel))))
    return np.tile(made, groups) if transposed else made


def _made(trace: Trace, *shape: int) -> Ids:
    """New ids for the outputs of a layer; one alone cannot go."""
    return trace.fresh(*shape) if prod(shape) > 1 else np.full(shape, NONE, np.int64)


def _place(trace: Trace, ids: Ids, part: ShrinkPart | None, *, strict: bool = False) -> None:
    """Ids of a weight, the last axis of which goes with a part of it."""
    if (ids != NONE).any():
        trace.places.append(Place(ids, ids.ndim - 1, (*[None] * (ids.ndim - 1), part), strict))


def _weight_part(layer: Layer, axis: int) -> ShrinkPart:
    assert layer.constant is not None and layer.layout is not None
    value = layer.constant.value
    return ShrinkPart(value, axis, tuple((use.node, use.idx) for use in value.uses()))


def _shared(trace: Trace, layer: Layer, made: Ids, read: Ids) -> tuple[Ids, Ids] | None:
    """The ids of a weight that another layer has as well, joined with those that it has here."""
    assert layer.constant is not None and layer.layout is not None
    value = layer.constant.value
    if any(node.op_type == "DequantizeLinear" for node in layer.constant.nodes):
        reason = f"the weight of {named(layer.node)} is quantised: compress the float model first"
        trace.close(made, reason)
        trace.close(read, reason)
    if value not in trace.weights:
        trace.weights[value] = (layer, made, read)
        for user, index in value.uses():
            other = trace.layers.get(user)
            if other is None or other.key != layer.key or other.layout is None or other.layout.weight_index != index:
                reason = f"its weight '{value.name}' is also read by {named(user)}, in another way"
                trace.close(made, reason)
                trace.close(read, reason)
        return None
    _, first_made, first_read = trace.weights[value]
    if first_made.shape != made.shape or first_read.shape != read.shape:  # other groups or batches of one weight
        reason = f"its weight '{value.name}' is also read by {named(layer.node)}, in another way"
        for ids in (made, read, first_made, first_read):
            trace.close(ids, reason)
        return first_made, first_read
    reason = f"{named(layer.node)} has the same weight, and reads entries there that stay"
    trace.join(first_made, made, reason)
    trace.join(first_read, read, reason)
    return first_made, np.where(read == NONE, NONE, first_read)


@rule("MatMul", "Gemm")
def _product(trace: Trace, node: ir.Node) -> Labels:
    if not ranks_known(trace, node):
        return unknown(trace, node)
    layer = _weight_of(trace, node)
    if any(len(trace.shape(value) or ()) < 2 for value in node.inputs[:2]):
        return closed(trace, node, f"{named(node)} is a product with a vector")
    if layer is None and any(map(trace.is_constant, node.inputs[:2])):
        return closed(trace, node, f"{named(node)} is a product with a constant that cannot shrink")
    labels = _by_constant(trace, layer) if layer is not None else _of_activations(trace, node)
    if node.op_type == "Gemm" and len(node.inputs) > 2:
        return meet(trace, node, operands_of(trace, node, 2, first=2), labels)
    return labels


def _oriented(trace: Trace, node: ir.Node, index: int) -> tuple[Label, ...]:
    """The labels of an operand as the product takes it: (..., m, k) or (..., k, n)."""
    labels = trace.of(node.inputs[index])
    if not node.attributes.get_int("transB" if index else "transA", 0):
        return labels
    return tuple(label.moved([1 - axis for axis in label.axes]) for label in labels)


def _by_constant(trace: Trace, layer: Layer) -> Labels:
    """Gemm and MatMul by a weight."""
    assert layer.layout is not None and layer.geometry is not None
    node, layout, geometry = layer.node, layer.layout, layer.geometry
    rank = len(trace.shape(node.inputs[1 - layout.weight_index]) or ())
    out_rank = len(trace.shape(node.outputs[0]) or ())
    labels = [label.shifted(out_rank - rank) for label in _oriented(trace, node, 1 - layout.weight_index)]
    batch = [axis for axis, size in enumerate(layout.batch) if size > 1]
    if len(batch) > 1:
        return closed(trace, node, f"the weight of {named(node)} is batched along several axes")
    place = out_rank - 2 if layout.on_left else out_rank - 1  # of what is summed over, then of what is made
    rows = out_rank - 2 - len(layout.batch) + batch[0] if batch else None
    read, passed = _read_rows(trace, layer, labels, place, rows)
    made = _made(trace, geometry.groups, geometry.out_channels)
    shared = _shared(trace, layer, made, read)
    if shared is None:
        last = len(layout.batch) + 1
        axes = (last - 1, last) if layout.columns_first else (last, last - 1)
        for ids, axis in zip((read, made), axes, strict=True):
            grouped = geometry.groups > 1
            _place(trace, ids if grouped else ids[0], _weight_part(layer, axis), strict=grouped)
    else:
        made, read = shared
    trace.produced.append((layer, made.reshape(-1)))
    trace.consumed.append((layer, read.reshape(-1)))
    label = Label((place,), made[0]) if rows is None else Label((rows, place), made, 1)
    return [*passed, label]


def _read_rows(
    trace: Trace, layer: Layer, labels: list[Label], summed: int, rows: int | None
) -> tuple[Ids, list[Label]]:
    """The ids that a product sums over, (G, C), and the labels that it passes on."""
    assert layer.geometry is not None
    read = np.full((layer.geometry.groups, layer.geometry.in_channels), NONE, np.int64)
    passed = []
    for label in labels:
        if rows is not None and rows in label.axes and (summed not in label.axes or label.axes[label.inner] == rows):
            trace.forbid(label, [rows], f"{named(layer.node)} has a matrix for each of them")
        if summed not in label.axes or label.axes[label.inner] != summed:
            passed += reduced(trace, [label], {summed}, "")
            continue
        left: Label | None = label
        for axis in label.axes:
            if axis not in (summed, rows) and left is not None:
                left = trace.whole(left, axis)
        assert left is not None
        read = np.broadcast_to(left.ids.reshape(-1, left.ids.shape[-1]), read.shape).copy()
    return read, passed


def _of_activations(trace: Trace, node: ir.Node) -> Labels:
    """A product of two values of the network: what is summed over goes from both."""
    rank = len(trace.shape(node.outputs[0]) or ())
    sides = []
    for index, summed in ((0, rank - 1), (1, rank - 2)):
        value = node.inputs[index]
        assert value is not None
        shape = trace.shape(value) or ()
        shift = rank - len(shape)
        labels = [label.shifted(shift) for label in _oriented(trace, node, index)]
        axes = {axis + shift: axis for axis, size in enumerate(shape) if size != 1 and axis + shift != summed}
        sides.append((Operand(index, value, (), axes), labels, summed))
    passing = _contracted(trace, node, [(labels, summed) for _, labels, summed in sides])
    operands = [replace(side[0], labels=tuple(labels)) for side, labels in zip(sides, passing, strict=True)]
    trace.passed += [(node, label.ids.reshape(-1)) for labels in passing for label in labels]
    return meet(trace, node, operands)


def _contracted(trace: Trace, node: ir.Node, sides: list[tuple[list[Label], int]]) -> list[list[Label]]:
    """Join the ids that two operands are summed over; what is left are the labels that pass on."""
    found = [next((label for label in labels if summed in label.axes), None) for labels, summed in sides]
    passing = [[label for label in labels if summed not in label.axes] for labels, summed in sides]
    a, b = found
    if a is None or b is None or not all(
        label.axes[-1] == label.axes[label.inner] == summed  # rows stand before
        for label, (_, summed) in zip((a, b), sides, strict=True)
    ):  # fmt: skip
        for label, left, (_, summed) in zip(found, passing, sides, strict=True):
            if label is not None:
                left += reduced(trace, [label], {summed}, f"{named(node)} sums over them, and over entries that stay")
        return passing
    axes = sorted({*a.axes[:-1], *b.axes[:-1]})
    ids = []
    for label in (a, b):
        missing = [i for i, axis in enumerate(axes) if axis not in label.axes[:-1]]
        ids.append(np.expand_dims(label.ids, missing))
    trace.join(ids[0], ids[1], f"{named(node)} sums over them, and over entries that stay")
    first, second = np.broadcast_arrays(*ids)
    both = np.where(first == NONE, second, first)
    trace.places.append(Place(both, both.ndim - 1, (None,) * both.ndim, strict=True))
    trace.passed.append((node, both.reshape(-1)))
    trace.tell_apart(both)
    return passing
