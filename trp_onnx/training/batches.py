"""The batches of a training run: shuffled, augmented, cut into micro-batches, ready before they are asked for.

What comes out depends on seed, epoch and step alone, never on what was drawn before or on the number of
workers: a run that goes on from a checkpoint sees the very same samples.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from trp_onnx.data import Augmentation, Dataset, Preprocessing, open_data
from trp_onnx.data.dataset import Change
from trp_onnx.data.functions import is_function, load_function
from trp_onnx.errors import DataError, TrpOnnxError
from trp_onnx.graph.inputs import InputSpec
from trp_onnx.training.options import TrainingOptions

T = TypeVar("T")


@dataclass(frozen=True)
class DataSource:
    """Where the samples come from.

    Attributes:
        name: Path of a file or folder, or "pkg.module:function".
        digest: To notice other contents: of a file's bytes, of a folder's names and sizes; empty for a function.
        preprocessing: How its samples become inputs.
        sizes: What the model's one input declares, see `InputSpec`.
        input: Its name.
    """

    name: str
    digest: str
    preprocessing: Preprocessing
    sizes: tuple[int | str | None, ...] | None = None
    input: str = "x"

    @property
    def inputs(self) -> dict[str, InputSpec]:
        """The input, which is float32 and counts samples first."""
        return {self.input: InputSpec(self.input, None, self.sizes, 0)}


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one forward pass.

    Attributes:
        x: (b, ...) float32 model input.
        y: (b,) int64 labels, or None.
        part: b / B, its part of the step's batch.
    """

    x: np.ndarray
    y: np.ndarray | None
    part: float


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

                mine.append(self._micro_batch(chosen[piece], len(piece) / len(chosen), change))
            yield mine

    def _micro_batch(self, indices: np.ndarray, part: float, change: Change | None = None) -> MicroBatch:
        runs = self._dataset.take(indices, change)
        if len(runs) > 1:
            raise DataError(f"the samples of '{self._dataset.source}' differ in size: give --resize and --crop")
        (x,) = runs[0].feeds.values()
        labels = self._dataset.labels
        return MicroBatch(np.ascontiguousarray(x), None if labels is None else labels[indices], part)

    def validation(self, size: int, rank: int, ranks: int) -> Iterator[MicroBatch]:
        """This rank's part of the validation samples, as they are."""
        for start in range(rank * size, len(self.held_out), ranks * size):
            yield self._micro_batch(self.held_out[start : start + size], 1.0)

    @property
    def micro_batches(self) -> int:
        """Forward passes of a step."""
        return -(-self._batch // self._micro)

    def samples(self, count: int) -> np.ndarray:
        """Some samples of the training part as they are, model inputs: (b, ...) with b at most `count`."""
        chosen = np.random.default_rng([self._seed, 0x5A]).permutation(self.training)[:count]
        return self._micro_batch(chosen, 1.0).x

    @property
    def labels(self) -> np.ndarray | None:
        """All labels, or None."""
        return self._dataset.labels


class CallableBatches:
    """Batches that a function of the user's yields: `function(split, epoch)` -> (x, y) or x, model inputs.

    `split` is "train" or "validation". The same arguments must give the same batches.
    """

    def __init__(self, reference: str, *, micro_batch: int) -> None:
        """Import it, and count one epoch.

        Raises:
            DataError: It cannot be imported, is no function, or yields nothing.
        """
        self._reference = reference
        self._function = load_function(reference)
        self._micro = micro_batch
        sizes = [len(x) for x, _ in self._run("train", 0)]
        self.steps = len(sizes)
        if not self.steps or not any(True for _ in self._run("validation", 0)):
            raise DataError(f'\'{reference}\' yields no batch for one of the splits "train" and "validation"')
        self.micro_batches = -(-max(sizes) // micro_batch)

    def samples(self, count: int) -> np.ndarray:
        """The first samples of the first epoch: (b, ...) with b at most `count`."""
        found: list[np.ndarray] = []
        for x, _ in self._run("train", 0):
            found.append(x)
            if sum(map(len, found)) >= count:
                break
        return np.concatenate(found)[:count]

    @property
    def labels(self) -> np.ndarray | None:
        """Those of the validation batches, or None."""
        found = [y for _, y in self._run("validation", 0) if y is not None]
        return np.concatenate(found) if found else None

    def _run(self, split: str, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        try:
            for item in self._function(split, epoch):
                x, y = item if isinstance(item, tuple) else (item, None)
                if not np.isfinite(x).all():
                    raise DataError(f"a batch of '{self._reference}' holds NaN or infinity")
                yield np.ascontiguousarray(x, np.float32), None if y is None else np.asarray(y, np.int64).reshape(-1)
        except TrpOnnxError:
            raise
        except Exception as error:
            raise DataError(f"'{self._reference}' failed: {type(error).__name__}: {error}") from error

    def epoch(self, epoch: int, first: int, rank: int, size: int) -> Iterator[list[MicroBatch]]:
        """This rank's micro-batches of each step of an epoch, from step `first` on."""
        for step, (x, y) in enumerate(self._run("train", epoch)):
            if step < first or step >= self.steps:
                continue
            pieces = np.array_split(np.arange(len(x)), -(-len(x) // self._micro))
            yield [MicroBatch(x[p], None if y is None else y[p], len(p) / len(x)) for p in pieces[rank::size]]

    def validation(self, size: int, rank: int, ranks: int) -> Iterator[MicroBatch]:
        """This rank's part of the validation batches, as they are yielded."""
        for index, (x, y) in enumerate(self._run("validation", 0)):
            if index % ranks == rank:
                yield MicroBatch(x, y, 1.0)


def open_batches(source: DataSource, options: TrainingOptions) -> Batches | CallableBatches:
    """The batches of a data source.

    Raises:
        DataError: It cannot be read, or has too few samples.
    """
    if is_function(source.name):
        return CallableBatches(source.name, micro_batch=options.micro_batch)
    return Batches(
        open_data(source.name, source.preprocessing).bound(source.inputs), batch=options.batch,
        micro_batch=options.micro_batch, validation=options.validation, seed=options.seed,
        augmentation=Augmentation(options.augment),
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
