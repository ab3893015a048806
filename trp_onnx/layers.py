"""Layers: the nodes that hold a weight matrix, wherever they stand in a model.

`find_layers` returns one `Layer` for every Conv, ConvTranspose, Gemm and MatMul, and for every other node
that multiplies by weights but that we cannot split (LSTM, quantised operators, ...). A layer either has
what a factorisation needs (a constant weight and a geometry) or a `reason` that says what is missing.

`Layout` is the one place that knows how each operator stores its weight; everywhere else a weight is
`W: (G, N, C, *k)` as in `schemes.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from trp_onnx.constants import Constant, resolve_constant
from trp_onnx.errors import ModelError
from trp_onnx.linalg import Array
from trp_onnx.schemes import Geometry
from trp_onnx.shapes import Shape, infer_shapes

FACTORISABLE = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# Operators that also multiply by weights, and what a person can do about each.
_QUANTISED = "is already quantised: compress the float model first, quantise afterwards"
_FUSED = "is a runtime's fused operator: compress the model as it was before that runtime optimised it"
_RECURRENT = "packs several recurrent matrices in one node: export it unrolled (MatMul + Add) to factorise it"
NOT_SUPPORTED = {
    "LSTM": _RECURRENT,
    "GRU": _RECURRENT,
    "RNN": _RECURRENT,
    "QLinearConv": _QUANTISED,
    "QLinearMatMul": _QUANTISED,
    "ConvInteger": _QUANTISED,
    "MatMulInteger": _QUANTISED,
    "MatMulNBits": _QUANTISED,
    "DynamicQuantizeMatMul": _QUANTISED,
    "QGemm": _QUANTISED,
    "FusedConv": _FUSED,
    "FusedMatMul": _FUSED,
    "FusedGemm": _FUSED,
    "NhwcFusedConv": _FUSED,
    "Attention": _FUSED,
    "DeformConv": "samples its input at computed positions: only plain convolutions are split",
    "Einsum": "is not read as a matrix product: write it as MatMul to factorise it",
}


@dataclass(frozen=True)
class Layout:
    """How an operator stores its weight.

    Attributes:
        op: Conv, ConvTranspose, Gemm or MatMul.
        groups: G.
        batch: Leading dimensions of a batched MatMul constant; their product is G.
        weight_index: Which input of the node is the weight.
        transposed: Gemm only: transA or transB of the weight.
    """

    op: str
    groups: int = 1
    batch: tuple[int, ...] = ()
    weight_index: int = 1
    transposed: bool = False

    @property
    def on_left(self) -> bool:
        """True when the constant is the left operand of a product."""
        return self.weight_index == 0

    def _columns_first(self) -> bool:
        # A right operand is stored (C, N), a left one (N, C); transA and transB turn that around.
        return self.on_left == self.transposed

    def to_canonical(self, stored: np.ndarray) -> Array:
        """The stored weight as (G, N, C, *k) in float64."""
        w = np.asarray(stored, dtype=np.float64)
        if self.op == "Conv":
            return w.reshape(self.groups, -1, *w.shape[1:])
        if self.op == "ConvTranspose":
            return np.swapaxes(w.reshape(self.groups, -1, *w.shape[1:]), 1, 2)
        w = w.reshape(self.groups, *w.shape[-2:])
        return np.swapaxes(w, 1, 2) if self._columns_first() else w

    def from_canonical(self, weight: Array) -> Array:
        """(G, N, C, *k) as the operator stores it."""
        if self.op == "Conv":
            return weight.reshape(-1, *weight.shape[2:])
        if self.op == "ConvTranspose":
            return np.swapaxes(weight, 1, 2).reshape(-1, weight.shape[1], *weight.shape[3:])
        stored = np.swapaxes(weight, 1, 2) if self._columns_first() else weight
        return stored.reshape(*self.batch, *stored.shape[-2:])


@dataclass(frozen=True, eq=False)
class Layer:
    """One node that holds weights.

    Attributes:
        name: Unique in the model: the node's name, or its first output's where it has none.
        op: Operator type.
        node: The node itself.
        reason: Why it cannot be factorised; None when it can.
        layout: How the weight is stored; None when `reason` says that there is none to split.
        constant: The weight; None likewise.
        geometry: What cost depends on. Unknown sizes stand as 1.
        sized: False when a spatial size or a number of rows is not known, so that `macs` is not either.
        role: "stem" for the first layer after an input, "last" for the last before an output, else "".
        place: The subgraph in which the node stands, e.g. "body of Loop 'l'"; "" for the main graph.
    """

    name: str
    op: str
    node: ir.Node
    reason: str | None = None
    layout: Layout | None = None
    constant: Constant | None = None
    geometry: Geometry | None = None
    sized: bool = False
    role: str = ""
    place: str = ""

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of one run (one iteration, in a loop body), or None when unknown."""
        return self.geometry.macs if self.geometry is not None and self.sized else None

    @property
    def parameters(self) -> int | None:
        """Entries of the weight, or None when there is no constant weight."""
        return self.geometry.parameters if self.geometry is not None else None

    @property
    def key(self) -> tuple[int, Layout | None]:
        """Equal for layers that share one weight in one layout; they are planned as one."""
        return (id(self.constant.value) if self.constant else id(self.node), self.layout)

    def weight(self) -> Array:
        """The weight as (G, N, C, *k) in float64.

        Raises:
            ModelError: The weight holds NaN or infinity.
        """
        assert self.constant is not None and self.layout is not None
        stored = self.constant.array()
        weight = self.layout.to_canonical(stored)
        if not np.isfinite(weight).all():
            raise ModelError(
                f"weight '{self.constant.value.name}' of {self.op} '{self.name}' holds NaN or infinity: "
                "the training diverged or the file is damaged"
            )
        return weight


def find_layers(model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None = None) -> list[Layer]:
    """Every layer of a model in graph order, those in subgraphs included.

    Args:
        model: A model whose local functions are inlined (see `normalise`).
        input_shapes: Shapes for inputs with dynamic sizes. A symbolic first dimension counts as 1.

    Raises:
        ModelError: `input_shapes` names an input that does not exist or contradicts its declared shape.
    """
    shapes = infer_shapes(model, input_shapes)
    opset = model.opset_imports.get("", 0)
    stems, lasts = _ends(model)
    used: Counter[str] = Counter()
    layers = []
    for node, place in _walk(model.graph, ""):
        if node.domain not in ("", "ai.onnx", "com.microsoft"):
            continue
        supported = node.op_type in FACTORISABLE and node.domain != "com.microsoft"
        if not supported and node.op_type not in NOT_SUPPORTED:
            continue
        name = node.name or node.outputs[0].name or node.op_type
        used[name] += 1
        if used[name] > 1:
            name = f"{name}#{used[name]}"
        role = "stem" if node in stems else "last" if node in lasts else ""
        if not supported:
            reason = f"{node.op_type} {NOT_SUPPORTED[node.op_type]}"
            layers.append(Layer(name, node.op_type, node, reason, role=role, place=place))
            continue
        layers.append(_read(node, name, role, place, shapes, opset))
    return layers


def _walk(graph: ir.Graph, place: str) -> list[tuple[ir.Node, str]]:
    found = []
    for node in graph:
        found.append((node, place))
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                inside = f"{attribute.name} of {node.op_type} '{node.name}'"
                found += _walk(attribute.as_graph(), inside)
    return found


def _ends(model: ir.Model) -> tuple[set[ir.Node], set[ir.Node]]:
    """The first layers after an input and the last ones before an output, in the main graph."""

    def search(start: list[ir.Node], forward: bool) -> set[ir.Node]:
        ends, seen, stack = set(), set(), start
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node.op_type in FACTORISABLE or node.op_type in NOT_SUPPORTED:
                ends.add(node)
            else:
                stack += node.successors() if forward else node.predecessors()
        return ends

    outputs = (value.producer() for value in model.graph.outputs)
    inputs = (user for value in model.graph.inputs for user, _ in value.uses())
    return search(list(inputs), True), search([node for node in outputs if node is not None], False)


def _read(node: ir.Node, name: str, role: str, place: str, shapes: Mapping[ir.Value, Shape], opset: int) -> Layer:
    """A Conv, ConvTranspose, Gemm or MatMul as a layer, with a reason where it cannot be split."""

    def kept(reason: str) -> Layer:
        return Layer(name, node.op_type, node, reason, role=role, place=place)

    is_conv = node.op_type in ("Conv", "ConvTranspose")
    index, constant, why_not = 1, None, ""
    for candidate in (1,) if is_conv else (1, 0):
        value = node.inputs[candidate] if candidate < len(node.inputs) else None
        found = resolve_constant(value, opset)
        if isinstance(found, Constant):
            index, constant = candidate, found
            break
        why_not = why_not or found
    if constant is None:
        return kept(why_not if is_conv else f"neither operand is constant: {why_not}")
    weight_shape = constant.shape(shapes)
    if constant.dtype not in _FLOATS:
        return kept(f"its weight has type {constant.dtype}: only float weights can be factorised")
    if prod(weight_shape) == 0:
        return kept("its weight is empty")
    if len(weight_shape) < (3 if is_conv else 2):
        return kept(f"its constant has shape {list(weight_shape)}: a vector has no rank to reduce")
    if node.op_type == "Gemm" and opset < 7:
        return kept("Gemm before opset 7 broadcasts in its own way: convert the model to opset 7 or newer")

    if is_conv:
        layout, geometry, sized, reason = _read_conv(node, weight_shape, shapes)
    else:
        layout, geometry, sized, reason = _read_product(node, index, weight_shape, shapes)
    return Layer(name, node.op_type, node, reason, layout, constant, geometry, sized, role, place)


_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)

_Reading = tuple[Layout, Geometry, bool, str | None]


def _read_conv(node: ir.Node, weight_shape: tuple[int, ...], shapes: Mapping[ir.Value, Shape]) -> _Reading:
    transposed = node.op_type == "ConvTranspose"
    groups = node.attributes.get_int("group", 1)
    kernel = tuple(weight_shape[2:])
    if transposed:
        c, n = weight_shape[0] // groups, weight_shape[1]
    else:
        c, n = weight_shape[1], weight_shape[0] // groups
    in_shape, out_shape = _known(shapes, node.inputs[0], skip=2), _known(shapes, node.outputs[0])
    sized = in_shape is not None and out_shape is not None
    reason = None
    if "output_shape" in node.attributes and not sized:
        reason = "it has an output_shape but its input size is dynamic: give --input-shape"
    geometry = Geometry(
        groups,
        n,
        c,
        kernel,
        in_shape if in_shape and out_shape else (1,) * len(kernel),
        out_shape[2:] if in_shape and out_shape else (1,) * len(kernel),
        out_shape[0] if in_shape and out_shape else 1,
        transposed,
    )
    return Layout(node.op_type, groups), geometry, sized, reason


def _read_product(
    node: ir.Node, index: int, weight_shape: tuple[int, ...], shapes: Mapping[ir.Value, Shape]
) -> _Reading:
    batch = tuple(weight_shape[:-2])
    trans = bool(node.attributes.get_int("transB" if index else "transA", 0))
    layout = Layout(node.op_type, prod(batch), batch, index, trans)
    n, c = weight_shape[-2:] if layout.on_left != trans else reversed(weight_shape[-2:])
    out_shape = _known(shapes, node.outputs[0])
    repeats = max(1, prod(out_shape) // (prod(batch) * n)) if out_shape is not None else 1
    return layout, Geometry(prod(batch), n, c, repeats=repeats), out_shape is not None, None


def _known(shapes: Mapping[ir.Value, Shape], value: ir.Value | None, skip: int = 0) -> tuple[int, ...] | None:
    """A shape without its first `skip` dimensions, or None when any of the others is unknown."""
    shape = shapes.get(value) if value is not None else None
    if shape is None or None in shape[skip:]:
        return None
    return tuple(d for d in shape[skip:] if d is not None)
