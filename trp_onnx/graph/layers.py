"""Layers: the nodes that hold a weight matrix, wherever they stand in a model.

`find_layers` returns one `Layer` for every Conv, ConvTranspose, Gemm and MatMul, and for every other node
that sums products but that we cannot split (LSTM, attention, quantised operators, ...): their MACs together are
the network's, see `network_macs`. A layer either has what a factorisation needs (a constant weight and a
geometry) or a `reason` that says what is missing.

`Layout` is the one place that knows how each operator stores its weight; everywhere else a weight is
`W: (G, N, C, *k)` as in `schemes.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_ir as ir

from trp_onnx.errors import ModelError
from trp_onnx.graph import cost
from trp_onnx.graph.constants import Constant, resolve_constant
from trp_onnx.graph.observed import observe_shapes
from trp_onnx.graph.roles import bodies_of, ends_of
from trp_onnx.graph.shapes import Shape, infer_shapes
from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.schemes import Geometry

FACTORISABLE = ("Conv", "ConvTranspose", "Gemm", "MatMul")

LayerKey = tuple[int, "Layout | None"]
"""What layers that share a weight have in common."""

# Other operators that sum products, and what a person can do about each.
_QUANTISED = "is already quantised: compress the float model first, quantise afterwards"
_FUSED = "is a runtime's fused operator: compress the model as it was before that runtime optimised it"
_RECURRENT = "packs several recurrent matrices in one node: export it unrolled (MatMul + Add) to factorise it"
_NOT_SUPPORTED = {
    "LSTM": _RECURRENT,
    "GRU": _RECURRENT,
    "RNN": _RECURRENT,
    "QLinearConv": _QUANTISED,
    "QLinearMatMul": _QUANTISED,
    "ConvInteger": _QUANTISED,
    "MatMulInteger": _QUANTISED,
    "MatMulIntegerToFloat": _QUANTISED,
    "MatMulInteger16": _QUANTISED,
    "MatMulNBits": _QUANTISED,
    "MatMulBnb4": _QUANTISED,
    "MatMulFpQ4": _QUANTISED,
    "DynamicQuantizeMatMul": _QUANTISED,
    "DynamicQuantizeLSTM": _QUANTISED,
    "QGemm": _QUANTISED,
    "QAttention": _QUANTISED,
    "Attention": "multiplies activations with one another: it holds no weight",
    "DeformConv": "samples its input at computed positions: only plain convolutions are split",
    "Einsum": "is not read as a matrix product: write it as MatMul to factorise it",
}


def _why_not(node: ir.Node) -> str:
    """Why a node that is none of `FACTORISABLE` cannot be split."""
    quantised = _NOT_SUPPORTED.get(node.op_type) == _QUANTISED
    if node.domain == cost.MICROSOFT and not quantised:
        return f"{node.op_type} {_FUSED}"
    if node.op_type in _NOT_SUPPORTED and cost.understood(node):
        return f"{node.op_type} {_NOT_SUPPORTED[node.op_type]}"
    if cost.understood(node):
        return f"{node.op_type} is no convolution and no matrix product that can be split"
    return f"{node.op_type} of the domain '{node.domain or 'ai.onnx'}' is an operator whose work is not known here"


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

    @property
    def output_axis(self) -> int:
        """The axis of the stored weight that counts outputs; in a grouped layer those of all groups, or of one."""
        if self.op in ("Conv", "ConvTranspose"):
            return int(self.op == "ConvTranspose")
        return len(self.batch) + int(self.columns_first)

    @property
    def columns_first(self) -> bool:
        """Whether a product's weight is stored (C, N)."""
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
        return np.swapaxes(w, 1, 2) if self.columns_first else w

    def from_canonical(self, weight: Array) -> Array:
        """(G, N, C, *k) as the operator stores it."""
        if self.op == "Conv":
            return weight.reshape(-1, *weight.shape[2:])
        if self.op == "ConvTranspose":
            return np.swapaxes(weight, 1, 2).reshape(-1, weight.shape[1], *weight.shape[3:])
        stored = np.swapaxes(weight, 1, 2) if self.columns_first else weight
        return stored.reshape(*self.batch, *stored.shape[-2:])


Branches = tuple[tuple[ir.Node, str], ...]
"""Branches of If, from the outermost in: the node that holds it, and its name."""


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
        role: "stem" for the first layer after an input, "last" for the last before an output, else "" (see `roles`).
        place: The subgraph in which the node stands, e.g. "body of Loop 'l'"; "" for the main graph.
        fixed_macs: Multiply-accumulates of one call of a layer without a geometry; None when unknown.
        times: How often the loops around it run it, as far as that is known.
        endless: Whether there is a loop around it whose number of iterations is not known: one is counted.
        branches: The branches of If in which it stands, from the outermost in: the node, and the branch's name.
        looped: Whether it stands in the body of a Loop, a Scan or the like.
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
    fixed_macs: int | None = None
    times: int = 1
    endless: bool = False
    branches: Branches = ()
    looped: bool = False

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of one run (one iteration, in a loop body), or None when unknown."""
        if self.geometry is None:
            return self.fixed_macs
        return self.geometry.macs if self.sized else None

    @property
    def parameters(self) -> int | None:
        """Entries of the weight, or None when there is no constant weight."""
        return self.geometry.parameters if self.geometry is not None else None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the weight as `weight` gives it, (G, N, C, *k), or None when there is no constant weight."""
        geometry = self.geometry
        if geometry is None:
            return None
        return (geometry.groups, geometry.out_channels, geometry.in_channels, *geometry.kernel)

    @property
    def key(self) -> LayerKey:
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


def find_layers(
    model: ir.Model,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    shapes: Mapping[ir.Value, Shape] | None = None,
) -> list[Layer]:
    """Every layer of a model in graph order, those in subgraphs included.

    Args:
        model: A model whose local functions are inlined and whose nodes are sorted (see `normalise`).
        input_shapes: Shapes for inputs with dynamic sizes. A symbolic first dimension counts as 1. Sizes that are
            left open where these are known are read off a run on generated inputs.
        shapes: What `shapes_of` found of it, where that is known.

    Raises:
        ModelError: `input_shapes` names an input that does not exist or contradicts its declared shape.
    """
    places = _multiplying(model)
    shapes = _shapes(model, input_shapes, places) if shapes is None else shapes
    opset = model.opset_imports.get("", 0)
    stems, lasts = ends_of(model, {place.node for place in places if cost.understood(place.node)})
    layers = []
    for name, place in _named(places):
        node = place.node
        role = "stem" if node in stems else "last" if node in lasts else ""
        times, endless = place.times(shapes)
        layer = Layer(
            name, node.op_type, node, _why_not(node), role=role, place=place.name, times=times, endless=endless,
            fixed_macs=cost.macs_of(node, shapes), branches=place.branches, looped=bool(place.loops),
        )  # fmt: skip
        layers.append(_read(layer, shapes, opset))
    return layers


def shapes_of(model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None = None) -> dict[ir.Value, Shape]:
    """Shapes of the values of a model, as far as its layers need them; see `find_layers` for what is taken and raised.

    Whoever looks for layers and for spaces needs them twice.
    """
    return _shapes(model, input_shapes, _multiplying(model))


def named_nodes(model: ir.Model) -> dict[str, ir.Node]:
    """The nodes of a model's layers by the layers' names, in graph order."""
    return {name: place.node for name, place in _named(_multiplying(model))}


def layers_named(
    model: ir.Model, names: Container[str] | None = None, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Layer]:
    """Layers as `find_layers` reads them, without what their cost alone needs: sizes, roles, loops.

    Args:
        model: See `find_layers`.
        names: Those that are wanted; all by default.
        input_shapes: For a ConvTranspose with an `output_shape`, whose padding follows from sizes.

    Raises:
        ModelError: See `find_layers`.
    """
    places = {name: place for name, place in _named(_multiplying(model)) if names is None or name in names}
    sized = [place for place in places.values() if "output_shape" in place.node.attributes]
    shapes = _shapes(model, input_shapes, sized) if sized else {}
    opset = model.opset_imports.get("", 0)
    return {
        name: _read(Layer(name, place.node.op_type, place.node, _why_not(place.node), place=place.name), shapes, opset)
        for name, place in places.items()
    }


def _multiplying(model: ir.Model) -> list[_Place]:
    return [place for place in _walk(model.graph) if cost.multiplies(place.node)]


def _named(places: Iterable[_Place]) -> Iterator[tuple[str, _Place]]:
    """Places with the names of their layers: those of the nodes, with a number where several have the same."""
    used: Counter[str] = Counter()
    for place in places:
        name = place.node.name or place.node.outputs[0].name or place.node.op_type
        used[name] += 1
        unique = name if used[name] == 1 else f"{name}#{used[name]}"
        used[unique] += unique != name
        yield unique, place


def network_macs(costs: Iterable[tuple[Layer, int | None]]) -> int:
    """Multiply-accumulates of one run of a network: loops as often as they run, of an If the branch that costs more.

    Args:
        costs: Every layer of the network, with what it costs once; unknown ones count 0.
    """
    return _total(costs)[0]


def counted_layers(layers: Sequence[Layer]) -> set[str]:
    """Names of the layers that are in the network's MACs: all but those in the cheaper branches of an If."""
    cheaper = _total((layer, layer.macs) for layer in layers)[1]
    return {
        layer.name
        for layer in layers
        if not any(layer.branches[: depth + 1] in cheaper for depth in range(len(layer.branches)))
    }


def _total(costs: Iterable[tuple[Layer, int | None]]) -> tuple[int, set[Branches]]:
    """The MACs of one run, and the branches that are not in them."""
    sums: dict[Branches, int] = {(): 0}
    for layer, macs in costs:
        for depth in range(len(layer.branches)):
            sums.setdefault(layer.branches[: depth + 1], 0)
        sums[layer.branches] += layer.times * (macs or 0)
    cheaper: set[Branches] = set()
    for depth in range(max(map(len, sums)), 0, -1):
        dearest: dict[tuple[Branches, ir.Node], Branches] = {}
        for path in [path for path in sums if len(path) == depth]:
            choice = (path[:-1], path[-1][0])
            best = dearest.setdefault(choice, path)
            if sums[path] > sums[best]:
                dearest[choice] = path
        for path in dearest.values():
            sums[path[:-1]] += sums[path]
        cheaper |= {path for path in sums if len(path) == depth} - set(dearest.values())
    return sums[()], cheaper


@dataclass(frozen=True)
class _Place:
    """A node, and what stands around it."""

    node: ir.Node
    name: str = ""
    loops: tuple[ir.Node, ...] = ()
    branches: Branches = ()

    def within(self, attribute: str, inner: ir.Node) -> _Place:
        """The place of a node in a subgraph of this one."""
        name = f"{attribute} of {self.node.op_type} '{self.node.name}'"
        if self.node.op_type == "If":
            return _Place(inner, name, self.loops, (*self.branches, (self.node, attribute)))
        return _Place(inner, name, (*self.loops, self.node), self.branches)

    def times(self, shapes: Mapping[ir.Value, Shape]) -> tuple[int, bool]:
        """How often its loops run it as far as that is known, and whether there is one of which it is not."""
        trips = [cost.trips_of(loop, shapes) for loop in self.loops]
        return prod(trip for trip in trips if trip is not None), None in trips


def _walk(graph: ir.Graph) -> list[_Place]:
    """All nodes in graph order; those of a subgraph behind the one that holds it."""
    found = []
    stack = [_Place(node) for node in reversed(graph)]
    while stack:
        place = stack.pop()
        found.append(place)
        if not bodies_of(place.node):
            continue
        for attribute in reversed(list(place.node.attributes.values())):
            if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                stack += [place.within(attribute.name, inner) for inner in reversed(attribute.as_graph())]
    return found


def _shapes(
    model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None, places: Sequence[_Place]
) -> dict[ir.Value, Shape]:
    """Shapes of all values, with a run for those that the layers' MACs need and inference leaves open."""
    shapes = infer_shapes(model, input_shapes)
    around = [
        value for place in places if cost.understood(place.node) for value in (*place.node.inputs, *place.node.outputs)
    ]
    loops = [value for place in places for loop in place.loops for value in loop.inputs]
    return observe_shapes(model, input_shapes, shapes, [value for value in (*around, *loops) if value is not None])


def _read(layer: Layer, shapes: Mapping[ir.Value, Shape], opset: int) -> Layer:
    """A Conv, ConvTranspose, Gemm or MatMul, with its weight, or with a reason where it cannot be split."""
    node = layer.node
    if node.op_type not in FACTORISABLE or node.domain not in ("", "ai.onnx"):
        return layer

    def kept(reason: str) -> Layer:
        return replace(layer, reason=reason)

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
    return replace(layer, reason=reason, layout=layout, constant=constant, geometry=geometry, sized=sized)


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
    reason = None
    if {len(in_shape or kernel), len((out_shape or (1, 1, *kernel))[2:])} != {len(kernel)}:
        reason = f"its weight has {len(kernel)} axes of a kernel, what flows through it another number of them"
        in_shape = None
    sized = in_shape is not None and out_shape is not None
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
