"""Data sets: an .npz file, a folder of images with one subfolder a class, or CIFAR-10's own files.

npz      `x`: samples (uint8 images NHWC or NCHW, or any array the model takes), `y`: labels (optional)
folder   root/<class>/<image>; classes are numbered in the order of their sorted names
CIFAR    the folder with `data_batch_1.bin` (or `data_batch_1`) ..., or one such file (see `cifar`)
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from trp_onnx.data.cifar import cifar_files, read_cifar
from trp_onnx.data.preprocessing import Preprocessing
from trp_onnx.errors import DataError
from trp_onnx.progress import note

_IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Dataset:
    """Samples with or without labels, preprocessed batch by batch.

    Attributes:
        source: Where it came from, for messages.
        samples: (n, ...) array, or the paths of n image files.
        labels: (n,) int64, or None.
        preprocessing: Applied to each batch.
    """

    source: str
    samples: np.ndarray | tuple[Path, ...] = field(repr=False)
    labels: np.ndarray | None = field(repr=False)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def holds_images(self) -> bool:
        """Whether samples are 8-bit images."""
        return isinstance(self.samples, tuple) or (self.samples.ndim == 4 and self.samples.dtype == np.uint8)

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
            change: Applied to the stored samples, (b, H, W, C) for images, before preprocessing.

        Raises:
            DataError: See `batches`; or a sample holds NaN or infinity.
        """
        stored = self._load(indices)
        if stored.dtype.kind == "f":
            self._check_finite(stored, indices)
        x = self.preprocessing(stored if change is None else change(stored))
        return x, None if self.labels is None else self.labels[indices]

    def _check_finite(self, stored: np.ndarray, indices: np.ndarray) -> None:
        finite = np.isfinite(stored.reshape(len(stored), -1)).all(axis=1)
        if not finite.all():
            raise DataError(f"sample {indices[int(finite.argmin())]} of '{self.source}' holds NaN or infinity")

    def _load(self, indices: np.ndarray) -> np.ndarray:
        if isinstance(self.samples, tuple):
            images = [_read_image(self.samples[i], self.preprocessing) for i in indices]
            if len({image.shape for image in images}) > 1:
                raise DataError(f"the images of '{self.source}' differ in size: give --resize and --crop")
            return np.stack(images)
        batch: np.ndarray = self.samples[indices]
        # A 4-d array with the channels second is turned round; preprocessing sees NHWC.
        if batch.ndim == 4 and batch.shape[1] in _CHANNELS and batch.shape[3] not in _CHANNELS:
            batch = batch.transpose(0, 2, 3, 1)
        return batch


def open_data(path: Path, preprocessing: Preprocessing | None = None) -> Dataset:
    """Open a data set.

    Raises:
        DataError: Not there, not readable, empty, pickled, or labels that do not match.
    """
    opened = _open(path, preprocessing or Preprocessing())
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


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, all or those of some names; never unpickles anything.

    Raises:
        DataError: Not there, not an .npz file, damaged, or an array of objects.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise DataError(f"'{path}' is not an .npz file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive if names is None or name in names}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error).lower() or "Object arrays" in str(error):
            raise DataError(f"'{path}' holds pickled objects, which are never loaded: save plain arrays") from error
        raise DataError(f"'{path}' is a damaged .npz file") from error


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
        y = y.astype(np.int64)
    return Dataset(str(path), x, y, preprocessing)


def _open_folder(path: Path, preprocessing: Preprocessing) -> Dataset:
    classes = sorted(entry for entry in path.iterdir() if entry.is_dir())
    files: list[Path] = []
    labels: list[int] = []
    for index, folder in enumerate(classes):
        found = sorted(file for file in folder.iterdir() if file.suffix.lower() in _IMAGES)
        files += found
        labels += [index] * len(found)
    if files:
        return Dataset(str(path), tuple(files), np.array(labels, dtype=np.int64), preprocessing)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _IMAGES)
    if not files:
        raise DataError(f"the folder '{path}' holds no images, neither in it nor in class subfolders")
    return Dataset(str(path), tuple(files), None, preprocessing)


def _read_image(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            image = np.asarray(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"'{path}' cannot be read as an image") from error
    if preprocessing.resize is None and preprocessing.crop is not None:
        # Crop here, so that images of different sizes fit one batch.
        height, width = image.shape[:2]
        if min(height, width) >= preprocessing.crop:
            top, left = (height - preprocessing.crop) // 2, (width - preprocessing.crop) // 2
            image = image[top : top + preprocessing.crop, left : left + preprocessing.crop]
    return image
