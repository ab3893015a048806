"""Inputs for a model that nobody gave any: what the graph does with an input says what may go in.

leads to a Gather, a OneHot, ...       random ids within that table
leads to a comparison, 1 - x, x * h    a mask: ones
is compared with a constant            that constant, where the input is a single number
counts what is real of a sequence      the whole length
8-bit integers                         random bytes
other floats                           standard normal; a single number beside larger inputs is 1
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx_ir as ir

from trp_onnx.errors import ModelError
from trp_onnx.graph.sizes import Shape, declared_sizes, input_dims, real_inputs
from trp_onnx.process.memory import check_room

_SAME_VALUES = {
    "Cast", "Clip", "Concat", "Expand", "Flatten", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators that hand values on as they are (from their first input; Concat from all)."""

_JUDGING = {
    "And", "CumSum", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "NonZero", "Not", "Or", "ReduceMax",
    "ReduceMin", "ReduceSum", "Xor",
}  # fmt: skip
"""What masks and lengths go into."""

_ARITHMETIC = {"Add", "Div", "Einsum", "Gemm", "MatMul", "Mul"}
_ATTENTION = ("Attention", "MultiHeadAttention", "EmbedLayerNormalization", "QAttention")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_BYTES = (ir.DataType.UINT8, ir.DataType.INT8)
_FEW = 10
"""Integers that nothing is known of are below this."""


@dataclass(frozen=True)
class Generated:
    """Generated inputs.

    Attributes:
        arrays: By input.
        kinds: What each holds, in words.
    """

    arrays: dict[str, np.ndarray]
    kinds: dict[str, str]

    @property
    def description(self) -> str:
        """Such as "input_ids: random ids below 30522; attention_mask: ones"."""
        return "; ".join(f"{name}: {kind}" for name, kind in self.kinds.items())


_WHILE_MADE = 16
"""Bytes of an element while it is made: float64 noise, and itself."""


def generate(model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None = None, seed: int = 0) -> Generated:
    """Inputs on which the model does something sensible.

    A dynamic size that `input_shapes` does not give is 64 for the spatial sizes of a 4-d or 5-d input and
    16 elsewhere; sizes of one name are equal.

    Args:
        model: As it was opened, or normalised.
        input_shapes: Sizes of dynamic inputs; a symbolic batch is 1.
        seed: Of what is random.

    Raises:
        ModelError: An input is no tensor, or has a type or rank that cannot be generated.
    """
    rng = np.random.default_rng(seed)
    shapes = _sizes(model, input_shapes)
    for name, shape in shapes.items():
        check_room(_WHILE_MADE * prod(shape), f"a generated input '{name}' of shape {list(shape)}")
    arrays: dict[str, np.ndarray] = {}
    kinds: dict[str, str] = {}
    for value in real_inputs(model):
        name = value.name or ""
        assert value.dtype is not None
        values, kinds[name] = _values(model, value, shapes, rng)
        dtype = object if value.dtype == ir.DataType.STRING else value.dtype.numpy()
        arrays[name] = np.broadcast_to(values, shapes[name]).astype(dtype)
    return Generated(arrays, kinds)


def _values(
    model: ir.Model, value: ir.Value, shapes: Mapping[str, tuple[int, ...]], rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    """What goes into an input, in any type and anything that broadcasts to its shape, and what to call it."""
    shape = shapes[value.name or ""]
    if value.dtype == ir.DataType.STRING:
        return np.array("", dtype=object), "empty strings"
    if value.dtype == ir.DataType.BOOL:
        return np.array(True), "true"
    uses = _uses_of(model, value, shapes)
    if uses.limits:
        below = max(1, min(uses.limits))
        return rng.integers(0, below, shape), f"random ids below {below}"
    small = len(shape) < 2
    beside = [other for name, other in shapes.items() if name != value.name and len(other) > len(shape)]
    if value.dtype in _FLOATS:
        if (uses.judged and not uses.counted) or (small and beside):
            return np.array(1), "ones"
        return rng.standard_normal(shape), "standard normal"
    if small and uses.compared:
        return np.array(uses.compared[0]), str(uses.compared[0])
    if uses.lengths or (small and uses.judged and beside):
        length = min(uses.lengths or [_length(model, value, shapes)])
        return np.array(length), f"lengths of {length}"
    if value.dtype in _BYTES:
        low = -128 if value.dtype == ir.DataType.INT8 else 0
        return rng.integers(low, low + 256, shape), "random bytes"
    if not small and uses.turned:
        return np.arange(shape[-1]), "positions"
    if not small and uses.counted and not uses.judged:
        return rng.integers(0, _FEW, shape), f"random numbers below {_FEW}"
    return np.array(1), "ones"


def _sizes(model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None) -> dict[str, tuple[int, ...]]:
    """A whole shape for each input."""
    dims = input_dims(model, input_shapes)
    named: dict[str, int] = {}
    found: dict[str, tuple[int, ...]] = {}
    for name, names in declared_sizes(model).items():
        pairs = zip(names or (), dims[name] or (), strict=False)
        named |= {size: known for size, known in pairs if isinstance(size, str) and known is not None}
    for value in real_inputs(model):
        name, sizes = value.name or "", dims[value.name or ""]
        if sizes is None or value.dtype is None or not isinstance(value.type, ir.TensorType):
            raise ModelError(
                f"cannot generate values for input '{name}': its type or rank is not declared; give --inputs"
            )
        names = declared_sizes(model)[name] or sizes
        free = 64 if len(sizes) >= 4 else 16
        found[name] = tuple(
            size if size is not None else _named(text, named, free) for size, text in zip(sizes, names, strict=True)
        )
    return found


def _named(text: int | str | None, named: dict[str, int], free: int) -> int:
    """A size by its name, which may be a sum such as "past_sequence_length + 1"."""
    if not isinstance(text, str):
        return free
    parts = [part.strip() for part in text.split("+")]
    return sum(int(part) if part.isdecimal() else named.setdefault(part, free) for part in parts)


def _length(model: ir.Model, value: ir.Value, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Of the sequences that the other inputs hold: their free sizes, or what follows the batch."""
    free, fixed = [], []
    for name, sizes in declared_sizes(model).items():
        if name == value.name or len(shapes[name]) < 2:
            continue
        fixed.append(shapes[name][1])
        free += [shapes[name][axis] for axis in range(1, len(shapes[name])) if not isinstance((sizes or ())[axis], int)]
    return max(1, min(free or fixed[:1] or [1]))


@dataclass
class _Uses:
    """What a graph does with an input.

    Attributes:
        limits: Sizes of the tables that it indexes.
        lengths: Sizes of the axes that it counts along.
        compared: Constants that it is compared with.
        judged: Whether it ends as a mask does.
        counted: Whether it is calculated with as a number is.
        turned: Whether it goes into a sine: a position.
    """

    limits: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    compared: list[int] = field(default_factory=list)
    judged: bool = False
    counted: bool = False
    turned: bool = False


class _Graph:
    """Where values go in a model, its functions and bodies included."""

    def __init__(self, model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._model, self._shapes = model, shapes
        self._outside: dict[ir.Value, ir.Value] = {}
        self._entered: set[ir.Value] = set()
        self._inferred: Mapping[ir.Value, Shape] | None = None

    def uses(self, value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
        """Nodes that take a value, and as which input; inside those that are graphs of their own."""
        for node, index in value.uses():
            inside = self._inside(node, index)
            if inside is None:
                yield node, index
            elif inside not in self._entered:
                self._entered.add(inside)
                yield from self.uses(inside)

    def _inside(self, node: ir.Node, index: int) -> ir.Value | None:
        function = self._model.functions.get(node.op_identifier())
        if function is not None:
            for outer, inner in zip(node.inputs, function.inputs, strict=False):
                if outer is not None:
                    self._outside.setdefault(inner, outer)
            return function.inputs[index] if index < len(function.inputs) else None
        body = node.attributes.get("body") if node.op_type in ("Loop", "Scan") else None
        inputs = body.as_graph().inputs if body is not None else ()
        return inputs[index] if index < len(inputs) else None

    def size(self, value: ir.Value | None, axis: int) -> int | None:
        """A size of a value, where it is known."""
        if value is None:
            return None
        shape = value.shape if value.const_value is None else value.const_value.shape
        declared = tuple(shape) if shape is not None else ()
        if -len(declared) <= axis < len(declared) and isinstance(declared[axis], int):
            return int(declared[axis])  # type: ignore[arg-type]
        producer = value.producer()
        if producer is not None and producer.op_type in ("DequantizeLinear", "QuantizeLinear", "Cast", "Identity"):
            return self.size(producer.inputs[0], axis)
        if value in self._outside:
            return self.size(self._outside[value], axis)
        if self._inferred is None:
            from trp_onnx.graph.shapes import infer_shapes

            self._inferred = infer_shapes(self._model, self._shapes)
        found = self._inferred.get(value)
        return found[axis] if found is not None and -len(found) <= axis < len(found) else None

    def constant(self, node: ir.Node, index: int) -> np.ndarray | None:
        """A small constant among the inputs of a node."""
        value = node.inputs[index] if index < len(node.inputs) else None
        value = self._outside.get(value, value) if value is not None else None
        tensor = value.const_value if value is not None else None
        if tensor is None and value is not None and (producer := value.producer()) is not None:
            attribute = producer.attributes.get("value") if producer.op_type == "Constant" else None
            tensor = attribute.as_tensor() if attribute is not None else None
        return tensor.numpy() if tensor is not None and tensor.size <= 1 else None


def _uses_of(model: ir.Model, value: ir.Value, shapes: Mapping[str, tuple[int, ...]]) -> _Uses:
    """Follow an input to where it is used for what it is."""
    graph, found = _Graph(model, shapes), _Uses()
    stack, seen = [(value, 0)], {value}
    while stack:
        flow, offset = stack.pop()
        for node, index in graph.uses(flow):
            size = _indexed(graph, node, index)
            if size is not None:
                found.limits.append(size - offset)
                continue
            shift = _handed_on(graph, node, index)
            if shift is None:
                _judge(graph, node, index, value.dtype not in _FLOATS, found)
                continue
            for output in node.outputs:
                if output not in seen:
                    seen.add(output)
                    stack.append((output, offset + shift))
    return found


def _indexed(graph: _Graph, node: ir.Node, index: int) -> int | None:
    """Size of the table that a node looks up by this input."""
    op = node.op_type
    if op in ("Gather", "GatherElements", "ScatterElements") and index == 1:
        return graph.size(node.inputs[0], node.attributes.get_int("axis", 0))
    if op == "GatherBlockQuantized" and index == 1:
        return graph.size(node.inputs[0], node.attributes.get_int("gather_axis", 0))
    if op == "GatherND" and index == 1:
        return graph.size(node.inputs[0], node.attributes.get_int("batch_dims", 0))
    if op == "OneHot" and index == 0:
        depth = graph.constant(node, 1)
        return None if depth is None else int(depth.item())
    if op == "EmbedLayerNormalization" and index in (0, 1):
        return graph.size(node.inputs[2 if index == 0 else 4], 0)
    return None


def _handed_on(graph: _Graph, node: ir.Node, index: int) -> int | None:
    """What a node adds to the values that it hands on; None for a node that makes others of them."""
    op = node.op_type
    if op == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.BOOL:
        return None
    if op in _SAME_VALUES:
        return 0 if index == 0 or op == "Concat" else None
    if op == "Where":
        return 0 if index > 0 else None
    if op == "Add":
        added = graph.constant(node, 1 - index)
        if added is not None and added.size == 1 and added.dtype.kind in "iu":
            return int(added.item())
    return None


def _judge(graph: _Graph, node: ir.Node, index: int, whole: bool, found: _Uses) -> None:
    """Note what the end of a path says of the values, whole numbers or not, that came along it."""
    op = node.op_type
    other = graph.constant(node, 1 - index) if len(node.inputs) == 2 else None
    if op == "Equal" and other is not None and other.size == 1 and other.dtype.kind in "iu":
        found.compared.append(int(other.item()))
    if op in ("LSTM", "GRU", "RNN") and index == 4:
        found.lengths.append(graph.size(node.inputs[0], node.attributes.get_int("layout", 0)) or 1)
    elif op == "ReverseSequence" and index == 1:
        found.lengths.append(graph.size(node.inputs[0], node.attributes.get_int("time_axis", 0)) or 1)
    elif (
        op in _JUDGING
        or op in ("Cast", "Where")
        or (op in _ATTENTION and index > 0)
        or (op == "Sub" and index == 1 and other is not None)
        or (op == "Mul" and other is None and whole)
    ):
        found.judged = True
    else:
        found.counted = True
        found.turned = found.turned or _reaches_sine(node)


def _reaches_sine(node: ir.Node) -> bool:
    """Whether a few products behind a node a sine or cosine is taken."""
    front = [node]
    for _ in range(8):
        if any(near.op_type in ("Sin", "Cos", "RotaryEmbedding") for near in front):
            return True
        front = [
            after
            for near in front[:64]
            if near.op_type in _ARITHMETIC | _SAME_VALUES
            for after in near.successors()
        ]  # fmt: skip
    return False
