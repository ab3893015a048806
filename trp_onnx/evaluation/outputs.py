"""What an output is: the one place that decides it, for metrics, planning, quantisation, training and the report.

A user may say it (`read_said`). What is not said is read from the labels of the data, the values that the original
network gives, and its graph:

PROBABILITIES  along one axis they are not negative and sum to 1 at every place: of images (N, C), of tokens (N, T, C),
               of pixels (N, C, H, W), whichever operators made them
SCORES         logarithms of such (LogSoftmax); what an ArgMax or a TopK chooses from, along its axis; or one score a
               class at each place that has a label: (N, C) and labels (N,), (N, T, C) and (N, T), (N, C, H, W) and
               (N, H, W), beside axes of size 1
UNIT_VECTORS   along one axis their length is 1 at every place: embeddings
DISCRETE       whole numbers, booleans, strings: answers that are right or wrong
ITEMS          as many as the values make them (NonZero, NonMaxSuppression): compared as a set
BOXES          boxes in pixels beside scores between 0 and 1, as detectors give them: (N, 4 + classes, boxes)
VALUES         all else: coordinates, maps, features, and logits that no label and no softmax speaks for

(N, C) alone makes no class scores: ten landmarks, an embedding of 64 and a regression look the same.

A sequence or a map has been taken apart to arrays (see `session.flat`), and an output whose shape is another in each
run is the list of what the runs gave (see `joined`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
import onnx_ir as ir

from trp_onnx.errors import UsageError
from trp_onnx.evaluation.origins import Origins
from trp_onnx.graph.session import Arrays
from trp_onnx.schema import brief

Value = np.ndarray | list[np.ndarray]
"""An output on all samples; a list of one array a run where the runs differ in shape."""

_LOOKED_AT = 32
"""Samples on which it is seen what an output is."""

_DECADES, _MANY_DECADES = 0.5, 1.0
"""How much more unequal in scale the entries of another axis are than those of the usual one, to be the channels, and
how unequal they are where some are boxes and others scores."""

_SAID = "as you said"

_LINE = re.compile(r"(?P<name>.+?):(?P<kind>[a-z-]+)(:(?P<axis>-?[0-9]{1,3}))?", re.DOTALL)
"""How a user says it; a name may hold colons."""

_UNLABELLED = 255
"""Label of a pixel that counts for nothing, beside the negative ones."""


class OutputKind(Enum):
    """See the module."""

    SCORES = "scores"
    PROBABILITIES = "probabilities"
    UNIT_VECTORS = "unit vectors"
    DISCRETE = "discrete"
    ITEMS = "items"
    BOXES = "boxes"
    VALUES = "values"


NAMES: Mapping[str, tuple[OutputKind, int]] = {
    **{kind.value.replace(" ", "-"): (kind, -1) for kind in OutputKind},
    "maps": (OutputKind.SCORES, 1),
    "tokens": (OutputKind.SCORES, -1),
}
"""What users call kinds, and the axis of each where they name none: maps are scores of each pixel, (N, C, H, W)."""


@dataclass(frozen=True)
class Output:
    """One output.

    Attributes:
        kind: What its values are.
        axis: Of SCORES, PROBABILITIES and UNIT_VECTORS the axis of classes or components, of ITEMS the axis along which
            their number varies, of BOXES and VALUES the axis of channels; -1 where there is none.
        why: How that is known.
        labelled: Whether the labels of the data speak of it.
    """

    kind: OutputKind
    axis: int = -1
    why: str = field(default="", compare=False)
    labelled: bool = field(default=False, compare=False)

    @property
    def chooses(self) -> bool:
        """Whether its answer is the largest entry along the axis."""
        return self.kind in (OutputKind.SCORES, OutputKind.PROBABILITIES)

    @property
    def has_channels(self) -> bool:
        """Whether its error is counted channel by channel, each beside its own spread."""
        return self.kind in (OutputKind.VALUES, OutputKind.BOXES)

    def __str__(self) -> str:
        """For people."""
        axis = f" along axis {self.axis}" if self.axis > 0 else ""
        return self.kind.value + axis + f" ({self.why})" * bool(self.why)


@dataclass(frozen=True)
class ClassLabels:
    """What labels that name classes say of the output that they speak of.

    Attributes:
        classes: Scores that it has along its axis of classes, at least.
        places: Shape of the labels of one sample: () for one label, (T,) for tokens, (H, W) for maps.
    """

    classes: int
    places: tuple[int, ...] = ()

    @classmethod
    def of(cls, labels: np.ndarray | None, offset: int = 0) -> ClassLabels | None:
        """What these labels, (n, ...), say; None where there are none, or where they are no whole numbers.

        Args:
            labels: Of the data.
            offset: Outputs before the first class.
        """
        if labels is None or not labels.size or labels.dtype.kind not in "iub":
            return None
        return cls(max(0, int(labels.max(where=counted(labels), initial=0))) + 1 + offset, labels.shape[1:])

    def axis_in(self, value: Value) -> int:
        """The axis of an output along which one score a class stands at each place; -1 where there is none."""
        if isinstance(value, list) or value.ndim < 2:
            return -1
        usual = 1 if value.ndim >= 4 else value.ndim - 1
        axes: list[int] = list(dict.fromkeys((usual, *range(1, value.ndim))))
        for axis in axes:
            others = [size for other, size in enumerate(value.shape) if other not in (0, axis) and size > 1]
            if value.shape[axis] > 1 and others == [size for size in self.places if size > 1]:
                return axis
        return -1


def counted(labels: np.ndarray) -> np.ndarray:
    """Which labels count, (n, ...): of several a sample those that are neither negative nor 255."""
    return np.ones(labels.shape, bool) if labels.ndim < 2 else (labels >= 0) & (labels != _UNLABELLED)


@dataclass(frozen=True)
class Told:
    """What is known of outputs beside their values and the graph.

    Attributes:
        said: What a user said they are, by name.
        labels: What the labels of the data say; None without labels that name classes.
    """

    said: Mapping[str, Output] = field(default_factory=dict)
    labels: ClassLabels | None = None


def read_said(said: Iterable[str] | Mapping[str, str]) -> dict[str, Output]:
    """What a user says of outputs: "NAME:KIND" or "NAME:KIND:AXIS", or a mapping from names to "KIND" or "KIND:AXIS".

    Raises:
        UsageError: It is not of this form.
    """
    if isinstance(said, Mapping):
        lines = [f"{name}:{kind}" for name, kind in said.items()]
    elif isinstance(said, str) or not isinstance(said, Iterable):
        lines = [said]
    else:
        lines = list(said)
    return dict(_read_line(line) for line in lines)


def _read_line(line: object) -> tuple[str, Output]:
    found = _LINE.fullmatch(line) if isinstance(line, str) else None
    if found is None or found["kind"] not in NAMES:
        kinds = ", ".join(NAMES)
        raise UsageError(f"--output-kind is NAME:KIND or NAME:KIND:AXIS, KIND one of {kinds}; not {brief(line)}")
    kind, usual = NAMES[found["kind"]]
    return found["name"], Output(kind, usual if found["axis"] is None else int(found["axis"]), _SAID)


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


def output_kinds(model: ir.Model | None, expected: Mapping[str, Value], told: Told | None = None) -> dict[str, Output]:
    """What each output is.

    Args:
        model: The network, whose graph is asked what it chooses from and what it counts; None to go by values alone.
        expected: What the original gives, by name: outputs, or values within the network (see `origins.measurable`).
        told: What is known beside; nothing where not given.

    Raises:
        UsageError: A user speaks of an output that the network does not have, or of an axis that it does not have.
    """
    told = told or Told()
    graph = Origins(model) if model is not None else None
    found = {name: _said(name, value, told.said) or _kind(name, value, graph) for name, value in expected.items()}
    if model is not None:
        _check_names(told.said, [value.name or "" for value in model.graph.outputs], expected)
    named = None if told.labels is None else _named_by(told.labels, expected, found)
    if named is not None and told.labels is not None:
        found[named] = _labelled(found[named], expected[named], told.labels)
    return found


def _said(name: str, value: Value, said: Mapping[str, Output]) -> Output | None:
    """What a user said, its axis counted from the front."""
    output = said.get(name) or said.get(name.partition("[")[0])
    if output is None or isinstance(value, list):
        return output
    if not -value.ndim <= output.axis < value.ndim:
        raise UsageError(f"--output-kind: output '{name}' has {value.ndim} axes, so none of number {output.axis}")
    if output.chooses and not is_float(value):
        raise UsageError(f"--output-kind: output '{name}' is of {value.dtype}, which are no {output.kind.value}")
    return replace(output, axis=output.axis % value.ndim if value.ndim > 1 else -1)


def _check_names(said: Mapping[str, Output], names: Sequence[str], expected: Mapping[str, Value]) -> None:
    for name in said:
        if name not in names and name not in expected:
            raise UsageError(f"--output-kind: the model has no output '{name}'; it has {', '.join(names)}")


def labelled(kinds: Mapping[str, Output]) -> str | None:
    """The output that the labels of the data speak of; None where there is none."""
    return next((name for name, output in kinds.items() if output.labelled), None)


def _named_by(labels: ClassLabels, expected: Mapping[str, Value], kinds: Mapping[str, Output]) -> str | None:
    """The output that labels speak of: one score a class at each of their places, no unit vectors.

    Of several, one that has enough scores, one that is known to be scores, one of probabilities, one that has as many
    scores as classes, then the first.
    """
    fitting: dict[str, tuple[bool, ...]] = {}
    for name, value in expected.items():
        axis, output = labels.axis_in(value), kinds[name]
        if isinstance(value, list) or axis < 0 or not is_float(value):
            continue
        if output.kind in (OutputKind.UNIT_VECTORS, OutputKind.ITEMS) or (output.chooses and output.axis != axis):
            continue
        size = value.shape[axis]
        known = output.kind is OutputKind.PROBABILITIES or output.why == _SAID
        fitting[name] = (size < labels.classes, not known, size != labels.classes)
    return min(fitting, key=lambda name: fitting[name]) if fitting else None


def _labelled(output: Output, value: Value, labels: ClassLabels) -> Output:
    axis = labels.axis_in(value)
    if output.chooses or runs_of(value)[0].shape[axis] < labels.classes:  # too few: who reads the labels says so
        return replace(output, axis=axis, labelled=True)
    return Output(OutputKind.SCORES, axis, "the labels name its classes", labelled=True)


@np.errstate(over="ignore", invalid="ignore")  # squares beyond float32 are infinite
def _kind(name: str, value: Value, graph: Origins | None) -> Output:
    first = np.atleast_1d(runs_of(value)[0])
    items = graph.items_axis(name) if graph is not None else -1
    if isinstance(value, list) or items >= 0:
        axis = items if items >= 0 else _varying(runs_of(value))
        return Output(OutputKind.ITEMS, axis, "values decide on its size")
    if not is_float(first):
        if graph is not None and graph.is_quantity(name) and first.dtype.kind in "iu" and np.ptp(first) > 1:
            return Output(OutputKind.VALUES, channel_axis(value), "rounded floats")
        return Output(OutputKind.DISCRETE, why="no floats")
    z = floats(first[:_LOOKED_AT])
    if not z.size or np.isnan(z).any():
        return Output(OutputKind.VALUES)
    tolerance = 1e-3 if first.dtype.itemsize >= 4 else 1e-2
    axes = [axis for axis in dict.fromkeys((z.ndim - 1, *range(1, z.ndim))) if axis > 0 and z.shape[axis] > 1]
    for axis in axes:
        if z.min() >= 0 and _all_one(z.sum(axis), tolerance):
            return Output(OutputKind.PROBABILITIES, axis, "they sum to 1")
    for axis in axes:
        if z.max() <= tolerance and _all_one(np.exp(z).sum(axis), tolerance):
            return Output(OutputKind.SCORES, axis, "their exponentials sum to 1")
    chosen = graph.chosen_along(name, z.ndim) if graph is not None else None
    if chosen is not None and z.shape[chosen] > 1 and not (z.min() >= 0 and z.max() <= 1):  # a sigmoid's are no logits
        return Output(OutputKind.SCORES, chosen, "the network takes the largest")
    for axis in axes:
        if _all_one(np.square(z).sum(axis), tolerance):
            return Output(OutputKind.UNIT_VECTORS, axis, "their length is 1")
    axis = channel_axis(z)
    if z.ndim == 3 and _holds_boxes(z, axis):
        return Output(OutputKind.BOXES, axis, "some channels are as large as pixels, others between 0 and 1")
    return Output(OutputKind.VALUES, axis)


def _holds_boxes(z: np.ndarray, axis: int) -> bool:
    """Whether some channels hold probabilities and at least four are far larger."""
    others = tuple(other for other in range(z.ndim) if other != axis)
    low, high = z.min(axis=others), z.max(axis=others)
    return bool(((low >= 0) & (high <= 1)).any() and (high > 10).sum() >= 4 and _unevenness(z, axis) > _MANY_DECADES)


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

    found = {axis: _unevenness(few, axis) for axis in range(1, values.ndim)}
    most = max(found, key=lambda axis: found[axis])
    return most if found[most] > found[usual] + _DECADES else usual


@np.errstate(over="ignore", invalid="ignore")  # squares beyond float32 are infinite
def _unevenness(values: np.ndarray, axis: int) -> float:
    """Decades by which the energies of the entries of an axis differ."""
    others = tuple(other for other in range(values.ndim) if other != axis)
    energy = values.var(axis=others, dtype=np.float64)
    return float(np.log10(np.maximum(energy, 1e-6 * energy.max() + 1e-300)).std())
