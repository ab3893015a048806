"""Carry out a plan: each layer that has a scheme becomes a chain of layers of the same operator.

Bias, alpha and beta go to the last factor. Factors that keep a layer's outputs instead of its weight change them in the
mean, which its bias takes up.

The factors take their names from the layer (`conv1` -> `conv1/v`, `conv1/h`), and the last one keeps the
layer's output. What they are factors of stands in their metadata (see `provenance`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.bias import bias_of
from trp_onnx.graph.layers import Layer, layers_named
from trp_onnx.graph.model import interface_of
from trp_onnx.graph.provenance import mark_factor
from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.schemes import SCHEMES, Rank, Scheme
from trp_onnx.passes.free_names import free_name
from trp_onnx.process.parallel import each

Keep = Callable[[str, np.ndarray, ir.DataType], ir.TensorProtocol]
"""Makes a tensor of a name, an array and a type: in memory or on disk."""

Split = Callable[[Layer, Scheme, Rank], tuple[Sequence[Array], Array | None]]
"""Weights of the factors, (G, out, in, *kernel) each, and what the bias takes up, (G N,), or None."""

Chosen = Mapping[str, tuple[str, Rank]]
"""Scheme name and rank of the layers that are factorised, by the layers' names."""

Attributes = dict[str, int | float | str | list[int]]

_GEMM_OPTIONAL_C = 11


class LayerPlan(Protocol):
    """What the pass reads of a plan; `trp_onnx.planning.Plan` is one."""

    @property
    def chosen(self) -> Chosen:
        """Scheme and rank by layer."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the weights that it was made for, (G, N, C, *k), by layer."""


def by_weight(layer: Layer, scheme: Scheme, rank: Rank) -> tuple[Sequence[Array], None]:
    """Factors whose product is nearest to the weight."""
    return scheme.split(layer.weight(), rank), None


def in_memory(name: str, array: np.ndarray, dtype: ir.DataType) -> ir.TensorProtocol:
    """A tensor that the model holds itself."""
    return ir.tensor(array.astype(dtype.numpy()), name=name)


class FactorisePass(ir.passes.InPlacePass):
    """Replace the layers of a plan by their factors, whose weights become initializers of the main graph.

    It requires that the model has the layers of the plan, with weights of the shapes that the plan was made for, and
    ensures that inputs and outputs stay what they are.
    """

    def __init__(
        self,
        plan: LayerPlan | Chosen,
        split: Split = by_weight,
        *,
        keep: Keep = in_memory,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        progress: Callable[[Sequence[Layer]], Iterable[Layer]] = lambda layers: layers,
    ) -> None:
        """Configure the pass.

        Args:
            plan: What becomes of which layer: a plan, or scheme name and rank by layer name. Other layers stay.
            split: Where the factors of a layer come from: its weight alone, or samples too (see `by_outputs`).
            keep: How to store the factors; in memory by default.
            input_shapes: Shapes for inputs with dynamic sizes, see `layers_named`.
            progress: Wraps the list of layers to factorise, to show a bar.
        """
        super().__init__()
        self.chosen, self.shapes = (plan, {}) if isinstance(plan, Mapping) else (plan.chosen, plan.shapes)
        self.split, self.keep, self.input_shapes, self.progress = split, keep, input_shapes, progress
        self._interface: list[object] = []

    def requires(self, model: ir.Model) -> None:
        """Refuse a model that the plan was not made for, with the name of a layer that does not fit."""
        self._interface = interface_of(model)
        layers = layers_named(model, self.chosen, self.input_shapes)
        for name, (scheme, rank) in self.chosen.items():
            why = _obstacle(name, layers.get(name), self.shapes.get(name), SCHEMES[scheme], rank)
            if why:
                raise ir.passes.PreconditionError(why)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run; layers that share their weight share its factors."""
        layers = list(layers_named(model, self.chosen, self.input_shapes).values())
        rewriting = _Rewriting(model, self.keep)
        owners: dict[object, Layer] = {}
        for layer in layers:
            owners.setdefault(self._key(layer), layer)
        found = each(self._split, list(owners.values()))
        shared: dict[object, tuple[list[ir.Value], Array | None]] = {}
        for layer in self.progress(layers):
            scheme = SCHEMES[self.chosen[layer.name][0]]
            key = self._key(layer)
            if key not in shared:
                factors, shift = next(found)
                shared[key] = rewriting.weights(layer, scheme, factors), shift
            rewriting.replace(layer, scheme, *shared[key])
        return ir.passes.PassResult(model, modified=bool(layers))

    def ensures(self, model: ir.Model) -> None:
        """Inputs and outputs have the names, types and shapes that they had."""
        if interface_of(model) != self._interface:
            raise ir.passes.PostconditionError("factorisation changed the model's inputs or outputs: please report it")

    def _key(self, layer: Layer) -> object:
        """What layers with the same factors have in common."""
        return (layer.key, *self.chosen[layer.name])

    def _split(self, layer: Layer) -> tuple[Sequence[Array], Array | None]:
        name, rank = self.chosen[layer.name]
        return self.split(layer, SCHEMES[name], rank)


def _obstacle(
    name: str, layer: Layer | None, planned: tuple[int, ...] | None, scheme: Scheme, rank: Rank
) -> str | None:  # fmt: skip
    """Why a layer cannot become what is planned, or None."""
    if layer is None:
        return f"the model has no layer '{name}', which the plan factorises: make a plan for this model"
    if layer.reason is not None or layer.geometry is None:
        return f"{layer.op} '{name}' cannot be factorised: {layer.reason}"
    if planned is not None and planned != layer.shape:
        return (
            f"the plan was made for another network: the weight of '{name}' has shape {list(planned)} there (groups, "
            f"outputs, inputs, kernel), here it has {list(layer.shape or ())}"
        )
    if not scheme.fits(layer.geometry.kernel):
        return f"scheme {scheme.name} does not fit the kernel {list(layer.geometry.kernel)} of '{name}'"
    full = scheme.full_rank(layer.geometry)
    if len(rank) != len(full) or any(not 1 <= r <= f for r, f in zip(rank, full, strict=True)):
        return f"'{name}' has no rank {list(rank)} under scheme {scheme.name}: its full rank is {list(full)}"
    return None


class _Rewriting:
    """The rewriting of one model: names that are taken, and where its initializers go."""

    def __init__(self, model: ir.Model, keep: Keep) -> None:
        nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
        values = (*model.graph.inputs, *model.graph.initializers.values(), *(v for node in nodes for v in node.outputs))
        self._values = {value.name for value in values}
        self._nodes = {node.name for node in nodes}
        self._graph, self._keep = ir.tape.Tape(model.graph), keep
        self._needs_c = model.opset_imports.get("", 0) < _GEMM_OPTIONAL_C

    def weights(self, layer: Layer, scheme: Scheme, factors: Sequence[Array]) -> list[ir.Value]:
        """Initializers for the factors of a layer."""
        assert layer.layout is not None
        return [
            self._initializer(layer, f"{part}.weight", layer.layout.from_canonical(factor))
            for part, factor in zip(scheme.parts, factors, strict=True)
        ]

    def replace(self, layer: Layer, scheme: Scheme, weights: Sequence[ir.Value], shift: Array | None) -> None:
        """Put the chain of factors in a layer's place."""
        node, graph = layer.node, layer.node.graph
        assert graph is not None and layer.layout is not None and layer.geometry is not None
        place = scheme.place(layer.geometry.kernel, transposed=layer.geometry.transposed)
        flow, chain = node.inputs[1 - layer.layout.weight_index], ir.tape.Tape()
        for part, (weight, what) in enumerate(zip(weights, scheme.parts, strict=True)):
            last = part == len(weights) - 1
            if layer.geometry.kernel:
                attributes = _conv_attributes(layer, place, part)
            else:
                attributes = _product_attributes(layer, first=part == 0, last=last)
            inputs = [weight, flow] if layer.layout.on_left else [flow, weight]
            if last:
                inputs += node.inputs[2:3] if shift is None else [self._corrected(layer, shift)]
            elif layer.op == "Gemm" and self._needs_c:
                inputs.append(self._initializer(layer, f"{what}.bias", np.zeros(1)))
            name = _free(f"{layer.name}/{what}", self._nodes)
            flow = chain.op(layer.op, inputs, attributes, domain=node.domain, name=name)
            flow.name, flow.type = _free(f"{name}.out", self._values), node.outputs[0].type
            mark_factor(chain.nodes[-1], node, layer.name, what)
        assert flow is not None
        ir.convenience.replace_nodes_and_values(graph, node, [node], chain.nodes, node.outputs, [flow])

    def _corrected(self, layer: Layer, shift: Array) -> ir.Value:
        """The layer's bias, with the shift added."""
        bias = bias_of(layer)
        return self._initializer(
            layer, "bias", shift if bias is None else bias.array().astype(np.float64).reshape(-1) + shift
        )

    def _initializer(self, layer: Layer, what: str, array: np.ndarray) -> ir.Value:
        assert layer.constant is not None and layer.constant.dtype is not None
        name = _free(f"{layer.name}/{what}", self._values)
        return self._graph.initializer(self._keep(name, array, layer.constant.dtype))


def _free(wanted: str, taken: set[str | None]) -> str:
    name = free_name(wanted, taken)
    taken.add(name)
    return name


def _conv_attributes(layer: Layer, place: tuple[int, ...], part: int) -> Attributes:
    """Each factor takes stride, dilation and padding of the axes that it carries."""
    node, geometry = layer.node, layer.geometry
    assert geometry is not None
    axes = range(len(geometry.kernel))
    mine = [place[axis] == part for axis in axes]

    def own(values: Sequence[int], neutral: int) -> list[int]:
        return [value if mine[i % len(mine)] else neutral for i, value in enumerate(values)]

    attributes: Attributes = {
        "group": geometry.groups,
        "kernel_shape": own(geometry.kernel, 1),
        "strides": own(node.attributes.get_ints("strides", (1,) * len(axes)), 1),
        "dilations": own(node.attributes.get_ints("dilations", (1,) * len(axes)), 1),
    }
    extra = node.attributes.get_ints("output_padding", None)
    if extra is not None:
        attributes["output_padding"] = own(extra, 0)
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    if "output_shape" in node.attributes:
        attributes["pads"] = own(_explicit_pads(layer), 0)
    elif automatic not in ("", "NOTSET"):
        # Padding is computed axis by axis, and is zero where kernel and stride are 1.
        attributes["auto_pad"] = automatic
    else:
        attributes["pads"] = own(node.attributes.get_ints("pads", (0,) * 2 * len(axes)), 0)
    return attributes


def _explicit_pads(layer: Layer) -> list[int]:
    """The padding that a ConvTranspose's `output_shape` stands for (ONNX operator specification)."""
    node, geometry = layer.node, layer.geometry
    assert geometry is not None
    count = len(geometry.kernel)
    stride = node.attributes.get_ints("strides", (1,) * count)
    dilation = node.attributes.get_ints("dilations", (1,) * count)
    extra = node.attributes.get_ints("output_padding", (0,) * count)
    upper = node.attributes.get_string("auto_pad", "NOTSET") == "SAME_UPPER"
    begin, end = [], []
    for axis in range(count):
        natural = (
            stride[axis] * (geometry.in_size[axis] - 1) + extra[axis] + (geometry.kernel[axis] - 1) * dilation[axis] + 1
        )
        total = max(0, natural - geometry.out_size[axis])
        half = total // 2
        begin.append(half if upper else total - half)
        end.append(total - half if upper else half)
    return begin + end


def _product_attributes(layer: Layer, *, first: bool, last: bool) -> Attributes:
    """TransA or transB follow the operand they belong to; alpha and beta go to the last factor."""
    if layer.op != "Gemm":
        return {}
    assert layer.layout is not None
    on_weight, on_flow = ("transA", "transB") if layer.layout.on_left else ("transB", "transA")
    attributes: Attributes = {on_weight: int(layer.layout.transposed)}
    if first:
        attributes[on_flow] = layer.node.attributes.get_int(on_flow, 0)
    if last:
        given = layer.node.attributes
        attributes |= {name: given.get_float(name) for name in ("alpha", "beta") if name in given}
    return attributes
