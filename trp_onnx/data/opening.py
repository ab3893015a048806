"""`open_data`: whatever a user has samples in, as a data set.

    .npz                   an array an input by its name, `x` for a model with one; `y`: labels, if any
    .npy                   the samples of a model with one input, mapped
    folder of images       root/<class>/<image>, classes in the order of their sorted names; or images alone
    folder of .npz files   a file a sample, or for a few of equal sizes
    CIFAR-10               the folder with `data_batch_1.bin` (or `data_batch_1`) ..., or one such file
    pkg.module:function    that yields samples, called without arguments, or with ("train", 0) where it takes two
    in Python              an array, (x, y), a mapping of arrays, an iterable of mappings, arrays or pairs of one of
                           them with labels, ONNX Runtime's CalibrationDataReader

What is yielded is drawn once, and kept in a spool.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any, Protocol, TypeAlias

import numpy as np

from trp_onnx.data.cifar import cifar_files, read_cifar
from trp_onnx.data.columns import LABELS, X
from trp_onnx.data.dataset import Dataset
from trp_onnx.data.functions import is_function, load_function, users_code
from trp_onnx.data.images import images_in
from trp_onnx.data.npz import read_npy, read_npz
from trp_onnx.data.preprocessing import Preprocessing
from trp_onnx.data.spool import Spool
from trp_onnx.data.stores import ArrayStore, ImageFiles, ItemStore, NpzFiles, Spooled, Store
from trp_onnx.errors import DataError
from trp_onnx.graph.session import Arrays
from trp_onnx.progress import note
from trp_onnx.schema import check_type, type_of


class Reader(Protocol):
    """ONNX Runtime's `CalibrationDataReader`."""

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """The next feeds, None at the end."""


Data: TypeAlias = "str | PathLike[str] | Dataset | np.ndarray | Mapping[str, np.ndarray] | Iterable[Any] | Reader"
"""See the module."""


def open_data(data: Data, preprocessing: Preprocessing | None = None) -> Dataset:
    """Open a data set, see the module; one that is open comes back as it is.

    Raises:
        DataError: Not there, not readable, empty, pickled, or labels that do not match.
    """
    if isinstance(data, Dataset):
        return data
    check_type(preprocessing, (Preprocessing, NoneType), "preprocessing")
    if not isinstance(data, (str, PathLike)):
        source = "the data given"
        return Dataset(source, _in_python(data, source), preprocessing or Preprocessing())
    path = Path(data)
    try:
        store = _function(str(data)) if is_function(str(data)) and not path.exists() else _open(path)
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL in it
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"the data '{path}' cannot be read: {why}") from error
    opened = Dataset(str(data), store, preprocessing or Preprocessing())
    if opened.preprocessing.as_stored and opened.holds_images:
        note(
            f"the images of '{path.name}' go in as they are stored, 0 to 255; if the model was trained on anything "
            "else, say so by --scale, --mean and --std, or --preprocess"
        )
    return opened


def _open(path: Path) -> Store:
    files = cifar_files(path) if path.exists() else []
    if files:
        images, labels = read_cifar(files)
        return ArrayStore({X: images, LABELS[0]: labels}, str(path))
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise DataError(f"the data '{path}' does not exist")
    if path.suffix.lower() == ".npy":
        return ArrayStore({X: read_npy(path)}, str(path))
    return ArrayStore(read_npz(path), str(path))


def _open_folder(path: Path) -> Store:
    classes = sorted(entry for entry in path.iterdir() if entry.is_dir())
    found = [images_in(folder) for folder in classes]
    files = [file for images in found for file in images]
    if files:
        labels = [index for index, images in enumerate(found) for _ in images]
        return ItemStore(ImageFiles(files, labels), str(path))
    files = images_in(path)
    if files:
        return ItemStore(ImageFiles(files, None), str(path))
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".npz" and file.is_file())
    if not files:
        raise DataError(
            f"the folder '{path}' holds no images, neither in it nor in class subfolders, and no .npz files"
        )  # fmt: skip
    return ItemStore(NpzFiles(files), str(path))


def _function(reference: str) -> Store:
    given = load_function(reference)
    return _in_python(_called(given, reference), reference)


def _called(function: Callable[..., Any], reference: str) -> Any:
    with users_code(f"'{reference}' failed"):
        takes = [
            parameter
            for parameter in inspect.signature(function).parameters.values()
            if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        ]
        return function("train", 0) if len(takes) == 2 else function()


def _in_python(data: Any, source: str) -> Store:
    if isinstance(data, np.ndarray):
        return ArrayStore({X: data}, source)
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], np.ndarray):
        return ArrayStore(_arrays({X: data[0], LABELS[0]: data[1]}, source), source)
    if isinstance(data, Mapping):
        return ArrayStore(_arrays(data, source), source)
    return _spooled(_items(data, source), source)


def _items(data: Any, source: str) -> Iterator[Any]:
    """What a reader or an iterable gives; what goes wrong in it is an error of ours."""
    with users_code(f"'{source}' failed"):
        if hasattr(data, "get_next"):
            yield from iter(data.get_next, None)
        elif isinstance(data, Iterable) and not isinstance(data, (str, bytes, bytearray)):
            yield from data
        else:
            raise DataError(f"samples come as a path, arrays or an iterable of them, not as {type_of(data)}")


def _spooled(items: Iterable[Any], source: str) -> Store:
    spool, labels = Spool(), []
    for item in items:
        sample, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        spool.add(_arrays(sample if isinstance(sample, Mapping) else {X: sample}, source))
        labels.append(None if label is None else np.asarray(label))
    if not len(spool):
        raise DataError(f"'{source}' holds no samples")
    return ItemStore(Spooled(spool, labels), source)


def _arrays(sample: Mapping[str, Any], source: str) -> Arrays:
    found = {}
    with users_code(f"'{source}' failed"):
        given = dict(sample.items())
    for name, value in given.items():
        with users_code(f"'{source}' gives '{name}' what is no array"):  # a list of lists of different lengths
            array = np.asarray(value)
        if array.dtype.hasobject and all(isinstance(entry, str) for entry in array.flat):
            array = array.astype(str)
        if array.dtype.hasobject:
            raise DataError(f"'{source}' gives '{name}' objects, where an array of numbers is needed")
        found[str(name)] = array
    return found
