"""The inputs of a model, and runs: samples joined along the batch axis of each input.

A *sample* is what a model takes at batch 1: an array for each input. The *batch axis* of an input is where the batch
stands among its sizes: the symbol that is called so, or the first axis's of the others (a recurrent state may have it
second). An input without one, a sampling rate or a table, is the same for all samples of a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from trp_onnx.errors import DataError
from trp_onnx.graph.session import Arrays
from trp_onnx.graph.sizes import LENGTH, Declared, channels_of, declared_sizes, describe_sizes, real_inputs
from trp_onnx.process.memory import check_room

_TYPES = {
    "tensor(float)": ir.DataType.FLOAT, "tensor(float16)": ir.DataType.FLOAT16, "tensor(double)": ir.DataType.DOUBLE,
    "tensor(int64)": ir.DataType.INT64, "tensor(int32)": ir.DataType.INT32, "tensor(int16)": ir.DataType.INT16,
    "tensor(int8)": ir.DataType.INT8, "tensor(uint8)": ir.DataType.UINT8, "tensor(uint16)": ir.DataType.UINT16,
    "tensor(uint32)": ir.DataType.UINT32, "tensor(uint64)": ir.DataType.UINT64, "tensor(bool)": ir.DataType.BOOL,
}  # fmt: skip

_BATCH_NAMES = ("n", "b", "bs")
"""Names of a batch that does not stand first."""


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: Its name.
        dtype: Its type; None where it is not declared.
        sizes: Declared sizes: a number, a symbol, or None for one that has neither; None where no rank is declared.
        axis: The batch axis; None where all samples of a run share the input.
    """

    name: str
    dtype: ir.DataType | None
    sizes: Declared | None
    axis: int | None

    @property
    def fixed(self) -> int | None:
        """How many samples a run takes, where that is declared."""
        size = self.sizes[self.axis] if self.sizes and self.axis is not None else None
        return size if isinstance(size, int) and size > 0 else None

    @property
    def whole(self) -> bool:
        """Whether it takes whole numbers."""
        return self.dtype is not None and (self.dtype.is_integer() or self.dtype == ir.DataType.BOOL)


Inputs = Mapping[str, InputSpec]


def inputs_of(model: ir.Model) -> dict[str, InputSpec]:
    """The inputs that samples have arrays for, by name."""
    values = {value.name or "": value for value in real_inputs(model)}
    declared = declared_sizes(model)
    batch = _batch_of(declared.values())
    found = {}
    for name, value in values.items():
        sizes = declared[name]
        if sizes is not None and len(sizes) > 2 and not isinstance(sizes[1], int) and sizes[1] != batch:
            sizes = (sizes[0], channels_of(value) or sizes[1], *sizes[2:])
        found[name] = InputSpec(name, value.dtype, sizes, _axis_of(sizes, batch))
    return found


def interface_of(session: Any) -> ir.Model:
    """The inputs of an `.ort` file, which only the runtime reads, as a model that has nothing else.

    Raises:
        DataError: An input is no array of numbers.
    """
    inputs = []
    for given in session.get_inputs():
        if given.type not in _TYPES:
            raise DataError(f"input '{given.name}' is of type {given.type}: it takes no arrays of numbers")
        inputs.append(ir.Value(name=given.name, shape=ir.Shape(given.shape), type=ir.TensorType(_TYPES[given.type])))
    return ir.Model(ir.Graph(inputs, [], nodes=[], opset_imports={"": 17}), ir_version=8)


def describe(inputs: Inputs) -> str:
    """A clause for messages, see `sizes.describe_sizes`."""
    return describe_sizes({name: spec.sizes for name, spec in inputs.items()})


def _batch_of(declared: Iterable[Declared | None]) -> int | str | None:
    """The size that counts samples: a symbol, a number, or None for a size that has no name."""
    shapes = [sizes for sizes in declared if sizes]
    symbols = [size for sizes in shapes for size in sizes if isinstance(size, str)]
    firsts = [sizes[0] for sizes in shapes if len(sizes) > 1] or [sizes[0] for sizes in shapes]
    for candidates in (
        (size for size in symbols if "batch" in size.lower()),
        (size for size in firsts if isinstance(size, str) and not LENGTH.fullmatch(size)),
        (size for size in symbols if size.lower() in _BATCH_NAMES),
    ):
        found = next(candidates, None)
        if found is not None:
            return found
    return next(iter(firsts), None)


def _axis_of(sizes: Declared | None, batch: int | str | None) -> int | None:
    """Where the batch stands among the sizes of one input."""
    if sizes is None:
        return 0
    if not sizes:
        return None
    if batch is not None and batch in sizes:
        return sizes.index(batch)
    if sizes[0] is None or (isinstance(sizes[0], str) and not LENGTH.fullmatch(sizes[0])):
        return 0
    unnamed = [axis for axis, size in enumerate(sizes) if size is None]
    return unnamed[0] if len(unnamed) == 1 and not isinstance(batch, int) else None


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Samples of equal shapes, joined along the batch axis of each input.

    Attributes:
        feeds: An array for each input, as a session takes them.
        count: Samples that count.
        filled: Samples that there are, where a batch of a declared size was filled up.
    """

    feeds: Arrays
    count: int
    filled: int | None = None

    def counted(self, outputs: Arrays) -> Arrays:
        """Outputs without those of the samples that only filled the batch up."""
        if self.filled in (None, self.count):
            return outputs
        return {n: value[: self.count] if value.shape[:1] == (self.filled,) else value for n, value in outputs.items()}


@dataclass(frozen=True)
class Samples:
    """Samples of a model, in the order in which they were drawn; neighbours of equal shapes are one run.

    Attributes:
        inputs: The model's.
        runs: One at least, none of them filled up.
    """

    inputs: Inputs
    runs: Sequence[Run]

    def __len__(self) -> int:
        return sum(run.count for run in self.runs)

    @property
    def bytes_each(self) -> int:
        """What one of them takes."""
        whole = sum(array.nbytes for run in self.runs for array in run.feeds.values())
        return max(1, whole // max(1, len(self)))

    def first(self, count: int) -> Samples:
        """At most so many of them."""
        found: list[Run] = []
        for run in self.runs:
            if count > 0:
                found.append(part_of(self.inputs, run, slice(0, count)))
                count -= run.count
        return Samples(self.inputs, found)

    def after(self, count: int) -> Samples:
        """All but the first so many."""
        found: list[Run] = []
        for run in self.runs:
            if run.count > count:
                found.append(part_of(self.inputs, run, slice(max(0, count), run.count)))
            count -= run.count
        return Samples(self.inputs, found)

    @property
    def longest(self) -> Run:
        """The run of most samples."""
        return max(self.runs, key=lambda run: run.count)

    def by_shape(self) -> list[Run]:
        """Those of equal shapes as one run, whatever their order."""
        return [run for run, _ in self.grouped()]

    def grouped(self) -> Iterator[tuple[Run, np.ndarray]]:
        """The same, with the places of the samples that each run holds, (b,)."""
        starts = np.cumsum([0, *(run.count for run in self.runs)])
        ordered = sorted(range(len(self.runs)), key=lambda place: self._shapes(self.runs[place].feeds))
        places = np.concatenate([np.arange(starts[place], starts[place + 1]) for place in ordered])
        done = 0
        for run in joined_runs(self.inputs, [self.runs[place] for place in ordered]):
            yield run, places[done : done + run.count]
            done += run.count

    def _shapes(self, feeds: Arrays) -> list[tuple[int, ...]]:
        """The shapes of one sample."""
        axes = {name: axis_in(self.inputs, name, array) for name, array in feeds.items()}
        return [tuple(n for axis, n in enumerate(array.shape) if axis != axes[name]) for name, array in feeds.items()]


def axis_in(inputs: Inputs, name: str, array: np.ndarray) -> int | None:
    """The batch axis of an array: of an input that nothing is known of the first."""
    return inputs[name].axis if name in inputs else 0 if array.ndim else None


def joined_runs(inputs: Inputs, runs: Iterable[Run]) -> Iterator[Run]:
    """Neighbours of equal shapes as one; where they differ a new run begins."""
    waiting: list[Run] = []
    for run in runs:
        if waiting and not _fit_together(inputs, waiting[-1].feeds, run.feeds):
            yield _join(inputs, waiting)
            waiting = []
        waiting.append(run)
    if waiting:
        yield _join(inputs, waiting)


def part_of(inputs: Inputs, run: Run, piece: slice) -> Run:
    """Some samples of a run."""
    start, stop, _ = piece.indices(run.count)
    if (start, stop) == (0, run.count):
        return run
    feeds = {}
    for name, array in run.feeds.items():
        axis = axis_in(inputs, name, array)
        feeds[name] = array if axis is None else array[(slice(None),) * axis + (slice(start, stop),)]
    return Run(feeds, stop - start)


def filled_run(inputs: Inputs, run: Run, size: int) -> Run:
    """A run with its last sample repeated until there are so many.

    Raises:
        DataError: They take more memory than there is.
    """
    missing = size - run.count
    if missing <= 0:
        return run
    each = sum(array.nbytes for array in run.feeds.values()) // max(1, run.count)
    check_room(size * each, f"a batch of {size} samples, as the model declares it,", DataError)
    feeds = {}
    for name, array in run.feeds.items():
        axis = axis_in(inputs, name, array)
        if axis is not None:
            last = array[(slice(None),) * axis + (slice(run.count - 1, run.count),)]
            array = np.concatenate([array, np.repeat(last, missing, axis=axis)], axis=axis)
        feeds[name] = array
    return Run(feeds, run.count, size)


def _fit_together(inputs: Inputs, one: Arrays, other: Arrays) -> bool:
    if one.keys() != other.keys():
        return False
    axes = [axis_in(inputs, name, array) for name, array in one.items()]
    if all(axis is None for axis in axes):
        return False
    for axis, a, b in zip(axes, one.values(), other.values(), strict=True):
        if a.ndim != b.ndim or a.dtype != b.dtype:
            return False
        if axis is None and not (a is b or np.array_equal(a, b)):
            return False
        if axis is not None and a.shape[:axis] + a.shape[axis + 1 :] != b.shape[:axis] + b.shape[axis + 1 :]:
            return False
    return True


def _join(inputs: Inputs, runs: list[Run]) -> Run:
    if len(runs) == 1:
        return runs[0]
    feeds = {}
    for name, array in runs[0].feeds.items():
        axis = axis_in(inputs, name, array)
        feeds[name] = array if axis is None else np.concatenate([run.feeds[name] for run in runs], axis=axis)
    return Run(feeds, sum(run.count for run in runs))
