"""Where outputs come from, as the graph tells it: what is chosen, counted or rounded, and the floats behind that."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

_COMPARING = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "IsNaN", "IsInf", "And", "Or", "Xor", "Not")
_COUNTING = ("NonZero", "NonMaxSuppression", "Unique", "Compress")
_WHOLE = (
    *_COMPARING, "ArgMax", "ArgMin", "NonZero", "NonMaxSuppression", "QuantizeLinear", "Shape", "Size", "Multinomial",
)  # fmt: skip
_OF_ANOTHER_TYPE = ("Constant", "ConstantOfShape", "DequantizeLinear", "If", "Loop", "Scan")  # than their first input
_FIXED = ("ScatterND", "ScatterElements", "Shape", "Size")  # as large as their first input, whatever is put in
_PASSING = ("Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Cast", "Dropout")
_ROUNDING = (*_PASSING, "Clip", "Round", "Floor", "Ceil", "Transpose")
_WHOLE_TYPES = "iub"


def measurable(model: ir.Model) -> tuple[str, ...]:
    """The values that show small changes: each output, or, of one that decides or counts, the floats that it rests on.

    An arg max of 21 classes, the boxes that suppression left, a mask: a change shows there only where it tips an
    answer. The floats behind are measured instead, as further outputs of the network. An output that rests on none
    stands for itself.
    """
    graph = Origins(model)
    found: dict[str, None] = {}
    for value in model.graph.outputs:
        found |= dict.fromkeys(graph.behind(value) or [value.name or ""])
    return tuple(found)


class Origins:
    """What a network's graph says of its values, in one pass from the inputs on."""

    def __init__(self, model: ir.Model) -> None:
        self._values: dict[str, ir.Value] = {}
        self._whole: set[ir.Value] = set()
        self._counted: set[ir.Value] = set()
        self._constant: set[ir.Value] = set(model.graph.initializers.values())
        self._symbols = {
            str(size.value)
            for value in model.graph.inputs
            for size in value.shape or ()
            if isinstance(size, ir.SymbolicDim) and size.value is not None
        }
        for value in (*model.graph.inputs, *self._constant):
            self._note(value, value.dtype is not None and _is_whole(value.dtype))
        for node in model.graph:
            self._pass(node)
        self._outputs = {value.name: value for value in model.graph.outputs}

    def _note(self, value: ir.Value, whole: bool) -> None:
        self._values[value.name or ""] = value
        if whole:
            self._whole.add(value)

    def _pass(self, node: ir.Node) -> None:
        given = [value for value in node.inputs if value is not None]
        constant = node.op_type == "Constant" or (bool(given) and all(value in self._constant for value in given))
        sources = given[:1] if node.op_type in _FIXED else given
        counted = node.op_type in _COUNTING or any(value in self._counted for value in sources)
        for place, value in enumerate(node.outputs):
            self._note(value, self._makes_whole(node, given, place))
            if constant:
                self._constant.add(value)
            if counted and node.op_type not in ("Shape", "Size"):
                self._counted.add(value)

    def _makes_whole(self, node: ir.Node, given: Sequence[ir.Value], place: int) -> bool:
        if node.outputs[place].dtype is not None:
            return _is_whole(node.outputs[place].dtype)
        if node.op_type == "Cast":
            return _is_whole(ir.DataType(node.attributes.get_int("to", 1)))
        if node.op_type in _WHOLE or (node.op_type == "TopK" and place == 1):
            return True
        if node.op_type == "OneHot":
            return given[-1] in self._whole
        data = given[1:2] if node.op_type == "Where" else given[:1]
        return node.op_type not in _OF_ANOTHER_TYPE and bool(data) and data[0] in self._whole

    def items_axis(self, name: str) -> int:
        """The axis of an output along which its size depends on values; -1 where none does."""
        value = self._outputs.get(name)
        if value is None or value not in self._counted or value.shape is None:
            return 0 if value is not None and value in self._counted else -1
        free = [
            axis
            for axis, size in enumerate(value.shape)
            if isinstance(size, ir.SymbolicDim) and str(size.value) not in self._symbols
        ]
        named = [axis for axis in free if value.shape[axis].value is not None]  # type: ignore[union-attr]
        return (named or free or [-1])[0]

    def is_quantity(self, name: str) -> bool:
        """Whether whole numbers are rounded floats: pixels, not answers."""
        node = self._values[name].producer() if name in self._values else None
        while node is not None and node.op_type in (*_ROUNDING, "QuantizeLinear"):
            source = node.inputs[0]
            if source is None:
                return False
            if source not in self._whole:
                return True
            node = source.producer()
        return False

    def chosen_along(self, name: str, ndim: int) -> int | None:
        """The axis along which the largest entry is chosen from a value; None where none is."""
        for node in self._values[name].consumers() if name in self._values else ():
            if node.op_type == "ArgMax" or (node.op_type == "TopK" and node.attributes.get_int("largest", 1) != 0):
                axis = node.attributes.get_int("axis", -1 if node.op_type == "TopK" else 0)
                return axis + ndim if axis < 0 else axis
        return None

    def behind(self, output: ir.Value) -> list[str]:
        """The floats that an output rests on, in the graph's order; none for one that shows small changes itself."""
        if not self._decided(output):
            return []
        found: dict[str, None] = {}
        seen: set[ir.Value] = set()
        waiting = [output]
        while waiting:
            value = waiting.pop()
            node = value.producer()
            if value in seen or node is None:
                continue
            seen.add(value)
            for source in reversed(node.inputs if node.op_type not in ("Shape", "Size") else ()):
                if source is None or source in self._constant:
                    continue
                if self._decided(source):
                    waiting.append(source)
                elif source.producer() is not None:
                    found[source.name or ""] = None
        return list(found)

    def _decided(self, value: ir.Value) -> bool:
        node = value.producer()
        chosen = node is not None and node.op_type == "TopK"
        return chosen or value in self._whole or value in self._counted


def _is_whole(dtype: ir.DataType | None) -> bool:
    return dtype is not None and (dtype == ir.DataType.STRING or dtype.numpy().kind in _WHOLE_TYPES)
