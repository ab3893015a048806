"""A data set: samples with or without labels, and how they become what a model takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from trp_onnx.data.columns import X, misfit
from trp_onnx.data.layout import Reading, read_array, read_files
from trp_onnx.data.preprocessing import Preprocessing
from trp_onnx.data.stores import Store, Subset, number_in_file
from trp_onnx.errors import DataError, UsageError
from trp_onnx.graph.batching import Batching
from trp_onnx.graph.inputs import Inputs, InputSpec, Run, axis_in, joined_runs
from trp_onnx.progress import note

_ORDERS = {"nhwc": "height, width, channels", "nchw": "channels, height, width"}

Change = Callable[[np.ndarray, slice], np.ndarray]


@dataclass(frozen=True)
class Dataset:
    """Samples with or without labels.

    Attributes:
        source: Where they came from, for messages.
        store: The samples as they are stored.
        preprocessing: How the images among them, or the samples of a model with one input, become inputs.
        inputs: What the model takes; empty where no model is known.
    """

    source: str
    store: Store = field(repr=False)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    inputs: Inputs = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.store)

    @property
    def labels(self) -> np.ndarray | None:
        """One entry a sample, (n, ...): numbers of classes as int64, all else as it is stored; None without any."""
        return self.store.labels

    @property
    def holds_images(self) -> bool:
        """Whether samples are 8-bit images."""
        some = self.store.sample(self._preprocessed() or "")
        return self.store.image_files or (some is not None and some.ndim == 4 and some.dtype == np.uint8)

    def bound(self, inputs: Inputs) -> Dataset:
        """The same samples for a model that takes these inputs, see `graph.inputs.inputs_of`.

        Raises:
            DataError: An input has no array, or one that it does not take.
            UsageError: The preprocessing is for none of several inputs.
        """
        found = replace(self, inputs=inputs, store=self.store.bound(inputs))
        name = found._preprocessed()
        some = None if name is None else found.store.sample(name)
        if name is None or some is None:
            return found
        reading = found._reading(name, some)
        if reading.turns and not found.holds_images:
            shape = "x".join(map(str, some.shape[1:]))
            note(
                f"the samples of '{Path(self.source).name}' are {shape}, read as {_ORDERS[reading.stored or '']}; "
                f"they are turned to {_ORDERS[reading.taken]}, as the model takes them"
            )
        return found

    def subset(self, indices: np.ndarray) -> Dataset:
        """Chosen samples as a data set of their own; indices (b,)."""
        return replace(self, store=Subset(self.store, indices))

    def take(self, indices: np.ndarray, change: Change | None = None) -> list[Run]:
        """Chosen samples, as the model takes them, in their order: one run where their sizes are equal.

        Args:
            indices: (b,).
            change: Applied to the stored images, (k, H, W, C), before preprocessing; which of `indices` they are.

        Raises:
            DataError: A sample cannot be read, holds NaN or infinity, or does not fit its input.
        """
        runs, done = [], 0
        for run in joined_runs(self.inputs, self.store.take(indices)):
            rows = slice(done, done + run.count)
            feeds = {
                name: self._ready(name, array, indices[rows], rows, change) for name, array in run.feeds.items()
            }  # fmt: skip
            runs.append(Run(feeds, run.count))
            done += run.count
        return list(joined_runs(self.inputs, runs))

    def runs(self, batching: Batching) -> Iterator[tuple[Run, slice]]:
        """All samples in order, as a session takes them, and which of them each run holds.

        Raises:
            DataError: See `take`.
        """
        done = 0
        for piece in batching.pieces(len(self)):
            for run in batching.split(self.take(np.arange(piece.start, piece.stop))):
                yield run, slice(done, done + run.count)
                done += run.count

    def _ready(
        self, name: str, stored: np.ndarray, indices: np.ndarray, rows: slice, change: Change | None
    ) -> np.ndarray:  # fmt: skip
        """The samples of one input as the model takes them."""
        spec = self.inputs.get(name)
        if stored.dtype.kind == "f":
            self._check_finite(name, stored, indices)
        if name == self._preprocessed():
            if stored.dtype.kind not in "uifb":
                raise DataError(f"'{self.source}': {name} has type {stored.dtype}, numbers are needed")
            stored = self._preprocess(name, stored, rows, change)
        return stored if spec is None else self._fitted(spec, stored)

    def _preprocess(self, name: str, stored: np.ndarray, rows: slice, change: Change | None) -> np.ndarray:
        reading, spec = self._reading(name, stored), self.inputs.get(name)
        if spec is not None and self.preprocessing.leaves_alone and not reading.turns and change is None:
            return stored  # whole numbers, and floats with more digits than float32
        images = reading.stored is not None
        if reading.stored == "nchw":  # preprocessing sees NHWC
            stored = stored.transpose(0, 2, 3, 1)
        if change is not None and images:
            stored = change(stored, rows)
        return self.preprocessing(stored, reading.taken, images=images)

    def _preprocessed(self) -> str | None:
        """The input that preprocessing is for: the one that is named, the only one, or the only one of float images."""
        given, inputs = self.preprocessing.input, self.inputs
        if not inputs:
            return X
        if given is not None and given not in inputs:
            raise UsageError(f"preprocessing: input = '{given}' is no input of the model: {', '.join(inputs)}")
        if given is not None or len(inputs) == 1:
            return given or next(iter(inputs))
        images = [name for name, spec in inputs.items() if len(spec.sizes or ()) == 4 and not spec.whole]
        if len(images) == 1:
            return images[0]
        if not self.preprocessing.leaves_alone:
            raise UsageError(
                f'preprocessing: the model has inputs {", ".join(inputs)}: say which one it is for by input = "NAME" '
                "in the file of --preprocess"
            )
        return None

    def _reading(self, name: str, stored: np.ndarray) -> Reading:
        """Where the channels of the samples stand, and where they shall."""
        spec, layout = self.inputs.get(name), self.preprocessing.layout
        like = None
        if spec is not None and spec.sizes:
            like = tuple(size if isinstance(size, int) else None for size in spec.sizes[1:])
        if self.store.image_files:
            return read_files(like, layout)
        resized = self.preprocessing.resize is not None or self.preprocessing.crop is not None
        return read_array(stored.shape[1:], like, layout, integers=stored.dtype == np.uint8, resized=resized)

    def _check_finite(self, name: str, stored: np.ndarray, indices: np.ndarray) -> None:
        axis = axis_in(self.inputs, name, stored)
        others = tuple(other for other in range(stored.ndim) if other != axis)
        finite = np.isfinite(stored).all(axis=others)
        if not np.all(finite):
            which = indices[0] if axis is None else indices[int(np.argmin(finite))]
            number = number_in_file(self.store, int(which))
            raise DataError(f"sample {number} of '{self.source}' holds NaN or infinity in '{name}'")

    def _fitted(self, spec: InputSpec, array: np.ndarray) -> np.ndarray:
        """An array in the type of its input, where that loses nothing but float digits."""
        if spec.sizes is not None and not (
            len(spec.sizes) == array.ndim
            and all(
                axis == spec.axis or not isinstance(want, int) or want == have
                for axis, (want, have) in enumerate(zip(spec.sizes, array.shape, strict=True))
            )
        ):
            some = self.store.sample(spec.name)
            raise misfit(self.inputs, spec.name, array.shape if some is None else some.shape, self.source)
        return as_type(array, spec, f"'{self.source}', input '{spec.name}'")


def as_type(array: np.ndarray, spec: InputSpec, what: str) -> np.ndarray:
    """An array in the type of an input.

    Raises:
        DataError: That would lose more than float digits.
    """
    import onnx_ir as ir

    if spec.dtype == ir.DataType.STRING:
        if array.dtype.kind not in "US":
            raise DataError(f"{what} has type {array.dtype}, the model takes strings")
        return array.astype(str).astype(object)
    kind = spec.dtype or ir.DataType.FLOAT
    dtype = kind.numpy()
    if array.dtype.kind not in "uifb":
        raise DataError(f"{what} has type {array.dtype}, numbers are needed: the model takes {dtype}")
    if not spec.whole:
        try:
            with np.errstate(over="raise"):
                return np.ascontiguousarray(array, dtype) if array.ndim else array.astype(dtype)
        except FloatingPointError as error:
            raise DataError(f"{what} has values that are too large for {dtype}, which the model takes") from error
    if array.dtype.kind == "f" and not np.array_equal(array, np.trunc(array)):
        raise DataError(f"{what} has fractions (type {array.dtype}), the model takes whole numbers ({dtype})")
    low, high = (0, 1) if kind == ir.DataType.BOOL else (kind.min, kind.max)
    if array.size and (array.min().item() < low or array.max().item() > high):  # NumPy would round the limits
        raise DataError(f"{what} has values from {array.min()} to {array.max()}, the model takes {dtype}")
    return array.astype(dtype)
