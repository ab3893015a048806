"""Metrics: what is counted of outputs, in which unit, and which direction is better.

A metric holds the outputs of a file against the labels of the data, or against the outputs of the original. The
built-in ones (see `built_in`) have names. One of a user's own is

a function   f(outputs, labels) -> number, or f(outputs, original) -> number, of all samples at once
an object    with update(outputs, reference), called batch by batch, and result() -> number; or a class of such

where `outputs` and `original` are dictionaries, an array for each output. What all samples give is joined along the
first axis; it is a list of arrays, one a run, where sizes differ. Unit and direction are attributes of the function or
object, which the decorator `metric` sets. By default a metric has no unit, higher is better, and it wants labels,
unless its second parameter is called `original`.
"""

from __future__ import annotations

import copy
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from trp_onnx.data.functions import is_function, load_function, users_code
from trp_onnx.errors import ModelError, UsageError
from trp_onnx.evaluation.outputs import Output, joined
from trp_onnx.graph.session import Arrays
from trp_onnx.printable import printable
from trp_onnx.process.memory import check_room
from trp_onnx.rows import Headlined
from trp_onnx.schema import type_of

T = TypeVar("T")

Reference = Literal["labels", "original"]

PER_CENT = "%"


@dataclass(frozen=True)
class Setting:
    """What a metric may know before the first batch.

    Attributes:
        kinds: What each output is.
        samples: How many there will be.
        offset: Outputs before the first class.
        data: What the samples are called in messages.
    """

    kinds: Mapping[str, Output]
    samples: int
    offset: int = 0
    data: str = "the data"


class Running(ABC):
    """A metric at work on one file."""

    @abstractmethod
    def update(self, outputs: Arrays, reference: Any, count: int) -> None:
        """Take a batch: outputs, the labels or the original's outputs, and how many samples it has."""

    @abstractmethod
    def result(self) -> float:
        """The value for all batches so far."""

    @property
    def output(self) -> str:
        """The output that it speaks of, or the worst of several; empty where that cannot be told."""
        return ""

    @property
    def each(self) -> np.ndarray | None:
        """What each sample comes to, (n,), where the value is the mean of that."""
        return None


@dataclass(frozen=True)
class Metric:
    """One way to count how good outputs are.

    Attributes:
        name: For people and for `--metric`.
        start: Begins to measure one file.
        unit: "%" of values from 0 to 100, "dB", or any other; empty for none.
        higher_is_better: Its direction.
        reference: What it wants beside the outputs: "labels", or those of the "original".
        ruinous: A loss above this is worth a warning; None where no number says so.
    """

    name: str
    start: Callable[[Setting], Running] = field(repr=False)
    unit: str = ""
    higher_is_better: bool = True
    reference: Reference = "labels"
    ruinous: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.start):
            raise UsageError(
                f"the metric '{self.name}': start is a function of a Setting, not {type(self.start).__name__}"
            )

    def lost(self, before: float, after: float) -> float:
        """What is lost between two values, in the metric's unit: points where that is "%"; negative for a gain."""
        if before == after:
            return 0.0
        worse = before - after if self.higher_is_better else after - before
        return math.inf if math.isnan(worse) else round(worse, 9)  # a limit that is met by counts is met exactly

    @property
    def counted(self) -> str:
        """What a loss is counted in, for people: "points of top-1"."""
        return f"points of {self.name}" if self.unit == PER_CENT else printable(f"{self.unit} of {self.name}".strip())

    def text(self, value: float) -> str:
        """A value with its unit."""
        return f"{value:.2f}%" if self.unit == PER_CENT else printable(f"{value:.4g} {self.unit}".strip())


def metric(
    *,
    unit: str = "",
    higher_is_better: bool = True,
    reference: Reference | None = None,
    name: str | None = None,
    ruinous: float | None = None,
) -> Callable[[T], T]:
    """Decorate a function, or a class with `update` and `result`, that measures outputs (see the module).

    Args:
        unit: "%" of values from 0 to 100, "dB", or any other.
        higher_is_better: Its direction.
        reference: "labels" or "original"; by default as the second parameter is called.
        name: What it is called in reports; its own name by default.
        ruinous: A loss above this is worth a warning; 5 for "%", none otherwise, where not given.
    """
    given = {"unit": unit, "higher_is_better": higher_is_better, "reference": reference, "name": name}

    def decorate(function: T) -> T:
        for key, value in (given | {"ruinous": ruinous}).items():
            if value is not None:
                setattr(function, key, value)
        return function

    return decorate


Asked = str | Metric | Callable[..., Any] | object
"""What users may ask for, see `as_metric`."""


def as_metric(asked: Asked, built_in: Mapping[str, Metric]) -> Metric:
    """What a user asks for: a metric, its name, "pkg.module:function", a function, or an object that streams.

    Raises:
        UsageError: There is no metric of that name, or what is given is none.
        DataError: The function cannot be imported.
    """
    if isinstance(asked, Metric):
        return asked
    if isinstance(asked, str):
        if asked in built_in:
            return built_in[asked]
        if not is_function(asked):
            raise UsageError(f"--metric is {', '.join(built_in)} or pkg.module:function, not '{asked}'")
        loaded = load_function(asked, "metric")
        return loaded if isinstance(loaded, Metric) else _own(loaded, asked.partition(":")[2])
    return _own(asked, str(getattr(asked, "__name__", type(asked).__name__)))


def _own(asked: Any, name: str) -> Metric:
    """A user's own."""
    with users_code(f"the metric '{name}' failed", UsageError):
        return _described(asked, name)


def _described(asked: Any, name: str) -> Metric:
    """A user's own, by its attributes."""
    streams = all(callable(getattr(asked, method, None)) for method in ("update", "result"))
    if not streams and not callable(asked):
        raise UsageError(f"the metric '{name}' is neither callable nor has it update() and result()")
    name = str(getattr(asked, "name", name))
    unit, higher = getattr(asked, "unit", ""), getattr(asked, "higher_is_better", True)
    reference = getattr(asked, "reference", None) or _reference(asked.update if streams else asked)
    ruinous = getattr(asked, "ruinous", 5.0 if unit == PER_CENT else None)
    if reference not in ("labels", "original") or not isinstance(unit, str) or not isinstance(higher, bool):
        raise UsageError(
            f"the metric '{name}': reference is 'labels' or 'original', unit a text, higher_is_better True or False"
        )
    if not isinstance(ruinous, int | float | None):
        raise UsageError(f"the metric '{name}': ruinous is a number, not {type(ruinous).__name__}")
    if streams:
        return Metric(name, lambda setting: _Streamed(name, _fresh(asked, name)), unit, higher, reference, ruinous)
    return Metric(name, lambda setting: _AtOnce(name, asked, setting), unit, higher, reference, ruinous)


def _reference(function: Callable[..., Any]) -> Reference:
    """What the second parameter is called."""
    try:
        parameters = [name for name in inspect.signature(function).parameters if name != "self"]
    except (TypeError, ValueError):  # of a builtin
        return "labels"
    return "original" if parameters[1:2] == ["original"] else "labels"


def _fresh(asked: Any, name: str) -> Any:
    """An object that has seen nothing."""
    if isinstance(asked, type):
        return _called(name, asked)
    with users_code(f"the metric '{name}' cannot be copied for each file, give its class instead", UsageError):
        return copy.deepcopy(asked)


def _called(name: str, call: Callable[..., Any], *given: Any) -> Any:
    """What a user's function returns.

    Raises:
        UsageError: It fails.
    """
    with users_code(f"the metric '{name}' failed", UsageError):
        return call(*given)


def _value(name: str, found: Any) -> float:
    """A user's result as a number.

    Raises:
        UsageError: It is none.
    """
    try:
        array = np.asarray(found)
        if array.size == 1 and array.dtype.kind in "uifb":
            return float(array.reshape(()))
    except (TypeError, ValueError):
        pass
    raise UsageError(f"the metric '{name}' returned {type_of(found)}, not a number")


class _Streamed(Running):
    """An object of a user's."""

    def __init__(self, name: str, own: Any) -> None:
        self._name, self._own = name, own

    def update(self, outputs: Arrays, reference: Any, count: int) -> None:
        _called(self._name, self._own.update, outputs, reference)

    def result(self) -> float:
        return _value(self._name, _called(self._name, self._own.result))


class _AtOnce(Running):
    """A function of a user's: all outputs are held until the end."""

    def __init__(self, name: str, function: Callable[..., Any], setting: Setting) -> None:
        self._name, self._function, self._setting = name, function, setting
        self._outputs: list[Arrays] = []
        self._references: list[Any] = []
        self._counts: list[int] = []

    def update(self, outputs: Arrays, reference: Any, count: int) -> None:
        if not self._outputs:
            others = reference.values() if isinstance(reference, dict) else ()
            size = sum(array.nbytes for array in (*outputs.values(), *others))
            check_room(
                2 * size * math.ceil(self._setting.samples / max(1, count)),  # in runs, and joined
                f"the metric '{self._name}', a function of all outputs at once (one with update() and result() "
                "takes them batch by batch),",
                ModelError,
            )
        self._outputs.append(outputs)
        self._references.append(reference)
        self._counts.append(count)

    def result(self) -> float:
        outputs, first = joined(self._outputs, self._counts), self._references[0] if self._references else None
        reference: Any = first
        if isinstance(first, dict):
            reference = joined(self._references, self._counts)
        elif first is not None:
            reference = np.concatenate(self._references)
        return _value(self._name, _called(self._name, self._function, outputs, reference))


@dataclass(frozen=True, repr=False)
class Score(Headlined):
    """The value of a metric.

    Attributes:
        metric: What was counted.
        value: Its value, in `unit`.
        samples: How many samples it is of.
        data: Where those come from.
        output: The output that it speaks of, or of several the worst; empty where that cannot be told.
        each: What each sample comes to, (n,), where the value is the mean of that.
        notes: What a reader should know.
    """

    metric: Metric
    value: float
    samples: int
    data: str = ""
    output: str = ""
    each: np.ndarray | None = field(default=None, compare=False)
    notes: tuple[str, ...] = ()

    def headline(self) -> list[Sequence[str]]:
        """Value, and on what."""
        return [
            (printable(self.metric.name), "samples", "data"),
            (self.metric.text(self.value), str(self.samples), printable(Path(self.data).name)),
        ]

    def with_notes(self, notes: Sequence[str]) -> Score:
        """With what was noted on the way."""
        return replace(self, notes=tuple(notes))

    @property
    def unit(self) -> str:
        """Of the value."""
        return self.metric.unit

    @property
    def higher_is_better(self) -> bool:
        """The metric's direction."""
        return self.metric.higher_is_better

    @property
    def standard_error(self) -> float | None:
        """Of the value, where it is a mean over samples."""
        return _standard_error(self.each)

    def __str__(self) -> str:
        return f"{self.metric.text(self.value)} {self.metric.name} of {self.samples} samples"

    @property
    def on(self) -> str:
        """What it was measured on, for people."""
        return f"{self.samples} samples of {Path(self.data).name}" if self.samples > 1 else self.data

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON; a value that is no finite number is null."""
        return {
            "metric": self.metric.name, "unit": self.unit, "higher_is_better": self.higher_is_better,
            "value": finite(self.value), "standard_error": self.standard_error, "samples": self.samples,
            "data": self.data, "output": self.output,
        }  # fmt: skip


@dataclass(frozen=True, repr=False)
class Scores(Headlined):
    """Two files on the same samples, by one metric.

    Attributes:
        before: The original; by a metric that compares with it, what it scores against itself.
        after: The other file.
        allowed: What may be lost, in the metric's unit, where a limit chose the file.
    """

    before: Score
    after: Score
    allowed: float | None = None

    def headline(self) -> list[Sequence[str]]:
        """Both values, and how they compare."""
        before, after = (self.metric.text(score.value) for score in (self.before, self.after))
        return [
            (f"{printable(self.metric.name)} of {self.after.samples}", "after", "change"),
            (before, after, self.change),
        ]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know."""
        return self.after.notes

    def with_notes(self, notes: Sequence[str]) -> Scores:
        """With what was noted on the way."""
        return replace(self, after=self.after.with_notes(notes))

    @property
    def metric(self) -> Metric:
        """What was counted."""
        return self.after.metric

    @property
    def lost(self) -> float:
        """What the other file loses, in the metric's unit; negative where it gains."""
        return self.metric.lost(self.before.value, self.after.value)

    @property
    def standard_error(self) -> float | None:
        """Of what is lost, from the differences of the samples, where both values are means over them."""
        before, after = self.before.each, self.after.each
        if before is None or after is None or before.shape != after.shape:
            return None
        return _standard_error(before - after)

    @property
    def change(self) -> str:
        """From the original to the other file, with its standard error: "-0.41 ± 0.12 points"."""
        change = self.after.value - self.before.value if self.lost else 0.0
        error = self.standard_error
        unit = "points" if self.metric.unit == PER_CENT else printable(self.metric.unit)
        return f"{_signed(change)}{f' ± {error:.2g}' if error else ''} {unit}".rstrip()

    def __str__(self) -> str:
        before, after = (self.metric.text(score.value) for score in (self.before, self.after))
        return f"{self.metric.name} {before} -> {after} ({self.change}) of {self.after.samples} samples"

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON; values that are no finite numbers are null."""
        document = self.after.to_dict()
        del document["value"], document["standard_error"]
        document |= {"before": finite(self.before.value), "after": finite(self.after.value)}
        document |= {"lost": finite(self.lost), "standard_error": self.standard_error}
        return document if self.allowed is None else document | {"allowed": self.allowed}


def finite(value: float) -> float | None:
    """A number that JSON can hold."""
    return value if math.isfinite(value) else None


def _signed(value: float) -> str:
    return f"{value:+.2f}" if abs(value) >= 0.01 or value == 0 else f"{value:+.2g}"


def _standard_error(each: np.ndarray | None) -> float | None:
    """Of the mean of values, (n,)."""
    if each is None or len(each) < 2 or not np.isfinite(each).all():
        return None
    return float(each.std(ddof=1) / math.sqrt(len(each)))
