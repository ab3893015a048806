"""Small graphs in which one layer, dense, factorised or cut (see `width`), is timed as if it stood in its network.

A convolution stands between two 1x1 convolutions of 16 channels, so that it gets and gives the blocked layout that
its neighbours in a network have; a product stands alone. Its time is that of the nodes between those two,
conversions of layout included, from the runtime's profile.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod, sqrt

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.layers import Layer
from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.schemes import Rank, Scheme
from trp_onnx.passes.factorise import FactorisePass
from trp_onnx.runners import NodeTime

NEIGHBOUR_CHANNELS = 16
"""A block of the widest layout: less would be padded to it."""

_BEFORE, _AFTER = "before", "after"
_OPSET, _IR_VERSION = 17, 8

_RENAMED = re.compile(r"(_nchwc|_token_\d+)$")
"""What the runtime adds to a node's name: to one of blocked channels, or of int8."""


def signature(layer: Layer) -> str:
    """All that a layer's time depends on, as text; equal for layers of one geometry."""
    geometry, node = layer.geometry, layer.node
    assert geometry is not None and layer.constant is not None and layer.layout is not None
    kept = ("strides", "dilations", "pads", "auto_pad", "output_padding", "output_shape", "transA", "transB")
    attributes = [f"{name}={node.attributes[name].value}" for name in kept if name in node.attributes]
    dtype = layer.constant.dtype.name if layer.constant.dtype is not None else ""
    sizes = "x".join(map(str, geometry.in_size)), "x".join(map(str, geometry.kernel))
    widths = f"{geometry.groups}*({geometry.in_channels}>{geometry.out_channels})"
    where = f"input {layer.layout.weight_index} batch {list(layer.layout.batch)}"
    return " ".join([layer.op, widths, f"k{sizes[1]} on {geometry.repeats}x{sizes[0]}", dtype, where, *attributes])


def build_probe(layer: Layer, scheme: Scheme | None = None, rank: Rank = ()) -> ir.Model:
    """The graph, with random weights.

    Args:
        layer: Whose geometry is meant.
        scheme: How it is split; None for the dense layer.
        rank: At which rank.
    """
    geometry, dtype = layer.geometry, layer.constant.dtype if layer.constant is not None else None
    assert geometry is not None and layer.layout is not None and dtype is not None
    rng = np.random.default_rng(0)

    def values(*shape: int) -> np.ndarray:
        return np.asarray(rng.standard_normal(shape) / sqrt(max(1, prod(shape[1:]))), dtype.numpy())

    tape = ir.tape.Tape()

    def constant(name: str, array: np.ndarray) -> ir.Value:
        return tape.initializer(ir.tensor(array, name=name))

    shape = (geometry.groups, geometry.out_channels, geometry.in_channels, *geometry.kernel)
    weight = constant("w", layer.layout.from_canonical(values(*shape).astype(np.float64)).astype(dtype.numpy()))
    given = [attribute for attribute in layer.node.attributes.values() if not attribute.is_ref()]
    is_conv = bool(geometry.kernel)
    if is_conv:
        attributes = [*(a for a in given if a.name != "group"), ir.AttrInt64("group", geometry.groups)]
        x = ir.Value(name=_input(layer), shape=ir.Shape((geometry.repeats, NEIGHBOUR_CHANNELS, *geometry.in_size)))
        ones = (1,) * len(geometry.kernel)
        wide_in, wide_out = geometry.groups * geometry.in_channels, geometry.groups * geometry.out_channels
        before = ir.node("Conv", [x, constant("before.w", values(wide_in, NEIGHBOUR_CHANNELS, *ones))], name=_BEFORE)
        before.outputs[0].name = _BEFORE
        bias = constant("b", values(wide_out))
        node = ir.Node("", layer.op, [before.outputs[0], weight, bias], attributes, num_outputs=1, name="layer")
        after = ir.node(
            "Conv", [node.outputs[0], constant("after.w", values(NEIGHBOUR_CHANNELS, wide_out, *ones))], name=_AFTER
        )
        nodes, y = [before, node, after], after.outputs[0]
    else:
        x = ir.Value(name=_input(layer), shape=ir.Shape(_rows(layer)))
        operands = [weight, x] if layer.layout.on_left else [x, weight]
        node = ir.Node("", layer.op, operands, given, num_outputs=1, name="layer")
        nodes, y = [node], node.outputs[0]
    x.type = ir.TensorType(dtype)
    node.outputs[0].name = "layer.out"
    if y is not node.outputs[0]:
        y.name = _AFTER
    y.type = ir.TensorType(dtype)
    graph = ir.Graph([x], [y], nodes=nodes, initializers=tape.initializers, opset_imports={"": _OPSET}, name="probe")
    model = ir.Model(graph, ir_version=_IR_VERSION)
    if scheme is not None:

        def split(layer: Layer, scheme: Scheme, rank: Rank) -> tuple[Sequence[Array], None]:
            assert layer.geometry is not None
            return [values(*part).astype(np.float64) for part in scheme.shapes(layer.geometry, rank)], None

        FactorisePass({"layer": (scheme.name, rank)}, split)(model)
    return model


def _input(layer: Layer) -> str:
    """The probe's input: what a product reads is as wide as itself."""
    assert layer.geometry is not None
    return "x" if layer.geometry.kernel else f"x{layer.geometry.in_channels}"


def _rows(layer: Layer) -> tuple[int, ...]:
    """Shape of what a product multiplies its constant with."""
    geometry, layout = layer.geometry, layer.layout
    assert geometry is not None and layout is not None
    rows, width = geometry.repeats, geometry.in_channels
    flow = "transB" if layout.on_left else "transA"
    turned = bool(layer.node.attributes.get_int(flow, 0)) != layout.on_left
    return (*layout.batch, *((width, rows) if turned else (rows, width)))


def probe_feeds(layer: Layer) -> dict[str, np.ndarray]:
    """What a probe of a layer runs on."""
    geometry, dtype = layer.geometry, layer.constant.dtype if layer.constant is not None else None
    assert geometry is not None and dtype is not None
    shape = (geometry.repeats, NEIGHBOUR_CHANNELS, *geometry.in_size) if geometry.kernel else _rows(layer)
    return {_input(layer): np.random.default_rng(1).standard_normal(shape).astype(dtype.numpy())}


def layer_span(run: Sequence[NodeTime]) -> slice:
    """The probed layer in one run: all nodes between its neighbours."""
    names = [_RENAMED.sub("", node.name) for node in run]
    if _BEFORE in names and _AFTER in names:
        return slice(names.index(_BEFORE) + 1, names.index(_AFTER))
    start, end = 0, len(run)
    while start < end - 1 and run[start].op == "QuantizeLinear":  # what its neighbours would do
        start += 1
    while end - 1 > start and run[end - 1].op == "DequantizeLinear":
        end -= 1
    return slice(start, end)
