"""Mutations of an ONNX model that know its structure. Each takes a model and a generator, and says what it did.

A mutation that finds nothing to change says so by `None`; the campaign then draws another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Error, Message
from onnx import AttributeProto, TensorProto, helper, numpy_helper

T = TypeVar("T")
Rng = np.random.Generator
Mutation = Callable[[onnx.ModelProto, Rng], str | None]

SIZES = (0, 1, 2, -1, -2, -7, 3, 1000, 2**16, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
NUMBERS = (0.0, -1.0, 1e-45, 1e30, -1e30, 3.4e38, float("nan"), float("inf"), float("-inf"))
NAMES = (
    "", " ", "a" * 300, "line\nbreak", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "tab\ttab", "[red]markup[/red]", "[/]",
    "../../up", "/etc/hostname", "nul\0nul", "\u202egnp.exe", "é" * 200, "*", "a/b/c", "con", "{x}", "%s%n", "'; --",
    "trp", "x", "y", "\U0001f600", "\r\rover", "<script>alert(1)</script>", "$x_{1}$", "layer/v", "layer.weight",
)  # fmt: skip
OPERATORS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Add", "Mul", "Flatten", "Identity", "Reshape", "Transpose",
    "Cast", "Softmax", "LSTM", "GRU", "RNN", "If", "Loop", "Scan", "ArgMax", "NonZero", "Shape", "Constant", "Resize",
    "BatchNormalization", "DequantizeLinear", "QuantizeLinear", "Einsum", "Unique", "Optional", "SequenceConstruct",
    "RandomNormal", "ConstantOfShape", "Expand", "Tile", "Pad", "Dropout", "Mystery", "conv", "",
)  # fmt: skip
PLACES = (
    "weights.bin", "../weights.bin", "/etc/hostname", "/dev/zero", "", ".", "..", "a" * 300, "nul\0nul", "no/such/file",
    "./weights.bin", "m.onnx", "\x1b[31m", "weights.bin/", "line\nbreak",
)  # fmt: skip


def one_of(rng: Rng, items: Sequence[T]) -> T | None:
    return items[int(rng.integers(len(items)))] if len(items) else None


def graphs_of(model: onnx.ModelProto) -> list[Any]:
    """The graph, those in attributes, and functions."""
    found: list[Any] = [model.graph, *model.functions]
    for graph in found:
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    found.append(attribute.g)
                found += attribute.graphs
    return found


def nodes_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for graph in graphs_of(model) for node in graph.node]


def tensors_of(model: onnx.ModelProto) -> list[TensorProto]:
    held = [tensor for graph in graphs_of(model) for tensor in getattr(graph, "initializer", ())]
    return held + [a.t for node in nodes_of(model) for a in node.attribute if a.HasField("t")]


def values_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    return [
        value
        for graph in graphs_of(model)
        if isinstance(graph, onnx.GraphProto)
        for value in (*graph.input, *graph.output, *graph.value_info)
    ]


def names_of(model: onnx.ModelProto) -> list[str]:
    return [*dict.fromkeys(name for node in nodes_of(model) for name in (*node.input, *node.output))]


# Tensors.


def size_of_a_tensor(model: onnx.ModelProto, rng: Rng) -> str | None:
    tensor = one_of(rng, tensors_of(model))
    if tensor is None or not tensor.dims:
        return None
    place, size = int(rng.integers(len(tensor.dims))), one_of(rng, SIZES)
    tensor.dims[place] = size
    return f"size {place} of tensor {tensor.name!r} is {size}"


def sizes_of_a_tensor_change_places(model: onnx.ModelProto, rng: Rng) -> str | None:
    tensor = one_of(rng, tensors_of(model))
    if tensor is None or len(tensor.dims) < 2:
        return None
    tensor.dims[:] = [int(tensor.dims[i]) for i in rng.permutation(len(tensor.dims))]
    return f"sizes of tensor {tensor.name!r} are {list(tensor.dims)}"


def rank_of_a_tensor(model: onnx.ModelProto, rng: Rng) -> str | None:
    tensor = one_of(rng, tensors_of(model))
    if tensor is None:
        return None
    how = one_of(rng, ("flat", "longer", "none", "many"))
    dims = {"flat": [int(np.prod(tensor.dims))], "longer": [*tensor.dims, 1], "none": [], "many": [1] * 70}[str(how)]
    tensor.dims[:] = dims
    return f"tensor {tensor.name!r} is of {len(dims)} sizes"


def type_of_a_tensor(model: onnx.ModelProto, rng: Rng) -> str | None:
    tensor = one_of(rng, tensors_of(model))
    if tensor is None:
        return None
    tensor.data_type = int(rng.integers(0, 30))
    return f"type of tensor {tensor.name!r} is {tensor.data_type}"


def bytes_of_a_tensor(model: onnx.ModelProto, rng: Rng) -> str | None:
    tensor = one_of(rng, tensors_of(model))
    if tensor is None:
        return None
    data = tensor.raw_data
    how = one_of(rng, ("none", "short", "long", "odd", "both", "other"))
    if how == "both":
        tensor.float_data.extend([1.0] * 5)
    elif how == "other":
        tensor.ClearField("raw_data")
        tensor.int32_data.extend(range(8))
    else:
        tensor.raw_data = {"none": b"", "short": data[:-4], "long": data * 2, "odd": data + b"x"}[str(how)]
    return f"bytes of tensor {tensor.name!r}: {how}"


def entries_of_a_tensor(model: onnx.ModelProto, rng: Rng) -> str | None:
    tensor = one_of(rng, [t for t in tensors_of(model) if t.data_type in (1, 10, 11, 16) and t.raw_data])
    if tensor is None:
        return None
    try:
        array = numpy_helper.to_array(tensor).copy()
    except (ValueError, TypeError, KeyError):  # another mutation was here before
        return None
    value, how = one_of(rng, NUMBERS), one_of(rng, ("one", "row", "all", "scaled", "rank one"))
    with np.errstate(all="ignore"):
        if how == "all":
            array[...] = value
        elif how == "scaled":
            array *= np.asarray(one_of(rng, (1e-30, 1e30, 1e-6, 1e6)), array.dtype)
        elif how == "rank one" and array.ndim > 1:
            array[:] = array[:1]
        elif array.size:
            array.reshape(array.shape[0] if array.ndim and how == "row" else -1, -1)[0] = value
    tensor.raw_data = array.tobytes()
    return f"entries of tensor {tensor.name!r}: {how}, {value}"


def whole_numbers_of_a_tensor(model: onnx.ModelProto, rng: Rng) -> str | None:
    """Shapes, axes and counts that models compute with."""
    tensor = one_of(rng, [t for t in tensors_of(model) if t.data_type == TensorProto.INT64 and t.raw_data])
    if tensor is None:
        return None
    array = np.frombuffer(tensor.raw_data, np.int64).copy()
    array[int(rng.integers(array.size))] = value = one_of(rng, SIZES)
    tensor.raw_data = array.tobytes()
    return f"a number of tensor {tensor.name!r} is {value}"


def a_tensor_elsewhere(model: onnx.ModelProto, rng: Rng) -> str | None:
    tensor = one_of(rng, tensors_of(model))
    if tensor is None:
        return None
    place = one_of(rng, PLACES) or ""
    entries = {"location": place, "offset": "0", "length": str(len(tensor.raw_data))}
    if rng.random() < 0.5:
        entries[str(one_of(rng, ("offset", "length", "checksum", "location")))] = str(
            one_of(rng, ("-1", "x", "1e3", "", "99999999999999999999", "9" * 5000, "4096", "0x10"))
        )
    if rng.random() < 0.5:
        tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in entries.items():
        tensor.external_data.add(key=key, value=text)
    return f"tensor {tensor.name!r} is in {entries}"[:300]


def a_tensor_goes_or_doubles(model: onnx.ModelProto, rng: Rng) -> str | None:
    graph = one_of(rng, [g for g in graphs_of(model) if getattr(g, "initializer", ())])
    if graph is None:
        return None
    tensor = one_of(rng, graph.initializer)
    if rng.random() < 0.5:
        graph.initializer.remove(tensor)
        return f"tensor {tensor.name!r} is gone"
    graph.initializer.append(tensor)
    return f"tensor {tensor.name!r} is there twice"


def a_tensor_of_another_shape(model: onnx.ModelProto, rng: Rng) -> str | None:
    """Valid in itself, its neighbours are not made for it."""
    tensor = one_of(rng, tensors_of(model))
    if tensor is None:
        return None
    shape = [int(size) for size in rng.integers(0, 20, int(rng.integers(0, 6)))]
    array = rng.standard_normal(shape).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return f"tensor {tensor.name!r} is another one of {shape}"


def a_sparse_tensor(model: onnx.ModelProto, rng: Rng) -> str | None:
    if not model.graph.sparse_initializer:
        return None
    held = model.graph.sparse_initializer[0]
    how = one_of(rng, ("dims", "indices", "values", "rank"))
    if how == "dims":
        held.dims[int(rng.integers(len(held.dims)))] = int(one_of(rng, SIZES) or 0)
    elif how == "rank":
        held.dims[:] = [80]
    else:
        part = held.indices if how == "indices" else held.values
        part.raw_data = rng.bytes(len(part.raw_data))
    return f"sparse tensor: {how}"


# Nodes and edges.


def a_node_goes(model: onnx.ModelProto, rng: Rng) -> str | None:
    graph = one_of(rng, [g for g in graphs_of(model) if g.node])
    if graph is None:
        return None
    node = one_of(rng, graph.node)
    graph.node.remove(node)
    return f"{node.op_type} {node.name!r} is gone"


def a_node_doubles(model: onnx.ModelProto, rng: Rng) -> str | None:
    graph = one_of(rng, [g for g in graphs_of(model) if g.node])
    if graph is None:
        return None
    node = graph.node.add()
    node.CopyFrom(one_of(rng, graph.node[:-1]))
    if rng.random() < 0.5:
        node.output[:] = [f"{name}_again" for name in node.output]
    return f"{node.op_type} {node.name!r} is there twice"


def nodes_change_places(model: onnx.ModelProto, rng: Rng) -> str | None:
    graph = one_of(rng, [g for g in graphs_of(model) if len(g.node) > 1])
    if graph is None:
        return None
    mixed = [graph.node[i] for i in rng.permutation(len(graph.node))]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in mixed]
    del graph.node[:]
    graph.node.extend(copies)
    return "nodes in another order"


def another_operator(model: onnx.ModelProto, rng: Rng) -> str | None:
    node = one_of(rng, nodes_of(model))
    if node is None:
        return None
    was, node.op_type = node.op_type, str(one_of(rng, OPERATORS))
    return f"{was} {node.name!r} is {node.op_type!r}"


def another_domain(model: onnx.ModelProto, rng: Rng) -> str | None:
    node = one_of(rng, nodes_of(model))
    if node is None:
        return None
    node.domain = str(
        one_of(rng, ("ai.onnx", "com.microsoft", "ai.onnx.ml", "own", "nobody", "\x1b[31m", "ai.onnx.training"))
    )
    return f"{node.op_type} {node.name!r} is of domain {node.domain!r}"


def another_edge(model: onnx.ModelProto, rng: Rng) -> str | None:
    node = one_of(rng, [node for node in nodes_of(model) if node.input])
    if node is None:
        return None
    place = int(rng.integers(len(node.input)))
    was, node.input[place] = node.input[place], str(one_of(rng, [*names_of(model), *node.output, "", "nobody"]))
    return f"input {place} of {node.op_type} {node.name!r} is {node.input[place]!r}, not {was!r}"


def fewer_or_more_edges(model: onnx.ModelProto, rng: Rng) -> str | None:
    node = one_of(rng, nodes_of(model))
    if node is None:
        return None
    ends = node.input if rng.random() < 0.7 else node.output
    how = one_of(rng, ("none", "one less", "one more", "many"))
    if how == "none":
        del ends[:]
    elif how == "one less" and ends:
        del ends[-1]
    else:
        ends.extend([str(one_of(rng, [*names_of(model), ""]))] * (1 if how == "one more" else 50))
    return f"{node.op_type} {node.name!r} has {len(node.input)} inputs and {len(node.output)} outputs"


def an_output_of_another_name(model: onnx.ModelProto, rng: Rng) -> str | None:
    node = one_of(rng, [node for node in nodes_of(model) if node.output])
    if node is None:
        return None
    node.output[0] = str(one_of(rng, [*names_of(model), "", "nobody"]))
    return f"{node.op_type} {node.name!r} makes {node.output[0]!r}"


# Attributes.


def another_attribute(model: onnx.ModelProto, rng: Rng) -> str | None:
    attribute = one_of(rng, [a for node in nodes_of(model) for a in node.attribute])
    if attribute is None:
        return None
    if attribute.type == AttributeProto.INT:
        attribute.i = int(one_of(rng, SIZES) or 0)
    elif attribute.type == AttributeProto.INTS:
        how = one_of(rng, ("none", "longer", "one"))
        if how == "none" or not attribute.ints:
            del attribute.ints[:]
        elif how == "longer":
            attribute.ints.append(1)
        else:
            attribute.ints[int(rng.integers(len(attribute.ints)))] = int(one_of(rng, SIZES) or 0)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = float(one_of(rng, NUMBERS) or 0)
    elif attribute.type == AttributeProto.STRING:
        attribute.s = str(one_of(rng, NAMES)).encode() if rng.random() < 0.8 else b"\xff\xfe"
    else:
        attribute.ClearField("t")
    return f"attribute {attribute.name!r}"


def an_attribute_of_another_kind(model: onnx.ModelProto, rng: Rng) -> str | None:
    attribute = one_of(rng, [a for node in nodes_of(model) for a in node.attribute])
    if attribute is None:
        return None
    attribute.type = int(rng.integers(0, 15))  # type: ignore[assignment]
    return f"attribute {attribute.name!r} is of kind {attribute.type}"


def an_attribute_goes_or_comes(model: onnx.ModelProto, rng: Rng) -> str | None:
    node = one_of(rng, nodes_of(model))
    if node is None:
        return None
    if node.attribute and rng.random() < 0.6:
        attribute = one_of(rng, node.attribute)
        node.attribute.remove(attribute)
        return f"attribute {attribute.name!r} is gone"
    name = str(
        one_of(rng, ("group", "pads", "strides", "transA", "kernel_shape", "axis", "auto_pad", "to", "body", ""))
    )
    value = one_of(rng, (3, -1, [1, 2, 3], [2**40, 1], 1.5, "SAME_UPPER", "\x1b[31m", [1.5]))
    node.attribute.append(helper.make_attribute(name, value))
    return f"{node.op_type} {node.name!r} has {name!r} = {value!r}"


# What the graph shows.


def a_shown_value(model: onnx.ModelProto, rng: Rng) -> str | None:
    value = one_of(rng, values_of(model))
    if value is None:
        return None
    how = str(one_of(rng, ("type", "no type", "no shape", "size", "symbol", "rank", "sequence", "optional", "map")))
    shape = value.type.tensor_type.shape
    if how == "type":
        value.type.tensor_type.elem_type = int(rng.integers(0, 30))
    elif how == "no type":
        value.ClearField("type")
    elif how == "no shape":
        value.type.tensor_type.ClearField("shape")
    elif how in ("size", "symbol") and shape.dim:
        size = shape.dim[int(rng.integers(len(shape.dim)))]
        if how == "size":
            size.dim_value = int(one_of(rng, SIZES) or 0)
        else:
            size.dim_param = str(one_of(rng, NAMES))
    elif how == "rank":
        if rng.random() < 0.5 and shape.dim:
            del shape.dim[-1]
        else:
            shape.dim.add(dim_value=3)
    elif how == "sequence":
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1
    elif how == "optional":
        value.type.optional_type.elem_type.tensor_type.elem_type = 1
    else:
        value.type.map_type.key_type = TensorProto.INT64
    return f"{value.name!r}: {how}"


def inputs_and_outputs(model: onnx.ModelProto, rng: Rng) -> str | None:
    graph = one_of(rng, [g for g in graphs_of(model) if isinstance(g, onnx.GraphProto)])
    if graph is None:
        return None
    ends = graph.input if rng.random() < 0.5 else graph.output
    how = one_of(rng, ("gone", "none", "twice", "another", "new"))
    if how == "none":
        del ends[:]
    elif how == "gone" and ends:
        ends.remove(one_of(rng, ends))
    elif how == "twice" and ends:
        ends.append(one_of(rng, ends))
    elif how == "another" and ends:
        value = one_of(rng, ends)
        if value is not None:
            value.name = str(one_of(rng, [*names_of(model), *(t.name for t in tensors_of(model)), "", "nobody"]))
    else:
        name = str(one_of(rng, [*names_of(model), "new"]))
        ends.append(helper.make_tensor_value_info(name, int(rng.integers(1, 17)), [1, 3]))
    return f"{'inputs' if ends is graph.input else 'outputs'}: {how}"


def a_note_on_a_value(model: onnx.ModelProto, rng: Rng) -> str | None:
    """What other tools left in value_info, and what is not so."""
    name = one_of(rng, names_of(model))
    shape = [one_of(rng, (*SIZES[:8], "N", "\x1b[31m", None)) for _ in range(int(rng.integers(0, 6)))]
    kind = int(rng.integers(1, 17))
    model.graph.value_info.append(helper.make_tensor_value_info(str(name), kind, shape))
    return f"value_info says that {name!r} is {shape}"


def a_hostile_name(model: onnx.ModelProto, rng: Rng) -> str | None:
    """Everywhere, so that the graph still hangs together; or in one place, so that it does not."""
    name = str(one_of(rng, NAMES))
    if rng.random() < 0.4:
        node = one_of(rng, nodes_of(model))
        if node is None:
            return None
        was, node.name = node.name, name
        return f"node {was!r} is called {name!r}"[:200]
    was = str(one_of(rng, names_of(model)))
    if rng.random() < 0.2:
        model.graph.name = model.producer_name = name
    for message in [*nodes_of(model)]:
        message.input[:] = [name if n == was else n for n in message.input]
        message.output[:] = [name if n == was else n for n in message.output]
    for held in (*tensors_of(model), *values_of(model)):
        if held.name == was:
            held.name = name
    return f"{was!r} is called {name!r}"[:200]


# The whole.


def versions(model: onnx.ModelProto, rng: Rng) -> str | None:
    how = one_of(rng, ("opset", "opset", "ir", "none", "twice", "domain"))
    number = int(one_of(rng, (*range(1, 28), 0, -1, 99, 2**40)) or 0)
    if how == "ir":
        model.ir_version = int(one_of(rng, (0, -1, 1, 2, 3, 4, 7, 9, 10, 11, 12, 13, 99, 2**40)) or 0)
        return f"ir_version {model.ir_version}"
    if how == "none":
        del model.opset_import[:]
    elif how == "opset" and model.opset_import:
        model.opset_import[0].version = number
    else:
        domain = str(one_of(rng, ("", "ai.onnx", "com.microsoft", "nobody", "\x1b[31m")))
        model.opset_import.append(helper.make_opsetid(domain, number))
    return f"opsets {[(o.domain, o.version) for o in model.opset_import]}"


def metadata(model: onnx.ModelProto, rng: Rng) -> str | None:
    for _ in range(int(rng.integers(1, 4))):
        text = str(one_of(rng, (*NAMES, "x" * 2**20)))
        model.metadata_props.add(key=str(one_of(rng, NAMES)), value=text)
    model.doc_string = str(one_of(rng, NAMES))
    return f"{len(model.metadata_props)} metadata"


def functions(model: onnx.ModelProto, rng: Rng) -> str | None:
    """One that calls itself, one that doubles, one without opsets, one that hides an operator."""
    node = one_of(rng, nodes_of(model))
    if node is None or not node.output:
        return None
    how = str(one_of(rng, ("itself", "doubles", "no opset", "hides", "twice")))
    opsets = [] if how == "no opset" else [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    inner = helper.make_node("Relu", ["a"], ["b"])
    if how == "itself":
        inner = helper.make_node("Own", ["a"], ["b"], domain="own")
    domain, name = ("", node.op_type) if how == "hides" else ("own", "Own")
    if how == "doubles":
        for i in range(30):
            call = f"Own{i - 1}" if i else "Relu"
            calls = [helper.make_node(call, [a], [b], domain="own" if i else "") for a, b in (("a", "m"), ("m", "b"))]
            model.functions.append(helper.make_function("own", f"Own{i}", ["a"], ["b"], calls, opsets))
        name = "Own29"
    else:
        for _ in range(2 if how == "twice" else 1):
            model.functions.append(helper.make_function(domain, name, ["a"], ["b"], [inner], opsets))
    if how != "hides":
        model.opset_import.append(helper.make_opsetid("own", 1))
        model.graph.node.append(helper.make_node(name, [node.output[0]], ["of_own"], domain="own"))
        model.graph.output.append(helper.make_tensor_value_info("of_own", 1, None))
    return f"function: {how}"


def growth(model: onnx.ModelProto, rng: Rng) -> str | None:
    """Long chains, many paths, deep bodies."""
    value = one_of(rng, [name for node in model.graph.node for name in node.output])
    if value is None:
        return None
    how = str(one_of(rng, ("chain", "paths", "bodies", "wide")))
    if how == "bodies":
        body = helper.make_graph([helper.make_node("Identity", [value], ["z"])], "b", [],
                                 [helper.make_tensor_value_info("z", 1, None)])  # fmt: skip
        for depth in range(int(one_of(rng, (3, 30, 120)) or 3)):
            branch = helper.make_node("If", ["always"], ["z"], then_branch=body, else_branch=body) if depth < 8 else (
                helper.make_node("If", ["always"], ["z"], then_branch=body))  # fmt: skip
            body = helper.make_graph([branch], "b", [], [helper.make_tensor_value_info("z", 1, None)])
        model.graph.node.append(helper.make_node("If", ["always"], ["grown"], then_branch=body, else_branch=body))
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    elif how == "wide":
        model.graph.node.append(helper.make_node("Sum", [value] * 3000, ["grown"]))
    else:
        name = value
        for i in range(150 if how == "chain" else 40):
            inputs, op = ([name], "Abs") if how == "chain" else ([name, name], "Max")
            model.graph.node.append(helper.make_node(op, inputs, [f"grown{i}"]))
            name = f"grown{i}"
        model.graph.node.append(helper.make_node("Identity", [name], ["grown"]))
    model.graph.output.append(helper.make_tensor_value_info("grown", 1, None))
    return f"growth from {value!r}: {how}"


def any_field(model: onnx.ModelProto, rng: Rng) -> str | None:
    """Any field of any message in it, known to this file or not."""
    message = one_of(rng, list(_messages(model)))
    if message is None:
        return None
    field = one_of(rng, message.DESCRIPTOR.fields)
    if field is None:
        return None
    where = f"{message.DESCRIPTOR.name}.{field.name}"
    if rng.random() < 0.3:
        message.ClearField(field.name)
        return f"{where} is cleared"
    value = _any_value(field, rng)
    if value is None:
        getattr(message, field.name).add() if _repeated(field) else getattr(message, field.name).SetInParent()
    elif _repeated(field):
        held = getattr(message, field.name)
        if held and rng.random() < 0.5:
            held[int(rng.integers(len(held)))] = value
        else:
            held.append(value)
    else:
        setattr(message, field.name, value)
    return f"{where} is {value!r}"[:200]


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for part in value if _repeated(field) else [value]:
                yield from _messages(part)


def _repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == FieldDescriptor.LABEL_REPEATED


def _any_value(field: FieldDescriptor, rng: Rng) -> Any:
    """One for its type; None for a message."""
    kinds = FieldDescriptor
    if field.cpp_type in (kinds.CPPTYPE_INT64, kinds.CPPTYPE_UINT64, kinds.CPPTYPE_INT32, kinds.CPPTYPE_UINT32):
        wide = field.cpp_type in (kinds.CPPTYPE_INT64, kinds.CPPTYPE_UINT64)
        signed = field.cpp_type in (kinds.CPPTYPE_INT64, kinds.CPPTYPE_INT32)
        return one_of(rng, [n for n in SIZES if (wide or abs(n) < 2**31) and (signed or n >= 0)])
    if field.cpp_type == kinds.CPPTYPE_ENUM:
        return one_of(rng, [value.number for value in field.enum_type.values])
    if field.cpp_type in (kinds.CPPTYPE_FLOAT, kinds.CPPTYPE_DOUBLE):
        return one_of(rng, NUMBERS)
    if field.cpp_type == kinds.CPPTYPE_BOOL:
        return bool(rng.random() < 0.5)
    if field.type == kinds.TYPE_BYTES:
        return rng.bytes(int(rng.integers(0, 40)))
    if field.cpp_type == kinds.CPPTYPE_STRING:
        return one_of(rng, NAMES)
    return None


# What leaves a model sound: the command goes on, and has to deal with it.


def a_node_between(model: onnx.ModelProto, rng: Rng) -> str | None:
    """On an edge, doing nothing."""
    graph = one_of(rng, [g for g in graphs_of(model) if any(node.input for node in g.node)])
    if graph is None:
        return None
    place = int(one_of(rng, [i for i, node in enumerate(graph.node) if node.input]) or 0)
    node = graph.node[place]
    edge = int(rng.integers(len(node.input)))
    if not node.input[edge]:
        return None
    op, was = str(one_of(rng, ("Identity", "Identity", "Dropout", "Identity"))), node.input[edge]
    node.input[edge] = f"{was}_between_{len(graph.node)}"
    between = helper.make_node(op, [was], [node.input[edge]])
    graph.node.insert(place, between)
    return f"{op} before {node.op_type} {node.name!r}"


def a_constant_for_a_tensor(model: onnx.ModelProto, rng: Rng) -> str | None:
    tensor = one_of(rng, model.graph.initializer)
    if tensor is None:
        return None
    model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    model.graph.initializer.remove(tensor)
    return f"tensor {tensor.name!r} is a Constant"


def a_tensor_that_is_an_input(model: onnx.ModelProto, rng: Rng) -> str | None:
    tensor = one_of(rng, model.graph.initializer)
    if tensor is None:
        return None
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return f"tensor {tensor.name!r} is an input, too"


def an_inner_output(model: onnx.ModelProto, rng: Rng) -> str | None:
    shown = [value.name for value in model.graph.output]
    name = one_of(rng, [name for node in model.graph.node for name in node.output if name and name not in shown])
    if name is None:
        return None
    kinds = {tensor.data_type for tensor in model.graph.initializer} & {1, 10, 11, 16} or {1}
    model.graph.output.append(helper.make_tensor_value_info(name, kinds.pop(), None))
    return f"{name!r} is an output, too"


def shared_tensors(model: onnx.ModelProto, rng: Rng) -> str | None:
    """One weight for two layers; what it was for the other one stays unused."""
    held = list(model.graph.initializer)
    pairs = [(a, b) for a in held for b in held if a is not b and (a.dims, a.data_type) == (b.dims, b.data_type)]
    pair = one_of(rng, pairs)
    if pair is None:
        return None
    for node in model.graph.node:
        node.input[:] = [pair[0].name if name == pair[1].name else name for name in node.input]
    return f"{pair[0].name!r} for {pair[1].name!r}"


def a_head_more(model: onnx.ModelProto, rng: Rng) -> str | None:
    """A node again, from the same weight, as an output of its own."""
    node = one_of(
        rng, [node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm", "ConvTranspose")]
    )
    if node is None:
        return None
    twin = model.graph.node.add()
    twin.CopyFrom(node)
    twin.output[0] = f"{node.output[0]}_head"
    twin.name = f"{node.name}_head" if rng.random() < 0.5 else node.name
    kind = model.graph.initializer[0].data_type if model.graph.initializer else 1
    model.graph.output.append(helper.make_tensor_value_info(twin.output[0], kind, None))
    return f"{node.op_type} {node.name!r} is there for two"


def what_nobody_uses(model: onnx.ModelProto, rng: Rng) -> str | None:
    how = str(one_of(rng, ("tensor", "node", "input")))
    if how == "tensor":
        model.graph.initializer.append(
            numpy_helper.from_array(rng.standard_normal((50, 40)).astype(np.float32), "idle")
        )
    elif how == "input":
        model.graph.input.append(helper.make_tensor_value_info("idle", int(one_of(rng, (1, 7, 9)) or 1), ["N", 3]))
    else:
        value = one_of(rng, [name for node in model.graph.node for name in node.output if name])
        model.graph.node.append(helper.make_node("Identity", [str(value)], ["idle"]))
    return f"unused: {how}"


def a_batch(model: onnx.ModelProto, rng: Rng) -> str | None:
    """Another first size, the same for all that the graph shows."""
    size = one_of(rng, ("N", "batch", 1, 2, 5, None, "\x1b[31m"))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.shape.dim:
            first = value.type.tensor_type.shape.dim[0]
            first.Clear()
            if isinstance(size, str):
                first.dim_param = size
            elif size is not None:
                first.dim_value = size
    return f"first sizes are {size!r}"


def a_node_in_a_body(model: onnx.ModelProto, rng: Rng) -> str | None:
    """In both branches of an If, which sees the values outside; or in a function."""
    place = int(rng.integers(len(model.graph.node))) if model.graph.node else None
    if place is None:
        return None
    node = onnx.NodeProto.FromString(model.graph.node[place].SerializeToString())
    if len(node.output) != 1 or node.domain or any(a.HasField("g") for a in node.attribute):
        return None
    if rng.random() < 0.5:
        inner = onnx.NodeProto.FromString(node.SerializeToString())
        inner.output[0] = "inside"
        body = helper.make_graph([inner], "b", [], [helper.make_tensor_value_info("inside", 1, None)])
        outer = helper.make_node("If", ["which"], node.output, then_branch=body, else_branch=body)
        if all(tensor.name != "which" for tensor in model.graph.initializer):
            model.graph.initializer.append(numpy_helper.from_array(np.array(True), "which"))
    else:
        name = f"Wrapped{len(model.functions)}"
        version = next((entry.version for entry in model.opset_import if not entry.domain), 17)
        inputs = [*dict.fromkeys(name for name in node.input if name)]
        function = helper.make_function("own", name, inputs, node.output, [node], [helper.make_opsetid("", version)])
        outer = helper.make_node(name, inputs, node.output, name=node.name, domain="own")
        model.functions.append(function)
        if all(entry.domain != "own" for entry in model.opset_import):
            model.opset_import.append(helper.make_opsetid("own", 1))
    del model.graph.node[place]
    model.graph.node.insert(place, outer)
    return f"{node.op_type} {node.name!r} is in {outer.op_type}"


def a_weight_of_low_rank(model: onnx.ModelProto, rng: Rng) -> str | None:
    tensor = one_of(
        rng, [t for t in tensors_of(model) if t.data_type in (1, 10, 11) and len(t.dims) > 1 and t.raw_data]
    )
    if tensor is None:
        return None
    array = numpy_helper.to_array(tensor).copy()
    how = str(one_of(rng, ("zero", "one", "rank one", "zero rows", "tiny", "large", "denormal")))
    with np.errstate(all="ignore"):
        if how in ("zero", "one"):
            array[...] = how == "one"
        elif how == "rank one":
            array[:] = array[:1]
        elif how == "zero rows":
            array[: len(array) // 2] = 0
        else:
            array *= np.asarray({"tiny": 1e-12, "large": 1e4, "denormal": 1e-41}[how], array.dtype)
    tensor.raw_data = array.tobytes()
    return f"weight {tensor.name!r} is {how}"


SOUND: tuple[Mutation, ...] = (
    a_node_between, a_constant_for_a_tensor, a_tensor_that_is_an_input, an_inner_output, shared_tensors, a_head_more,
    what_nobody_uses, a_batch, a_node_in_a_body, a_weight_of_low_rank, entries_of_a_tensor, nodes_change_places,
    a_hostile_name, a_hostile_name, metadata, growth,
)  # fmt: skip
MUTATIONS: tuple[Mutation, ...] = (
    *SOUND,
    size_of_a_tensor, sizes_of_a_tensor_change_places, rank_of_a_tensor, type_of_a_tensor, bytes_of_a_tensor,
    whole_numbers_of_a_tensor, a_tensor_elsewhere, a_tensor_goes_or_doubles,
    a_tensor_of_another_shape, a_sparse_tensor, a_node_goes, a_node_doubles, another_operator,
    another_domain, another_edge, another_edge, fewer_or_more_edges, an_output_of_another_name, another_attribute,
    another_attribute, an_attribute_of_another_kind, an_attribute_goes_or_comes, a_shown_value, a_shown_value,
    inputs_and_outputs, inputs_and_outputs, a_note_on_a_value, versions,
    functions, any_field, any_field, any_field,
)  # fmt: skip


def mutate(model: onnx.ModelProto, rng: Rng) -> list[str]:
    """Mutate the model in place, once to four times; what was done."""
    wanted = int(rng.choice([1, 2, 3, 4], p=[0.6, 0.25, 0.1, 0.05]))
    drawn = SOUND if rng.random() < 0.4 else MUTATIONS
    said: list[str] = []
    while len(said) < wanted:
        mutation = drawn[int(rng.integers(len(drawn)))]
        try:
            done = mutation(model, rng)
        except (
            ValueError,
            TypeError,
            OverflowError,
            IndexError,
            Error,
        ) as error:  # protobuf's checks, after another one
            done = f"{type(error).__name__}"
        if done is not None:
            said.append(f"{mutation.__name__}: {done}")
    return said
