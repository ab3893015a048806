"""Carry out a plan: each layer that has a scheme becomes a chain of layers of the same operator.

Bias, alpha and beta go to the last factor. Factors that keep a layer's outputs instead of its weight change them in the
mean, which its bias takes up.

The factors take their names from the layer (`conv1` -> `conv1/v`, `conv1/h`), and the last one keeps the
layer's output. What they are factors of stands in their metadata (see `provenance`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.bias import bias_of
from trp_onnx.graph.layers import Layer
from trp_onnx.graph.provenance import mark_factor
from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.schemes import SCHEMES, Rank, Scheme
from trp_onnx.process.parallel import each

Keep = Callable[[str, np.ndarray, ir.DataType], ir.TensorProtocol]
"""Makes a tensor of a name, an array and a type: in memory or on disk."""

Split = Callable[[Layer, Scheme, Rank], tuple[Sequence[Array], Array | None]]
"""Weights of the factors, (G, out, in, *kernel) each, and what the bias takes up, (G N,), or None."""

_GEMM_OPTIONAL_C = 11


def by_weight(layer: Layer, scheme: Scheme, rank: Rank) -> tuple[Sequence[Array], None]:
    """Factors whose product is nearest to the weight."""
    return scheme.split(layer.weight(), rank), None


class FactorisePass(ir.passes.InPlacePass):
    """Replace layers by their factors."""

    def __init__(
        self,
        layers: Sequence[Layer],
        chosen: Mapping[str, tuple[str, Rank]],
        keep: Keep | None = None,
        split: Split | None = None,
        progress: Callable[[Sequence[Layer]], Iterable[Layer]] | None = None,
    ) -> None:
        """Say what to do.

        Args:
            layers: From `find_layers`, of the same model.
            chosen: Scheme name and rank, by layer name; layers without an entry stay.
            keep: How to store the factors; in memory by default.
            split: Where the factors of a layer come from; its weight alone by default.
            progress: Wraps the list of layers to factorise, to show a bar.
        """
        super().__init__()
        self.layers = [layer for layer in layers if layer.name in chosen]
        self.chosen = chosen
        self.keep = keep or (lambda name, array, dtype: ir.tensor(array.astype(dtype.numpy()), name=name))
        self.split = split or by_weight
        self.progress = progress or (lambda layers: layers)
        self._taken: set[str | None] = set()
        self._nodes: set[str | None] = set()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run; the factors' weights become initializers of the main graph."""
        nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
        self._taken = {value.name for node in nodes for value in node.outputs} | set(model.graph.initializers)
        self._nodes = {node.name for node in nodes}
        owners: dict[object, Layer] = {}
        for layer in self.layers:
            owners.setdefault(self._key(layer), layer)
        found = each(self._split, list(owners.values()))
        shared: dict[object, tuple[list[ir.Value], Array | None]] = {}
        for layer in self.progress(self.layers):
            key = self._key(layer)
            if key not in shared:
                factors, shift = next(found)
                shared[key] = self._weights(model, layer, factors), shift
            self._rewrite(model, layer, SCHEMES[self.chosen[layer.name][0]], *shared[key])
        return ir.passes.PassResult(model, modified=bool(self.layers))

    def _key(self, layer: Layer) -> object:
        """What layers with the same factors have in common."""
        return (layer.key, *self.chosen[layer.name])

    def _split(self, layer: Layer) -> tuple[Sequence[Array], Array | None]:
        name, rank = self.chosen[layer.name]
        return self.split(layer, SCHEMES[name], rank)

    def _weights(self, model: ir.Model, layer: Layer, factors: Sequence[Array]) -> list[ir.Value]:
        assert layer.layout is not None and layer.constant is not None
        scheme = SCHEMES[self.chosen[layer.name][0]]
        return [
            self._initializer(
                model,
                f"{layer.name}/{part}.weight",
                layer.layout.from_canonical(factor),
                layer.constant.dtype,
            )
            for part, factor in zip(scheme.parts, factors, strict=True)
        ]

    def _initializer(self, model: ir.Model, name: str, array: np.ndarray, dtype: ir.DataType | None) -> ir.Value:
        assert dtype is not None
        name = self._name(name, self._taken)
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(dtype),
            const_value=self.keep(name, array, dtype),
        )
        model.graph.register_initializer(value)
        return value

    def _name(self, wanted: str, taken: set[str | None]) -> str:
        """The name itself, or with a number where it is taken already."""
        name, count = wanted, 1
        while name in taken:
            count += 1
            name = f"{wanted}#{count}"
        taken.add(name)
        return name

    def _corrected(self, model: ir.Model, layer: Layer, shift: Array) -> ir.Value:
        """The layer's bias, with the shift added."""
        assert layer.constant is not None
        bias = bias_of(layer)
        corrected = shift if bias is None else bias.array().astype(np.float64).reshape(-1) + shift
        return self._initializer(model, f"{layer.name}/bias", corrected, layer.constant.dtype)

    def _rewrite(
        self, model: ir.Model, layer: Layer, scheme: Scheme, weights: list[ir.Value], shift: Array | None
    ) -> None:  # fmt: skip
        node, graph = layer.node, layer.node.graph
        assert graph is not None and layer.layout is not None and layer.geometry is not None
        place = scheme.place(layer.geometry.kernel, transposed=layer.geometry.transposed)
        flow = node.inputs[1 - layer.layout.weight_index]
        last = len(weights) - 1
        for part, weight in enumerate(weights):
            if layer.op in ("Conv", "ConvTranspose"):
                attributes = _conv_attributes(layer, place, part)
                inputs = [flow, weight]
            else:
                attributes = _product_attributes(layer, part, last)
                inputs = [weight, flow] if layer.layout.on_left else [flow, weight]
            if part == last:
                inputs += node.inputs[2:3] if shift is None else [self._corrected(model, layer, shift)]
            elif layer.op == "Gemm" and model.opset_imports.get("", 0) < _GEMM_OPTIONAL_C:
                inputs.append(
                    self._initializer(model, f"{layer.name}/{scheme.parts[part]}.bias", np.zeros(1), weight.dtype)
                )
            name = self._name(f"{layer.name}/{scheme.parts[part]}", self._nodes)
            factor = ir.Node(node.domain, layer.op, inputs, attributes, num_outputs=1, name=name)
            mark_factor(factor, node, layer.name, scheme.parts[part])
            output = factor.outputs[0]
            output.type = node.outputs[0].type
            output.name = self._name(f"{name}.out", self._taken)
            graph.insert_before(node, factor)
            flow = output

        # Readers, and the graph's outputs, keep the name they know.
        old, new = node.outputs[0], flow
        assert new is not None
        name_of_output, shape, type_ = old.name, old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        new.name, new.shape, new.type = name_of_output, shape, type_


def _conv_attributes(layer: Layer, place: tuple[int, ...], part: int) -> list[ir.Attr]:
    """Each factor takes stride, dilation and padding of the axes that it carries."""
    node, geometry = layer.node, layer.geometry
    assert geometry is not None
    axes = range(len(geometry.kernel))
    mine = [place[axis] == part for axis in axes]

    def own(values: Sequence[int], neutral: int) -> list[int]:
        return [value if mine[i % len(mine)] else neutral for i, value in enumerate(values)]

    attributes = [
        ir.AttrInt64("group", geometry.groups),
        ir.AttrInt64s("kernel_shape", own(geometry.kernel, 1)),
        ir.AttrInt64s("strides", own(node.attributes.get_ints("strides", (1,) * len(axes)), 1)),
        ir.AttrInt64s("dilations", own(node.attributes.get_ints("dilations", (1,) * len(axes)), 1)),
    ]
    extra = node.attributes.get_ints("output_padding", None)
    if extra is not None:
        attributes.append(ir.AttrInt64s("output_padding", own(extra, 0)))
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    if "output_shape" in node.attributes:
        attributes.append(ir.AttrInt64s("pads", own(_explicit_pads(layer), 0)))
    elif automatic not in ("", "NOTSET"):
        # Padding is computed axis by axis, and is zero where kernel and stride are 1.
        attributes.append(ir.AttrString("auto_pad", automatic))
    else:
        pads = node.attributes.get_ints("pads", (0,) * 2 * len(axes))
        attributes.append(ir.AttrInt64s("pads", own(pads, 0)))
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


def _product_attributes(layer: Layer, part: int, last: int) -> list[ir.Attr]:
    """TransA or transB follow the operand they belong to; alpha and beta go to the last factor."""
    if layer.op != "Gemm":
        return []
    assert layer.layout is not None
    on_weight, on_flow = ("transA", "transB") if layer.layout.on_left else ("transB", "transA")
    attributes = [ir.AttrInt64(on_weight, int(layer.layout.transposed))]
    if part == 0:
        attributes.append(ir.AttrInt64(on_flow, layer.node.attributes.get_int(on_flow, 0)))
    if part == last:
        for name in ("alpha", "beta"):
            if name in layer.node.attributes:
                attributes.append(ir.AttrFloat32(name, layer.node.attributes.get_float(name)))
    return attributes
