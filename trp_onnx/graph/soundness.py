"""What must hold of an ONNX file before anything reads it: one walk over its protobuf, in time linear in its nodes.

Libraries that come later (onnx_ir, ONNX Runtime, onnx-simplifier) trust a model more than a stranger's file deserves:
they divide by a group of 0, take memory for sizes that no data backs, or inline functions until the machine stops.
Weights are not read here; only their lengths are held against their shapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import onnx
from google.protobuf.message import Message
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from trp_onnx.errors import ModelError
from trp_onnx.graph.stored_tensors import check_tensor, dense

LARGEST_INLINED = 200_000
"""Nodes that local functions may come to when every call is written out."""

DEEPEST_CALL = 100
"""Functions that call one another in a row; exporters make three or four."""

_NEWEST_OPSET = 10_000  # far above any; the runtime says which ones it knows
_LARGEST_SIZE = 2**31 - 1  # of a kernel, a stride, a padding
_STANDARD = ("", "ai.onnx")
_HELD = {AttributeProto.TENSOR: "t", AttributeProto.GRAPH: "g", AttributeProto.TYPE_PROTO: "tp"}
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm")


def check(model: ModelProto) -> list[str]:
    """Refuse a model that breaks ONNX's own rules in a way that later steps trip over; sparse tensors become dense.

    Args:
        model: As parsed; its sparse tensors are replaced in place.

    Returns:
        Notes that its owner should see.

    Raises:
        ModelError: One clause that says what and where.
    """
    _check_text(model)
    _check_head(model)
    _check_functions(model)
    made_dense = _check_graph(model.graph, _Scope(_opset(model.opset_import)))
    for function in model.functions:
        made_dense += _check_graph(function, _Scope(_opset(function.opset_import)))
    return [f"sparse tensors were made dense: {made_dense}"] if made_dense else []


def _check_text(model: ModelProto) -> None:
    """Strings are UTF-8; protobuf gives those that are not as bytes."""
    stack: list[Message] = [model]
    while stack:
        message = stack.pop()
        texts: list[object]
        if isinstance(message, TensorProto):  # without its data
            texts = [message.name, message.doc_string]
            stack += [*message.external_data, *message.metadata_props]
        elif isinstance(message, NodeProto):  # of which there are many
            own = (message.name, message.op_type, message.domain, message.overload, message.doc_string)
            texts = [*own, *message.input, *message.output]
            stack += [*message.attribute, *message.metadata_props, *message.device_configurations]
        else:
            texts = []
            for field, value in message.ListFields():
                if field.type == field.TYPE_MESSAGE:
                    stack += [value] if isinstance(value, Message) else value
                elif field.type == field.TYPE_STRING:
                    texts += [value] if isinstance(value, (str, bytes)) else value
        for text in texts:
            if isinstance(text, bytes):
                raise ModelError(f"a name in it is not UTF-8: '{text[:100].decode(errors='backslashreplace')}'")


def _check_head(model: ModelProto) -> None:
    if not 1 <= model.ir_version <= onnx.IR_VERSION:
        raise ModelError(f"it is of IR version {model.ir_version}; there are 1 to {onnx.IR_VERSION}")
    for imports in (model.opset_import, *(function.opset_import for function in model.functions)):
        versions: dict[str, int] = {}
        for entry in imports:
            domain = "" if entry.domain in _STANDARD else entry.domain
            if not 1 <= entry.version <= _NEWEST_OPSET:
                raise ModelError(f"it is of opset {entry.version} of '{domain or 'ai.onnx'}', which does not exist")
            if versions.setdefault(domain, entry.version) != entry.version:
                raise ModelError(f"it is of two opsets of '{domain or 'ai.onnx'}'")


def _opset(imports: Iterable[onnx.OperatorSetIdProto]) -> int:
    return next((entry.version for entry in imports if entry.domain in _STANDARD), 0)


_Key = tuple[str, str, str]


def _check_functions(model: ModelProto) -> None:
    """How many nodes the functions come to when they are inlined, and how deep they call, from the calls alone."""
    calls: dict[_Key, Counter[_Key]] = {}
    own: dict[_Key, int] = {}
    for function in model.functions:
        key = (function.domain, function.name, function.overload)
        if key in calls:
            raise ModelError(f"function '{function.name}' is there twice")
        calls[key], own[key] = _calls(function)
    if not calls:
        return
    main, nodes = _calls(model.graph)
    sizes: dict[_Key, int] = {}
    depths: dict[_Key, int] = {}
    for start in calls:
        _add_size(start, calls, own, sizes, depths)
    if max(depths.values()) > DEEPEST_CALL:
        raise ModelError(
            f"its functions call one another {max(depths.values())} deep; at most {DEEPEST_CALL} are inlined"
        )
    total = nodes + sum(times * sizes.get(key, 0) for key, times in main.items())
    if total > LARGEST_INLINED:
        raise ModelError(
            f"its functions come to {total if total < 10**15 else 'over 10^15'} nodes when they are inlined; "
            f"at most {LARGEST_INLINED} are"
        )


def _calls(graph: GraphProto | FunctionProto) -> tuple[Counter[_Key], int]:
    """What a graph calls, how often, and how many nodes it has, subgraphs included."""
    found: Counter[_Key] = Counter()
    count = 0
    for node in _all_nodes(graph):
        count += 1
        found[node.domain, node.op_type, node.overload] += 1
    return found, count


def _all_nodes(graph: GraphProto | FunctionProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for inner in _subgraphs(node):
            yield from _all_nodes(inner)


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _add_size(
    start: _Key,
    calls: Mapping[_Key, Mapping[_Key, int]],
    own: Mapping[_Key, int],
    sizes: dict[_Key, int],
    depths: dict[_Key, int],
) -> None:
    """Depth first, each function once."""
    open_, stack = set[_Key](), [start]
    while stack:
        key = stack[-1]
        missing = [] if key in sizes else [called for called in calls[key] if called in calls and called not in sizes]
        if missing and key not in open_:
            open_.add(key)
            if any(called in open_ for called in missing):
                raise ModelError(f"function '{key[1]}' calls itself, which ONNX does not allow")
            stack += missing
            continue
        if missing:
            raise ModelError(f"function '{key[1]}' calls itself, which ONNX does not allow")
        stack.pop()
        open_.discard(key)
        sizes[key] = own[key] + sum(times * sizes.get(called, 0) for called, times in calls[key].items())
        depths[key] = 1 + max((depths.get(called, 0) for called in calls[key]), default=0)


@dataclass(frozen=True)
class _Scope:
    """What a graph sees: its opset, and the names and constant shapes of the graphs around it."""

    opset: int
    names: tuple[frozenset[str] | set[str], ...] = ()
    constants: tuple[Mapping[str, Sequence[int]], ...] = ()

    def knows(self, name: str) -> bool:
        return any(name in names for names in self.names)

    def shape(self, name: str) -> Sequence[int] | None:
        """Of a constant; None for what is none."""
        return next((shapes[name] for shapes in reversed(self.constants) if name in shapes), None)


def _check_graph(graph: GraphProto | FunctionProto, around: _Scope) -> int:
    """One graph and all inside it; returns how many sparse tensors were made dense."""
    made_dense = 0
    constants: dict[str, Sequence[int]] = {}
    names: set[str] = set()
    if isinstance(graph, GraphProto):
        made_dense = len(graph.sparse_initializer)
        graph.initializer.extend(dense(sparse) for sparse in graph.sparse_initializer)
        graph.ClearField("sparse_initializer")
        for tensor in graph.initializer:
            check_tensor(tensor)
            if not tensor.name or tensor.name in constants:
                raise ModelError(
                    f"initializer '{tensor.name}' is there twice" if tensor.name else "an initializer has no name"
                )
            constants[tensor.name] = tensor.dims
    inputs = [value.name for value in graph.input] if isinstance(graph, GraphProto) else list(graph.input)
    outputs = [value.name for value in graph.output] if isinstance(graph, GraphProto) else list(graph.output)
    for name in inputs:
        if not name or name in names:
            raise ModelError(f"input '{name}' is there twice" if name else "an input has no name")
        names.add(name)
    names.update(constants)
    for node in graph.node:
        for name in node.output:
            if name and name in names:
                raise ModelError(f"value '{name}' is made twice, once by {_shown(node)}")
            names.add(name)
    names.add("")  # an optional input that is left out
    scope = _Scope(around.opset, (*around.names, names), (*around.constants, constants))
    for node in graph.node:
        made_dense += _check_node(node, scope)
    for name in outputs:
        if not name or not scope.knows(name):
            raise ModelError(f"output '{name}' is made by no node")
    return made_dense


def _shown(node: NodeProto) -> str:
    return f"{node.op_type} '{node.name or next(iter(node.output), '')}'"


def _check_node(node: NodeProto, scope: _Scope) -> int:
    if not node.op_type:
        raise ModelError(f"node '{node.name}' has no operator")
    if not any(node.output):
        raise ModelError(f"{_shown(node)} makes nothing")
    if not all(placed.configuration_id for placed in node.device_configurations):
        raise ModelError(f"{_shown(node)} has a device configuration that names none")
    own = scope.names[-1]
    for name in node.input:
        if name not in own and not scope.knows(name):
            raise ModelError(f"{_shown(node)} reads '{name}', which nothing makes")
    made_dense = sum(_check_attribute(attribute, node, scope) for attribute in node.attribute)
    if node.domain in _STANDARD:
        _check_against_schema(node, scope.opset)
        _check_sizes(node, scope)
    return made_dense


def _check_attribute(attribute: AttributeProto, node: NodeProto, scope: _Scope) -> int:
    if attribute.type == AttributeProto.SPARSE_TENSOR and node.op_type == "Constant" and node.domain in _STANDARD:
        tensor = dense(attribute.sparse_tensor)
        attribute.CopyFrom(AttributeProto(name="value", type=AttributeProto.TENSOR, t=tensor))
        return 1
    if not attribute.type:
        raise ModelError(f"attribute '{attribute.name}' of {_shown(node)} is of no type")
    held = _HELD.get(attribute.type)
    if held is not None and not attribute.ref_attr_name and not attribute.HasField(held):
        raise ModelError(f"attribute '{attribute.name}' of {_shown(node)} holds nothing")
    if attribute.HasField("t"):
        check_tensor(attribute.t)
    for tensor in attribute.tensors:
        check_tensor(tensor)
    graphs = (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs)
    return sum(_check_graph(graph, scope) for graph in graphs)


@dataclass(frozen=True)
class _Schema:
    attributes: Mapping[str, int]
    required: frozenset[str]
    inputs: tuple[int, int]
    outputs: tuple[int, int]


@lru_cache(maxsize=1024)
def _schema(op: str, opset: int) -> _Schema | None:
    try:
        found = onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return None
    return _Schema(
        {name: _number(attribute.type) for name, attribute in found.attributes.items()},
        frozenset(name for name, attribute in found.attributes.items() if attribute.required),
        (found.min_input, found.max_input),
        (found.min_output, found.max_output),
    )


def _number(kind: object) -> int:
    """Of an enumeration's member, which is one of nanobind's and known to no type checker."""
    return int(getattr(kind, "value", kind))  # type: ignore[call-overload,no-any-return]


def _check_against_schema(node: NodeProto, opset: int) -> None:
    """Counts and types, as ONNX Runtime holds them when it loads a model."""
    schema = _schema(node.op_type, opset)
    if schema is None:
        return
    for what, values, (least, most) in (
        ("inputs", node.input, schema.inputs),
        ("outputs", node.output, schema.outputs),
    ):
        if not least <= len(values) <= most:
            raise ModelError(f"{_shown(node)} has {len(values)} {what}, where {least} to {most} are meant")
    given: set[str] = set()
    for attribute in node.attribute:
        meant = schema.attributes.get(attribute.name)
        if attribute.name in given:
            raise ModelError(f"{_shown(node)} has its attribute '{attribute.name}' twice")
        given.add(attribute.name)
        if meant is not None and attribute.type != meant:
            kinds = {number: kind for kind, number in AttributeProto.AttributeType.items()}
            found = kinds.get(attribute.type, attribute.type)
            raise ModelError(
                f"attribute '{attribute.name}' of {_shown(node)} is of type {found}, where {kinds[meant]} is meant"
            )
    for name in schema.required - given:
        raise ModelError(f"{_shown(node)} has no attribute '{name}', which it needs")


def _check_sizes(node: NodeProto, scope: _Scope) -> None:
    """Numbers that kernels compute with before they look at them."""
    if not node.attribute and node.op_type not in _WEIGHTED:  # most nodes of a large model
        return
    lists = {a.name: list(a.ints) for a in node.attribute if a.type == AttributeProto.INTS}
    for name in ("kernel_shape", "strides", "dilations"):
        if any(not 1 <= size <= _LARGEST_SIZE for size in lists.get(name, ())):
            raise ModelError(f"{_shown(node)} has {name} {lists[name]}: each is from 1")
    for name in ("pads", "output_padding", "output_shape"):
        if any(abs(size) > _LARGEST_SIZE for size in lists.get(name, ())):
            raise ModelError(f"{_shown(node)} has {name} {lists[name]}, which no tensor has room for")
    if node.op_type in ("Conv", "ConvTranspose"):
        _check_convolution(node, lists, scope.shape(node.input[1]))
    if node.op_type == "Gemm":
        for name in node.input[:2]:
            shape = scope.shape(name)
            if shape is not None and len(shape) != 2:
                raise ModelError(f"{_shown(node)} has a matrix '{name}' of shape {list(shape)}")


def _check_convolution(node: NodeProto, lists: Mapping[str, list[int]], weight: Sequence[int] | None) -> None:
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    if not 1 <= groups <= _LARGEST_SIZE:
        raise ModelError(f"{_shown(node)} has {groups} groups: there is at least one")
    if weight is None:
        return
    if len(weight) < 3:
        raise ModelError(f"{_shown(node)} has a weight of shape {list(weight)}: a kernel has three sizes at least")
    if weight[0] % groups:
        raise ModelError(f"{_shown(node)} has {groups} groups, which do not divide its {weight[0]} channels")
    axes = len(weight) - 2
    for name, length in (("strides", axes), ("dilations", axes), ("pads", 2 * axes), ("output_padding", axes)):
        if lists.get(name) and len(lists[name]) != length:
            raise ModelError(f"{_shown(node)} has {name} {lists[name]}, where its weight has {axes} axes")
    if lists.get("kernel_shape") and lists["kernel_shape"] != list(weight[2:]):
        raise ModelError(f"{_shown(node)} has kernel_shape {lists['kernel_shape']}, its weight {list(weight[2:])}")
