"""What an output is: the one place that decides it, for planning, quantisation, training and the report.

It is read from the values that the original network gives, and from its graph:

PROBABILITIES  along one axis they are not negative and sum to 1 at every place: of images (N, C), of tokens (N, T, C),
               of pixels (N, C, H, W), whichever operators made them
SCORES         logarithms of such (LogSoftmax); what an ArgMax or a TopK chooses from, along its axis; or one score a
               class for each sample, (N, C) beside axes of size 1, where the data has labels that fit
UNIT_VECTORS   along one axis their length is 1 at every place: embeddings
DISCRETE       whole numbers, booleans, strings: answers that are right or wrong
ITEMS          as many as the values make them (NonZero, NonMaxSuppression): compared as a set
VALUES         all else: coordinates, maps, features, and logits that no label and no softmax speaks for

(N, C) alone makes no class scores: ten landmarks, an embedding of 64 and a regression look the same.

A sequence or a map has been taken apart to arrays (see `session.flat`), and an output whose shape is another in each
run is the list of what the runs gave (see `joined`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.session import Arrays

Value = np.ndarray | list[np.ndarray]
"""An output on all samples; a list of one array a run where the runs differ in shape."""

_LOOKED_AT = 32
"""Samples on which it is seen what an output is."""

_DECADES = 0.5
"""How much more unequal in scale the entries of another axis are than those of the usual one, to be the channels."""


class OutputKind(Enum):
    """See the module."""

    SCORES = "scores"
    PROBABILITIES = "probabilities"
    UNIT_VECTORS = "unit vectors"
    DISCRETE = "discrete"
    ITEMS = "items"
    VALUES = "values"


@dataclass(frozen=True)
class Output:
    """One output.

    Attributes:
        kind: What its values are.
        axis: Of SCORES, PROBABILITIES and UNIT_VECTORS the axis of classes or components, of ITEMS the axis along which
            their number varies, of VALUES the axis of channels; -1 where there is none.
    """

    kind: OutputKind
    axis: int = -1


def joined(runs: Iterable[Arrays], samples: Sequence[int] | None = None) -> dict[str, Value]:
    """The outputs of several runs, one after the other along the first axis.

    Args:
        runs: What each of them gave.
        samples: How many samples each of them took. An output with as many entries in one run and others in another,
            which is counted by values and not by samples, stays a list, as do those that differ behind the first axis.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for run in runs:
        for name, array in run.items():
            parts.setdefault(name, []).append(np.atleast_1d(array))

    def fits(arrays: Sequence[np.ndarray]) -> bool:
        lengths = [len(array) for array in arrays]
        alike = samples is None or len({*lengths}) == 1 or lengths == list(samples)
        return alike and len({array.shape[1:] for array in arrays}) == 1

    return {name: np.concatenate(arrays) if fits(arrays) else arrays for name, arrays in parts.items()}


def runs_of(value: Value) -> list[np.ndarray]:
    """An output as a list of arrays, of one where the runs are joined."""
    return value if isinstance(value, list) else [value]


def is_float(array: np.ndarray) -> bool:
    """Whether it holds floats, bfloat16 and its like included."""
    return array.dtype.kind in "fc" or (array.dtype.kind == "V" and "float" in array.dtype.name)


def floats(array: np.ndarray) -> np.ndarray:
    """As float64 where it is that, else as float32, in which the squares of half precision do not overflow."""
    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag], axis=-1)
    return np.asarray(array, np.float64 if array.dtype == np.float64 else np.float32)


def output_kinds(model: ir.Model | None, expected: Mapping[str, Value], classes: int = 0) -> dict[str, Output]:
    """What each output is.

    Args:
        model: The network, whose graph is asked what it chooses from and what it counts; None to go by values alone.
        expected: What the original gives, by name: outputs, or values within the network (see `measurable`).
        classes: How many classes the labels of the data name, see `classes_of`; 0 without labels.
    """
    graph = _Graph(model) if model is not None else None
    found = {name: _kind(name, value, graph) for name, value in expected.items()}
    named = scores_of(expected, classes) if classes else None
    if named is not None and found[named].kind is OutputKind.VALUES:
        found[named] = Output(OutputKind.SCORES, _one_axis(expected[named]))
    return found


def classes_of(labels: np.ndarray | None, offset: int = 0) -> int:
    """How many scores a network has at least whose classes these labels name; 0 without labels."""
    return 0 if labels is None or not len(labels) else int(labels.max()) + 1 + offset


def scores_of(outputs: Mapping[str, Value], classes: int = 0) -> str | None:
    """The output that labels speak of: (N, C) beside axes of size 1, no unit vectors; None where there is none.

    Of several, one that holds probabilities, then one that has as many scores as classes, then one that has more, then
    the first.
    """
    fitting = {}
    for name, value in outputs.items():
        if isinstance(value, list) or not is_float(value) or _one_axis(value) < 0:
            continue
        kind, size = _kind(name, value, None).kind, value.shape[_one_axis(value)]
        if kind is not OutputKind.UNIT_VECTORS and size >= classes:
            fitting[name] = (kind is not OutputKind.PROBABILITIES, size != classes)
    return min(fitting, key=lambda name: fitting[name]) if fitting else None


def holds_classes(value: Value) -> bool:
    """Whether it has the shape of class scores, (N, C) beside axes of size 1."""
    return _one_axis(value) > 0


def _one_axis(value: Value) -> int:
    """The only axis behind the first that is longer than 1; -1 where there are several, or none."""
    longer = [axis for axis in range(1, value.ndim) if value.shape[axis] > 1] if isinstance(value, np.ndarray) else []
    return longer[0] if len(longer) == 1 else -1


@np.errstate(over="ignore", invalid="ignore")  # squares beyond float32 are infinite
def _kind(name: str, value: Value, graph: _Graph | None) -> Output:
    first = np.atleast_1d(runs_of(value)[0])
    items = graph.items_axis(name) if graph is not None else -1
    if isinstance(value, list) or items >= 0:
        return Output(OutputKind.ITEMS, items if items >= 0 else _varying(runs_of(value)))
    if not is_float(first):
        if graph is not None and graph.is_quantity(name) and first.dtype.kind in "iu" and np.ptp(first) > 1:
            return Output(OutputKind.VALUES, channel_axis(value))
        return Output(OutputKind.DISCRETE)
    z = floats(first[:_LOOKED_AT])
    if not z.size or np.isnan(z).any():
        return Output(OutputKind.VALUES)
    tolerance = 1e-3 if first.dtype.itemsize >= 4 else 1e-2
    axes = [axis for axis in dict.fromkeys((z.ndim - 1, *range(1, z.ndim))) if axis > 0 and z.shape[axis] > 1]
    for axis in axes:
        if z.min() >= 0 and _all_one(z.sum(axis), tolerance):
            return Output(OutputKind.PROBABILITIES, axis)
    for axis in axes:
        if z.max() <= tolerance and _all_one(np.exp(z).sum(axis), tolerance):
            return Output(OutputKind.SCORES, axis)
    chosen = graph.chosen_along(name, z.ndim) if graph is not None else None
    if chosen is not None and z.shape[chosen] > 1 and not (z.min() >= 0 and z.max() <= 1):  # a sigmoid's are no logits
        return Output(OutputKind.SCORES, chosen)
    for axis in axes:
        if _all_one(np.square(z).sum(axis), tolerance):
            return Output(OutputKind.UNIT_VECTORS, axis)
    return Output(OutputKind.VALUES, channel_axis(z))


def _all_one(sums: np.ndarray, tolerance: float) -> bool:
    return bool(np.abs(sums - 1).max() <= tolerance)


def _varying(runs: Sequence[np.ndarray]) -> int:
    """The first axis along which runs differ."""
    differing = (
        axis for axis, sizes in enumerate(zip(*(run.shape for run in runs), strict=False)) if len({*sizes}) > 1
    )
    return next(differing, 0)


def channel_axis(values: np.ndarray) -> int:
    """The axis of channels: the second of maps, (N, C, H, W), the last of all others, (N, C) and (N, T, C).

    Unless entries of another one differ far more in scale: boxes in pixels stand on it beside scores between 0 and 1,
    as in (N, 4 + classes, boxes), or in maps with their channels last. -1 of what has one axis.
    """
    if values.ndim < 2:
        return -1
    few, usual = floats(values[:_LOOKED_AT]), 1 if values.ndim >= 4 else values.ndim - 1
    few = np.where(np.isinf(few), 0, few)
    if not few.size or np.isnan(few).any():
        return usual

    def unevenness(axis: int) -> float:
        """Decades by which the energies of its entries differ."""
        others = tuple(other for other in range(few.ndim) if other != axis)
        energy = few.var(axis=others, dtype=np.float64)
        return float(np.log10(np.maximum(energy, 1e-6 * energy.max() + 1e-300)).std())

    found = {axis: unevenness(axis) for axis in range(1, values.ndim)}
    most = max(found, key=lambda axis: found[axis])
    return most if found[most] > found[usual] + _DECADES else usual


# --- what stands behind them ------------------------------------------------------------------------------------------

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
    graph = _Graph(model)
    found: dict[str, None] = {}
    for value in model.graph.outputs:
        found |= dict.fromkeys(graph.behind(value) or [value.name or ""])
    return tuple(found)


class _Graph:
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
