"""Arrays from .npz and .npy files, which may come from anywhere.

Nothing is unpickled, and what they declare is checked before memory is taken for it. Large arrays that are stored as
they are, uncompressed, are mapped and not read.
"""

from __future__ import annotations

import math
import struct
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from trp_onnx.errors import DataError
from trp_onnx.process.memory import check_room

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_ENCRYPTED = 1  # the first flag of a zip's member

MAPPED_FROM = 64 << 20
"""Bytes from which an array that is not compressed is mapped; smaller ones are read, which checks their checksum."""

_BOMB, _BOMB_FROM = 200, 256 << 20
"""Bytes that one byte unpacks to, and how many there are in all, from which an archive holds nothing but repetition."""


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, all or those of some names; never unpickles anything.

    Raises:
        DataError: Not there, not an .npz file, damaged, encrypted, an array of objects, or more than fits in memory.
    """
    with _opened(path) as archive:
        members = _members(path, archive)
        wanted = {name: info for name, info in members.items() if names is None or name in names}
        sizes = {name: _declared_bytes(path, archive, name, info) for name, info in wanted.items()}
        check_room(sum(sizes[name] for name, info in wanted.items() if not _maps(info)), f"'{path}'", DataError)
        return {name: _read(path, archive, info) for name, info in wanted.items()}


def npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each array of an .npz file, of which the headers alone are read.

    Raises:
        DataError: As `read_npz`.
    """
    found = {}
    with _opened(path) as archive:
        for name, info in _members(path, archive).items():
            _declared_bytes(path, archive, name, info)
            with archive.open(info) as file:
                found[name] = _header(file)[0]
    return found


def read_npy(path: Path) -> np.ndarray:
    """The array of an .npy file, mapped; never unpickles anything.

    Raises:
        DataError: Not there, damaged, or an array of objects.
    """
    try:
        if not path.is_file():
            raise DataError(f"the data '{path}' does not exist")
        with path.open("rb") as file:
            if _header(file)[1].hasobject:
                raise DataError(f"'{path}' holds pickled objects, which are never loaded: save plain arrays")
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return array
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except Exception as error:  # hostile bytes raise anything
        raise DataError(f"'{path}' is a damaged .npy file") from error


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; what goes wrong while it is read is an error of ours."""
    _check_archive(path)
    try:
        with warnings.catch_warnings(), zipfile.ZipFile(path) as archive:
            warnings.simplefilter("ignore")  # numpy's of old headers, zipfile's of names that come twice
            yield archive
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"'{path}' does not fit in memory") from error
    except Exception as error:  # hostile bytes raise anything, in zipfile and in numpy
        raise DataError(f"'{path}' is a damaged .npz file") from error


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members = {
        info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")
    }
    if not members:
        raise DataError(f"'{path}' holds no arrays: save them by numpy.savez(path, x=array)")
    return members


def _maps(info: zipfile.ZipInfo) -> bool:
    return info.compress_type == zipfile.ZIP_STORED and info.file_size >= MAPPED_FROM


def _check_archive(path: Path) -> None:
    try:
        if path.is_file() and zipfile.is_zipfile(path):
            return
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"'{path}' cannot be read: {why}") from error
    raise DataError(f"'{path}' is not an .npz file")


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
    shape, dtype, _ = _whole_header(file)
    return shape, dtype


def _whole_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic], bool]:
    """Shape, type, and whether it is in Fortran's order."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = read[version](file)  # version 3 is for names of fields, and structures are no samples
    return shape, dtype, fortran


def _read(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        if _maps(info):
            shape, dtype, fortran = _whole_header(file)
            start = _start_of(path, info) + file.tell()
            return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        file.read()  # to the end, where the checksum is
    return array


def _start_of(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin, behind its local header (APPNOTE.TXT, section 4.3.7)."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return int(info.header_offset + 30 + name + extra)
