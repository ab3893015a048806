"""Arrays from .npz files, which may come from anywhere: what they declare is checked before memory is taken for it."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from trp_onnx.errors import DataError
from trp_onnx.process.memory import check_room

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_ENCRYPTED = 1  # the first flag of a zip's member

_BOMB, _BOMB_FROM = 200, 256 << 20
"""Bytes that one byte unpacks to, and how many there are in all, from which an archive holds nothing but repetition."""


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, all or those of some names; never unpickles anything.

    Raises:
        DataError: Not there, not an .npz file, damaged, encrypted, an array of objects, or more than fits in memory.
    """
    _check_archive(path)
    try:
        with warnings.catch_warnings(), zipfile.ZipFile(path) as archive:
            warnings.simplefilter("ignore")  # numpy's of old headers, zipfile's of names that come twice
            members = {
                info.filename.removesuffix(".npy"): info
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }
            if not members:
                raise DataError(f"'{path}' holds no arrays: save them by numpy.savez(path, x=array)")
            wanted = {name: info for name, info in members.items() if names is None or name in names}
            sizes = [_declared_bytes(path, archive, name, info) for name, info in wanted.items()]
            check_room(sum(sizes), f"'{path}'", DataError)
            return {name: _read(archive, info) for name, info in wanted.items()}
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"'{path}' does not fit in memory") from error
    except Exception as error:  # hostile bytes raise anything, in zipfile and in numpy
        raise DataError(f"'{path}' is a damaged .npz file") from error


def _check_archive(path: Path) -> None:
    try:
        if path.is_file() and zipfile.is_zipfile(path):
            return
        with path.open("rb") if path.is_file() else _nothing() as file:
            single = file.read(6) == np.lib.format.MAGIC_PREFIX
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"'{path}' cannot be read: {why}") from error
    if single:
        raise DataError(
            f"'{path}' is not an .npz file but a single array: save it by numpy.savez(path, x=array), with y=labels "
            "where there are any"
        )
    raise DataError(f"'{path}' is not an .npz file")


def _nothing() -> IO[bytes]:
    import io

    return io.BytesIO()


def _declared_bytes(path: Path, archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> int:
    """What an array will take; refused where the archive cannot hold that."""
    if info.flag_bits & _ENCRYPTED:
        raise DataError(f"'{path}' is encrypted: save the arrays without a password")
    if info.compress_type not in _METHODS:
        raise DataError(f"'{path}' is compressed by a method that is not read: save it by numpy.savez_compressed")
    with archive.open(info) as file:
        shape, dtype = _header(file)
        rest = info.file_size - file.tell()
    if dtype.hasobject:
        raise DataError(f"'{path}' holds pickled objects, which are never loaded: save plain arrays")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size > rest:
        raise DataError(f"'{path}' is a damaged .npz file: '{name}' declares {size:,} bytes and has {max(0, rest):,}")
    if size > _BOMB_FROM and size > _BOMB * info.compress_size:
        raise DataError(
            f"'{path}' is refused: {info.compress_size:,} bytes of it unpack to {size:,}, which no real samples do"
        )
    return size


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = read[version](file)  # version 3 is for names of fields, and structures are no samples
    return shape, dtype


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        file.read()  # to the end, where the checksum is
    return array
