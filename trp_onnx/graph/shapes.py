"""Shapes of every value of a model, for counting MACs.

onnx's own shape inference, for inputs whose symbolic batch is 1 and whose other dynamic sizes the caller gives. A size
that stays unknown is None; nobody guesses. It works on a skeleton of the model, in which weights are inputs: a model
of any size costs kilobytes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from trp_onnx.graph.roles import bodies_of
from trp_onnx.graph.sizes import Shape, input_dims, real_inputs
from trp_onnx.process.silence import silence

if TYPE_CHECKING:
    import onnx

__all__ = ["Shape", "infer_shapes", "skeleton", "weights_of"]

logger = logging.getLogger(__name__)

_BIG_TENSOR = 1024
"""Bytes from which a tensor is a weight, not a shape or a scalar."""


def infer_shapes(
    model: ir.Model,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    known: Mapping[ir.Value, Shape] | None = None,
) -> dict[ir.Value, Shape]:
    """Inferred shapes of the values of a model, subgraphs included; the model itself is not changed.

    Args:
        model: Any model; functions that are not inlined are not looked into.
        input_shapes: Shapes for inputs with dynamic sizes. A symbolic first dimension counts as 1.
        known: Shapes of values of the main graph that are known already.

    Raises:
        ModelError: See `input_dims`.
    """
    import onnx

    proto = skeleton(model, input_dims(model, input_shapes), known or {})
    try:
        with silence():
            inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception as error:  # of C++, under several names; other work says what is wrong with the model
        logger.info("shape inference failed: %s", error)
        inferred = proto
    shapes: dict[ir.Value, Shape] = {}
    for graph, described in _graphs(model.graph, inferred.graph):
        by_name = {
            info.name: _dims(info)
            for info in (*described.value_info, *described.input, *described.output)
            if info.type.HasField("tensor_type") and info.type.tensor_type.HasField("shape")
        }
        for value in _values(graph):
            if value.const_value is not None:
                shapes[value] = tuple(int(d) for d in value.const_value.shape.numpy())
            elif value.name in by_name:
                shapes[value] = by_name[value.name]
    return shapes | dict(known or {})


def weights_of(model: ir.Model) -> list[ir.Value]:
    """The main graph's large initializers."""
    return [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.nbytes >= _BIG_TENSOR
    ]


def skeleton(
    model: ir.Model, dims: Mapping[str, Shape | None], known: Mapping[ir.Value, Shape]
) -> onnx.ModelProto:  # fmt: skip
    """The model with its weights as inputs, and with the sizes of its inputs wherever their symbols stand."""
    import onnx

    symbols: dict[str, int] = {}
    for value in real_inputs(model):
        chosen = dims.get(value.name or "")
        if chosen is None or value.shape is None or len(value.shape) != len(chosen):
            continue
        for old, new in zip(value.shape, chosen, strict=True):
            if isinstance(old, ir.SymbolicDim) and old.value is not None and new is not None:
                symbols[str(old.value)] = new

    proto = onnx.ModelProto(ir_version=max(model.ir_version or 0, 4))  # from 4 on an initializer is no input
    for domain, version in model.opset_imports.items():
        proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
    for function in model.functions.values():
        proto.functions.append(ir.serde.serialize_function(function))
    graph = proto.graph
    graph.name = model.graph.name or "graph"
    weights = weights_of(model)
    apart = set(weights)
    for value in real_inputs(model):
        graph.input.append(_info(value, dims.get(value.name or "")))
    for value in weights:
        assert value.const_value is not None
        kind, sizes = int(value.const_value.dtype), value.const_value.shape.numpy()
        graph.input.append(onnx.helper.make_tensor_value_info(value.name or "", kind, sizes))
    for value in model.graph.initializers.values():
        if value.const_value is not None and value not in apart:
            tensor = ir.serde.serialize_tensor(value.const_value)
            tensor.name = value.name or ""
            graph.initializer.append(tensor)
    for node in model.graph:
        described = ir.serde.serialize_node(node)
        graph.node.append(described)
        if bodies_of(node):
            _put_symbols(graph.node[-1], symbols)
        for value in node.outputs:
            if value.name and value.type is not None and not value.is_graph_output():
                shape = known.get(value) or _substituted(value.shape, symbols)
                if shape is not None:
                    graph.value_info.append(_info(value, shape))
    for value in model.graph.outputs:
        graph.output.append(_info(value, known.get(value) or _substituted(value.shape, symbols)))
    return proto


def _substituted(shape: ir.Shape | None, symbols: Mapping[str, int]) -> Shape | None:
    if shape is None:
        return None
    return tuple(d if isinstance(d, int) else symbols.get(str(d.value)) for d in shape)


def _info(value: ir.Value, shape: Shape | None) -> onnx.ValueInfoProto:
    import onnx

    if isinstance(value.type, ir.TensorType):
        return onnx.helper.make_tensor_value_info(value.name or "", int(value.type.dtype), shape)
    info = ir.serde.serialize_value(value)
    return info if value.type is not None else onnx.ValueInfoProto(name=value.name or "")


def _put_symbols(node: onnx.NodeProto, symbols: Mapping[str, int]) -> None:
    """What an exporter noted down inside of subgraphs repeats the symbols; inference would keep them as they are."""
    graphs = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    while graphs:
        graph = graphs.pop()
        for info in (*graph.input, *graph.value_info, *graph.output):
            for dim in info.type.tensor_type.shape.dim if info.type.HasField("tensor_type") else ():
                if dim.dim_param in symbols:
                    dim.dim_value = symbols[dim.dim_param]
        graphs += [a.g for below in graph.node for a in below.attribute if a.HasField("g")]


def _graphs(graph: ir.Graph, proto: onnx.GraphProto) -> Iterator[tuple[ir.Graph, onnx.GraphProto]]:
    """A graph with its description, and all subgraphs with theirs."""
    stack = [(graph, proto)]
    while stack:
        ours, theirs = stack.pop()
        yield ours, theirs
        for node, described in zip(ours, theirs.node, strict=True):
            bodies = bodies_of(node)
            if bodies:
                stack += zip(bodies, (a.g for a in described.attribute if a.HasField("g")), strict=True)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _dims(info: onnx.ValueInfoProto) -> Shape:
    return tuple(
        d.dim_value if d.dim_value > 0 or (d.HasField("dim_value") and d.dim_value == 0) else None
        for d in info.type.tensor_type.shape.dim
    )
