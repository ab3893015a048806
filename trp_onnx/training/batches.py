"""The batches of a training run: shuffled, augmented, cut into micro-batches, ready before they are asked for.

What comes out depends on seed, epoch and step alone, never on what was drawn before or on the number of
workers: a run that goes on from a checkpoint sees the very same samples.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from trp_onnx.data import Augmentation, Dataset, Preprocessing, open_data
from trp_onnx.data.columns import X
from trp_onnx.data.dataset import Change
from trp_onnx.data.functions import is_function, load_function
from trp_onnx.data.stores import ArrayStore, plain_labels
from trp_onnx.errors import DataError, TrpOnnxError
from trp_onnx.graph.inputs import Inputs, InputSpec, Run, Samples
from trp_onnx.training.labels import joined, stacked
from trp_onnx.training.options import TrainingOptions

T = TypeVar("T")


@dataclass(frozen=True)
class DataSource:
    """Where the samples come from.

    Attributes:
        name: Path of a file or folder, or "pkg.module:function".
        digest: To notice other contents: of a file's bytes, of a folder's names and sizes; empty for a function.
        preprocessing: How its samples become inputs.
        inputs: The model's, by name.
        left_out: Places of samples that are not looked at.
    """

    name: str
    digest: str
    preprocessing: Preprocessing
    inputs: dict[str, InputSpec]
    left_out: tuple[int, ...] = ()


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one forward pass, which are equal in shape.

    Attributes:
        run: The samples, as a session takes them.
        labels: (b, ...), or None.
        part: b / B, its part of the step's batch.
    """

    run: Run
    labels: np.ndarray | None
    part: float


def _take(
    dataset: Dataset, labels: np.ndarray | None, indices: np.ndarray, batch: int, change: Change | None = None
) -> list[MicroBatch]:  # fmt: skip
    """Some samples of a batch of so many, as many at once as are equal in shape."""
    found = []
    for run, which in Samples(dataset.inputs, dataset.take(indices, change)).grouped():
        own = None if labels is None else stacked(labels[indices[which]])
        feeds = {name: np.asarray(array, order="C") for name, array in run.feeds.items()}  # as they can be bound
        found.append(MicroBatch(replace(run, feeds=feeds), own, run.count / batch))
    return found


class Batches:
    """Batches of a data set in memory or of image files; the validation part is the end of one shuffle."""

    def __init__(
        self, dataset: Dataset, *, batch: int, micro_batch: int, validation: float, seed: int,
        augmentation: Augmentation,
    ) -> None:  # fmt: skip
        """Split.

        Raises:
            DataError: A part is empty, or the batch is larger than the training part.
        """
        order = np.random.default_rng([seed, 0x5B]).permutation(len(dataset))
        held_out = round(len(dataset) * validation)
        self.training, self.held_out = np.sort(order[held_out:]), np.sort(order[:held_out])
        if not len(self.training) or not held_out:
            raise DataError(
                f"'{dataset.source}' has {len(dataset)} samples: with a validation part of {validation:g} there are "
                f"{len(self.training)} to train on and {held_out} to validate with; both must hold some"
            )
        if batch > len(self.training):
            raise DataError(
                f"the batch of {batch} is larger than the training part of '{dataset.source}', "
                f"{len(self.training)} samples: give a smaller --batch"
            )
        self.steps = len(self.training) // batch
        self._dataset = dataset
        self._batch = batch
        self._micro = micro_batch
        self._seed = seed
        self._augmentation = augmentation

    def epoch(self, epoch: int, first: int, rank: int, size: int) -> Iterator[list[MicroBatch]]:
        """This rank's micro-batches of each step of an epoch, from step `first` on."""
        order = np.random.default_rng([self._seed, epoch]).permutation(self.training)
        for step in range(first, self.steps):
            chosen = order[step * self._batch : (step + 1) * self._batch]
            rng = np.random.default_rng([self._seed, epoch, step])
            choices = self._augmentation.draw(rng, len(chosen))
            pieces = np.array_split(np.arange(len(chosen)), -(-len(chosen) // self._micro))
            mine = []
            for piece in pieces[rank::size]:

                def change(images: np.ndarray, rows: slice, choices: Any = choices, piece: Any = piece) -> np.ndarray:
                    return self._augmentation(images, choices, piece[rows])

                mine += self._take(chosen[piece], len(chosen), change)
            yield mine

    def _take(self, indices: np.ndarray, batch: int, change: Change | None = None) -> list[MicroBatch]:
        return _take(self._dataset, self._dataset.labels, indices, batch, change)

    def validation(self, size: int, rank: int, ranks: int) -> Iterator[MicroBatch]:
        """This rank's part of the validation samples, as they are."""
        for start in range(rank * size, len(self.held_out), ranks * size):
            yield from self._take(self.held_out[start : start + size], len(self.held_out))

    @property
    def micro_batches(self) -> int:
        """Forward passes of a step."""
        return -(-self._batch // self._micro)

    def samples(self, count: int) -> Samples:
        """Some samples of the training part as they are, at most `count`."""
        chosen = np.random.default_rng([self._seed, 0x5A]).permutation(self.training)[:count]
        return Samples(self._dataset.inputs, self._dataset.take(chosen))

    @property
    def labels(self) -> np.ndarray | None:
        """All labels, or None."""
        return self._dataset.labels


class CallableBatches:
    """Batches that a function of the user's yields: `function(split, epoch)` -> (samples, labels) or samples.

    Samples are an array, or a mapping of an array for each input, as the model takes them. `split` is "train" or
    "validation". The same arguments must give the same batches.
    """

    def __init__(self, reference: str, inputs: Inputs, *, micro_batch: int) -> None:
        """Import it, and count one epoch.

        Raises:
            DataError: It cannot be imported, is no function, yields nothing, or what does not fit the inputs.
        """
        self._reference, self._inputs = reference, inputs
        self._function = load_function(reference)
        self._micro = micro_batch
        sizes = []
        for samples, _ in self._batches("train", 0):
            samples.take(np.arange(len(samples)))  # refuses what does not fit, before the training
            sizes.append(len(samples))
        self.steps = len(sizes)
        if not self.steps or not any(True for _ in self._batches("validation", 0)):
            raise DataError(f'\'{reference}\' yields no batch for one of the splits "train" and "validation"')
        self.micro_batches = -(-max(sizes) // micro_batch)

    def samples(self, count: int) -> Samples:
        """The first samples of the first epoch, at most `count`."""
        found: list[Run] = []
        for samples, _ in self._batches("train", 0):
            found += samples.take(np.arange(min(len(samples), count)))
            count -= len(samples)
            if count <= 0:
                break
        return Samples(self._inputs, found)

    @property
    def labels(self) -> np.ndarray | None:
        """Those of the validation batches, or None."""
        found = [labels for _, labels in self._batches("validation", 0) if labels is not None]
        return joined(found) if found else None

    def _batches(self, split: str, epoch: int) -> Iterator[tuple[Dataset, np.ndarray | None]]:
        try:
            for item in self._function(split, epoch):
                samples, labels = item if isinstance(item, tuple) else (item, None)
                given = self._open(samples)
                own = None if labels is None else plain_labels(np.asarray(labels))
                if own is not None and len(own) != len(given):
                    raise DataError(f"'{self._reference}' yields {len(given)} samples with {len(own)} labels")
                yield given, own
        except TrpOnnxError:
            raise
        except Exception as error:
            raise DataError(f"'{self._reference}' failed: {type(error).__name__}: {error}") from error

    def _open(self, samples: Any) -> Dataset:
        arrays = samples if isinstance(samples, Mapping) else {X: samples}
        store = ArrayStore({name: np.asarray(array) for name, array in arrays.items()}, self._reference)
        return Dataset(self._reference, store).bound(self._inputs)

    def epoch(self, epoch: int, first: int, rank: int, size: int) -> Iterator[list[MicroBatch]]:
        """This rank's micro-batches of each step of an epoch, from step `first` on."""
        for step, (samples, labels) in enumerate(self._batches("train", epoch)):
            if step < first or step >= self.steps:
                continue
            count = len(samples)
            pieces = np.array_split(np.arange(count), -(-count // self._micro))
            yield [micro for piece in pieces[rank::size] for micro in _take(samples, labels, piece, count)]

    def validation(self, size: int, rank: int, ranks: int) -> Iterator[MicroBatch]:
        """This rank's part of the validation batches, as they are yielded."""
        for index, (samples, labels) in enumerate(self._batches("validation", 0)):
            if index % ranks == rank:
                yield from _take(samples, labels, np.arange(len(samples)), len(samples))


def open_batches(source: DataSource, options: TrainingOptions) -> Batches | CallableBatches:
    """The batches of a data source.

    Raises:
        DataError: It cannot be read, or has too few samples.
    """
    if is_function(source.name):
        return CallableBatches(source.name, source.inputs, micro_batch=options.micro_batch)
    dataset = open_data(source.name, source.preprocessing).bound(source.inputs)
    if source.left_out:
        dataset = dataset.subset(np.delete(np.arange(len(dataset)), source.left_out))
    return Batches(
        dataset, batch=options.batch, micro_batch=options.micro_batch, validation=options.validation,
        seed=options.seed, augmentation=Augmentation(options.augment),
    )  # fmt: skip


def prefetch(items: Iterable[T], depth: int = 4) -> Iterator[T]:
    """Compute items in a thread, `depth` ahead; what fails there is raised here."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(entry: tuple[bool, Any]) -> None:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return
            except queue.Full:
                continue

    def fill() -> None:
        try:
            for item in items:
                put((True, item))
                if stop.is_set():
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    threading.Thread(target=fill, daemon=True).start()
    try:
        while True:
            more, item = ready.get()
            if not more:
                if item is not None:
                    raise item
                return
            yield item
    finally:
        stop.set()
