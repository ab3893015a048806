"""Data sets: an .npz file, a folder of images with one subfolder a class, or CIFAR-10's own files.

npz      `x`: samples (images NHWC or NCHW, or any array the model takes), `y`: labels (optional)
folder   root/<class>/<image>; classes are numbered in the order of their sorted names
CIFAR    the folder with `data_batch_1.bin` (or `data_batch_1`) ..., or one such file (see `cifar`)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

import numpy as np

from trp_onnx.data.cifar import cifar_files, read_cifar
from trp_onnx.data.images import images_in, read_image
from trp_onnx.data.layout import Like, Reading, read_array, read_files
from trp_onnx.data.npz import read_npz
from trp_onnx.data.preprocessing import Preprocessing
from trp_onnx.errors import DataError
from trp_onnx.progress import note

_ORDERS = {"nhwc": "height, width, channels", "nchw": "channels, height, width"}
_LARGEST_LABEL = 2**31 - 1


@dataclass(frozen=True)
class Dataset:
    """Samples with or without labels, preprocessed batch by batch.

    Attributes:
        source: Where it came from, for messages.
        samples: (n, ...) array, or the paths of n image files.
        labels: (n,) int64, or None.
        preprocessing: Applied to each batch.
        like: Shape of a sample as the model takes it, None where a size is free; None where no model is known.
        whole: Whether the model takes integers, to which those that are stored go in as they are.
    """

    source: str
    samples: np.ndarray | tuple[Path, ...] = field(repr=False)
    labels: np.ndarray | None = field(repr=False)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    like: Like | None = None
    whole: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def holds_images(self) -> bool:
        """Whether samples are 8-bit images."""
        return isinstance(self.samples, tuple) or (self.samples.ndim == 4 and self.samples.dtype == np.uint8)

    def bound(self, like: Like | None, *, whole: bool = False) -> Dataset:
        """The same samples for a model that takes such ones; see the attributes."""
        found = replace(self, like=like, whole=whole)
        reading = found.reading
        if reading.turns and not found.holds_images and isinstance(found.samples, np.ndarray):
            shape = "x".join(map(str, found.samples.shape[1:]))
            note(
                f"the samples of '{Path(self.source).name}' are {shape}, read as {_ORDERS[reading.stored or '']}; "
                f"they are turned to {_ORDERS[reading.taken]}, as the model takes them"
            )
        return found

    @property
    def reading(self) -> Reading:
        """Where the channels of the samples stand, and where they shall."""
        layout = self.preprocessing.layout
        if isinstance(self.samples, tuple):
            return read_files(self.like, layout)
        resized = self.preprocessing.resize is not None or self.preprocessing.crop is not None
        integers = self.samples.dtype == np.uint8
        return read_array(self.samples.shape[1:], self.like, layout, integers=integers, resized=resized)

    def subset(self, indices: np.ndarray) -> Dataset:
        """Chosen samples as a data set of their own; indices (b,)."""
        chosen = tuple(self.samples[i] for i in indices) if isinstance(self.samples, tuple) else self.samples[indices]
        return replace(self, samples=chosen, labels=None if self.labels is None else self.labels[indices])

    def batches(self, size: int, limit: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Preprocessed samples and their labels, in order, the last batch as small as it must be.

        Raises:
            DataError: A file is no image, or images of one batch differ in size.
        """
        count = len(self) if limit is None else min(limit, len(self))
        for start in range(0, count, size):
            yield self.take(np.arange(start, min(start + size, count)))

    def take(
        self, indices: np.ndarray, change: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Chosen samples, preprocessed, and their labels.

        Args:
            indices: (b,).
            change: Applied to the stored images, (b, H, W, C), before preprocessing.

        Raises:
            DataError: See `batches`; or a sample holds NaN or infinity.
        """
        stored, reading = self._load(indices), self.reading
        labels = None if self.labels is None else self.labels[indices]
        if stored.dtype.kind == "f":
            self._check_finite(stored, indices)
        if self.whole and stored.dtype.kind in "uib" and self.preprocessing.as_stored and not reading.turns:
            return stored, labels
        images = reading.stored is not None
        if reading.stored == "nchw":  # preprocessing sees NHWC
            stored = stored.transpose(0, 2, 3, 1)
        if change is not None and images:
            stored = change(stored)
        return self.preprocessing(stored, reading.taken, images=images), labels

    def _check_finite(self, stored: np.ndarray, indices: np.ndarray) -> None:
        finite = np.isfinite(stored.reshape(len(stored), -1)).all(axis=1)
        if not finite.all():
            raise DataError(f"sample {indices[int(finite.argmin())]} of '{self.source}' holds NaN or infinity")

    def _load(self, indices: np.ndarray) -> np.ndarray:
        if isinstance(self.samples, tuple):
            images = [self._cropped(read_image(self.samples[i])) for i in indices]
            if len({image.shape for image in images}) > 1:
                raise DataError(f"the images of '{self.source}' differ in size: give --resize and --crop")
            return np.stack(images)
        chosen: np.ndarray = self.samples[indices]
        return chosen

    def _cropped(self, image: np.ndarray) -> np.ndarray:
        """Cropped here already where nothing is resized before, so that images of different sizes fit one batch."""
        crop, (height, width) = self.preprocessing.crop, image.shape[:2]
        if self.preprocessing.resize is not None or crop is None or min(height, width) < crop:
            return image
        top, left = (height - crop) // 2, (width - crop) // 2
        return image[top : top + crop, left : left + crop]


def open_data(path: str | PathLike[str], preprocessing: Preprocessing | None = None) -> Dataset:
    """Open a data set.

    Raises:
        DataError: Not there, not readable, empty, pickled, or labels that do not match.
    """
    path = Path(path)
    try:
        opened = _open(path, preprocessing or Preprocessing())
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL in it
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"the data '{path}' cannot be read: {why}") from error
    if opened.preprocessing.as_stored and opened.holds_images:
        note(
            f"the images of '{path.name}' go in as they are stored, 0 to 255; if the model was trained on anything "
            "else, say so by --scale, --mean and --std, or --preprocess"
        )
    return opened


def _open(path: Path, preprocessing: Preprocessing) -> Dataset:
    files = cifar_files(path) if path.exists() else []
    if files:
        return Dataset(str(path), *read_cifar(files), preprocessing)
    if path.is_dir():
        return _open_folder(path, preprocessing)
    if not path.exists():
        raise DataError(f"the data '{path}' does not exist")
    return _open_npz(path, preprocessing)


def _open_npz(path: Path, preprocessing: Preprocessing) -> Dataset:
    arrays = read_npz(path, ("x", "y"))
    if "x" not in arrays:
        raise DataError(f"'{path}' is not an .npz file with an array 'x' (and 'y' for labels)")
    x, y = arrays["x"], arrays.get("y")
    if x.ndim == 0 or len(x) == 0:
        raise DataError(f"'{path}' holds no samples")
    if x.dtype.kind not in "uifb":
        raise DataError(f"'{path}': x has type {x.dtype}, numbers are needed")
    if y is not None:
        y = y.reshape(-1)
        if y.dtype.kind not in "ui":
            raise DataError(f"'{path}': labels y have type {y.dtype}, whole numbers are needed")
        if len(y) != len(x):
            raise DataError(f"'{path}': {len(x)} samples but {len(y)} labels")
        if y.max() > _LARGEST_LABEL:
            raise DataError(f"'{path}': label {y.max()} is no class, which are numbered from 0")
        y = y.astype(np.int64)
    return Dataset(str(path), x, y, preprocessing)


def _open_folder(path: Path, preprocessing: Preprocessing) -> Dataset:
    classes = sorted(entry for entry in path.iterdir() if entry.is_dir())
    found = [images_in(folder) for folder in classes]
    files = [file for images in found for file in images]
    labels = [index for index, images in enumerate(found) for _ in images]
    if files:
        return Dataset(str(path), tuple(files), np.array(labels, dtype=np.int64), preprocessing)
    files = images_in(path)
    if not files:
        raise DataError(f"the folder '{path}' holds no images, neither in it nor in class subfolders")
    return Dataset(str(path), tuple(files), None, preprocessing)
