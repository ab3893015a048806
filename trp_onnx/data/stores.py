"""Where samples are: in arrays, or one by one in files and in a spool.

All are stores, which give chosen samples as runs. A store is opened before a model is known, and bound to the model's
inputs then: which arrays they take, and what counts samples, follows from them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trp_onnx.data.columns import LABELS, Columns, X, columns_of, named
from trp_onnx.data.images import read_image
from trp_onnx.data.npz import npz_shapes, read_npz
from trp_onnx.data.spool import Spool
from trp_onnx.errors import DataError
from trp_onnx.graph.inputs import Inputs, Run
from trp_onnx.graph.session import Arrays


class Store(Protocol):
    """Samples as they are stored.

    Attributes:
        labels: (n, ...), or None.
        image_files: Whether the samples are image files.
    """

    @property
    def labels(self) -> np.ndarray | None: ...  # noqa: D102
    @property
    def image_files(self) -> bool: ...  # noqa: D102

    def __len__(self) -> int: ...

    def bound(self, inputs: Inputs) -> Store:
        """The same samples for a model with these inputs."""

    def take(self, indices: np.ndarray) -> Iterator[Run]:
        """Chosen samples, (b,), in their order, of equal shapes in each run."""

    def sample(self, name: str) -> np.ndarray | None:
        """Some samples of an input as they are stored, (n, ...), where that takes no reading."""


def _labels_in(arrays: Mapping[str, np.ndarray], inputs: Inputs) -> np.ndarray | None:
    return next((arrays[name] for name in LABELS if name in arrays and name not in inputs), None)


class ArrayStore:
    """Samples in arrays, in memory or mapped."""

    image_files = False

    def __init__(self, arrays: Arrays, source: str, inputs: Inputs | None = None) -> None:
        """Find the samples.

        Raises:
            DataError: An input has no array, or one that it does not take; the numbers of samples or labels differ.
        """
        inputs = inputs or {}
        self.arrays, self._source = arrays, source
        self.labels = _labels_in(arrays, inputs)
        taken = named(inputs, arrays, source)
        self._columns = columns_of(inputs, {name: arrays[array] for name, array in taken.items()}, source)
        if self.labels is not None and (inputs or X in arrays):
            self.labels = plain_labels(self.labels)
            if np.ndim(self.labels) == 0 or len(self.labels) != len(self):
                have = len(self.labels) if np.ndim(self.labels) else 1
                raise DataError(f"'{source}': {len(self)} samples but {have} labels")

    def __len__(self) -> int:
        return self._columns.count

    def bound(self, inputs: Inputs) -> ArrayStore:
        """See `Store`."""
        return ArrayStore(self.arrays, self._source, inputs)

    def take(self, indices: np.ndarray) -> Iterator[Run]:
        """See `Store`."""
        return self._columns.take(indices)

    def sample(self, name: str) -> np.ndarray | None:
        """See `Store`."""
        return self._columns.arrays[name][0] if name in self._columns.arrays else None


class Items(Protocol):
    """Mappings of arrays that are read one by one, each of one sample or a few."""

    def __len__(self) -> int: ...

    def name(self, place: int) -> str:
        """What messages call one item."""

    def label(self, place: int, inputs: Inputs) -> np.ndarray | None:
        """Of one item."""

    def shapes(self, place: int) -> Mapping[str, tuple[int, ...]] | None:
        """Of one item's arrays; None of what is one sample whatever its shape."""

    def read(self, place: int) -> Arrays:
        """One item."""


class ImageFiles:
    """Images, with the number of their class."""

    def __init__(self, paths: Sequence[Path], classes: Sequence[int] | None) -> None:
        """`classes`: One an image, or None."""
        self._paths, self._classes = paths, classes

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, place: int) -> str:
        """See `Items`."""
        return self._paths[place].name

    def label(self, place: int, inputs: Inputs) -> np.ndarray | None:
        """See `Items`."""
        return None if self._classes is None else np.asarray(self._classes[place])

    def shapes(self, place: int) -> None:
        """See `Items`."""
        return

    def read(self, place: int) -> Arrays:
        """See `Items`."""
        return {X: read_image(self._paths[place])}


class NpzFiles:
    """A folder of .npz files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """`paths`: In order."""
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, place: int) -> str:
        """See `Items`."""
        return self._paths[place].name

    def label(self, place: int, inputs: Inputs) -> np.ndarray | None:
        """See `Items`."""
        return _labels_in(read_npz(self._paths[place], LABELS), inputs)

    def shapes(self, place: int) -> dict[str, tuple[int, ...]]:
        """See `Items`."""
        return npz_shapes(self._paths[place])

    def read(self, place: int) -> Arrays:
        """See `Items`."""
        return read_npz(self._paths[place])


class Spooled:
    """What a generator gave."""

    def __init__(self, spool: Spool, labels: Sequence[np.ndarray | None]) -> None:
        """`labels`: One an item."""
        self._spool, self._labels = spool, labels

    def __len__(self) -> int:
        return len(self._spool)

    def name(self, place: int) -> str:
        """See `Items`."""
        return f"item {place}"

    def label(self, place: int, inputs: Inputs) -> np.ndarray | None:
        """See `Items`."""
        return self._labels[place]

    def shapes(self, place: int) -> dict[str, tuple[int, ...]]:
        """See `Items`."""
        return self._spool.shapes(place)

    def read(self, place: int) -> Arrays:
        """See `Items`."""
        return self._spool.read(place)


class ItemStore:
    """Samples in items, whose sizes may differ."""

    def __init__(self, items: Items, source: str, inputs: Inputs | None = None) -> None:
        """Count the samples.

        Raises:
            DataError: An item has no array for an input, or one that it does not take; some have labels, some not.
        """
        self._items, self._source, self._inputs = items, source, inputs or {}
        self._counts = [self._count(place) for place in range(len(items))]
        self._starts = np.concatenate([[0], np.cumsum(self._counts)])
        self.labels = self._joined_labels()
        self._last: tuple[int, Columns] | None = None

    @property
    def image_files(self) -> bool:
        """See `Store`."""
        return isinstance(self._items, ImageFiles)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def bound(self, inputs: Inputs) -> ItemStore:
        """See `Store`."""
        return ItemStore(self._items, self._source, inputs)

    def take(self, indices: np.ndarray) -> Iterator[Run]:
        """See `Store`."""
        places = np.searchsorted(self._starts, indices, side="right") - 1
        for place, stretch in itertools.groupby(zip(places, indices, strict=True), key=lambda pair: int(pair[0])):
            chosen = np.array([index for _, index in stretch]) - self._starts[place]
            yield from self._item(place).take(chosen)

    def sample(self, name: str) -> np.ndarray | None:
        """See `Store`."""
        return None

    def _item(self, place: int) -> Columns:
        if self._last is None or self._last[0] != place:
            self._last = place, self._columns(place, self._items.read(place))
        return self._last[1]

    def _called(self, place: int) -> str:
        """What messages call an item."""
        return f"{self._source}, {self._items.name(place)}"

    def _columns(self, place: int, arrays: Arrays) -> Columns:
        source = self._called(place)
        taken = named(self._inputs, arrays, source)
        return columns_of(
            self._inputs, {name: arrays[array] for name, array in taken.items()}, source, single=True
        )  # fmt: skip

    def _count(self, place: int) -> int:
        shapes = self._items.shapes(place) if self._inputs else None
        if shapes is None:
            return 1
        like = {name: np.broadcast_to(np.zeros((), bool), shape) for name, shape in shapes.items()}
        return self._columns(place, like).count

    def _joined_labels(self) -> np.ndarray | None:
        given = [self._items.label(place, self._inputs) for place in range(len(self._items))]
        there = [label for label in given if label is not None]
        if not there:
            return None
        if len(there) < len(given):
            place = next(place for place, label in enumerate(given) if label is None)
            raise DataError(f"'{self._called(place)}' has no labels, {len(there)} others have: all must, or none")
        found: list[Any] = []
        for place, (label, count) in enumerate(zip(there, self._counts, strict=True)):
            if count > 1 and (label.ndim == 0 or len(label) != count):
                raise DataError(f"'{self._called(place)}' has {count} samples with labels of shape {label.shape}")
            found += list(label) if count > 1 else [label[0] if label.ndim and len(label) == 1 else label]
        if len({np.shape(label) for label in found}) == 1:
            try:
                return plain_labels(np.stack(found))
            except TypeError as error:  # numbers and dates
                kinds = " and ".join(sorted({str(np.asarray(label).dtype) for label in found}))
                raise DataError(
                    f"the labels of '{self._source}' are of types that do not go together: {kinds}"
                ) from error
        ragged = np.empty(len(found), object)
        ragged[:] = found
        return ragged


class Subset:
    """Some samples of a store."""

    def __init__(self, store: Store, indices: np.ndarray) -> None:
        """`indices`: (b,)."""
        self.store, self.indices = store, indices

    @property
    def left_out(self) -> tuple[int, ...]:
        """Places of the others in the store."""
        return tuple(np.delete(np.arange(len(self.store)), self.indices).tolist())

    @property
    def labels(self) -> np.ndarray | None:
        """See `Store`."""
        return None if self.store.labels is None else self.store.labels[self.indices]

    @property
    def image_files(self) -> bool:
        """See `Store`."""
        return self.store.image_files

    def __len__(self) -> int:
        return len(self.indices)

    def bound(self, inputs: Inputs) -> Subset:
        """See `Store`."""
        return Subset(self.store.bound(inputs), self.indices)

    def take(self, indices: np.ndarray) -> Iterator[Run]:
        """See `Store`."""
        return self.store.take(self.indices[indices])

    def sample(self, name: str) -> np.ndarray | None:
        """See `Store`."""
        return self.store.sample(name)


def number_in_file(store: Store, index: int) -> int:
    """The number of a sample where it is stored, whatever subset it is in."""
    while isinstance(store, Subset):
        index, store = int(store.indices[index]), store.store
    return index


def plain_labels(labels: np.ndarray) -> np.ndarray:
    """Numbers of classes as (n,) int64; all other labels as they are."""
    if labels.ndim and labels.size == len(labels):
        labels = labels.reshape(-1)
    small = labels.dtype.kind in "ui" and (not labels.size or labels.max() <= np.iinfo(np.int64).max)
    return labels.astype(np.int64) if small and labels.ndim == 1 else labels


def as_arrays(store: Store) -> Arrays | None:
    """The arrays of a store that is in memory or mapped, labels included; None of one that is read sample by sample."""
    if isinstance(store, ArrayStore):
        return store.arrays
    arrays = as_arrays(store.store) if isinstance(store, Subset) else None
    if arrays is None or not isinstance(store, Subset):
        return None
    return {name: array[store.indices] if np.ndim(array) else array for name, array in arrays.items()}
