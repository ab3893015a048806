"""The original CIFAR-10 files: `data_batch_1.bin` ... and `data_batch_1` ..., as their authors publish them.

    binary   records of 3073 bytes: a label, then the red, green and blue plane, 32x32 each
    python   a pickle of {"data": 10000 x 3072 bytes, "labels": [...]}

A pickle is a program, and we do not run it: its opcodes are read one by one (`pickletools`), and the two
things that are wanted are taken from the arguments. Nothing is imported, built or called.
"""

from __future__ import annotations

import pickletools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trp_onnx.errors import DataError

_PIXELS = 3 * 32 * 32
_CLASSES = 2**31
_LARGEST = 1 << 30  # bytes of a file; the whole of CIFAR-10 has 180 MB
_STRINGS = ("SHORT_BINSTRING", "BINSTRING", "STRING", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES")
_INTEGERS = ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1")


def cifar_files(path: Path) -> list[Path]:
    """The files to read for a path: itself, or the training batches of a folder; empty where it is no CIFAR-10."""
    if path.is_dir():
        for suffix in (".bin", ""):
            found = sorted(file for file in path.glob(f"data_batch_[0-9]{suffix}") if file.is_file())
            if found:
                return found
        return []
    name = path.name.removesuffix(".bin") if path.is_file() else ""
    return [path] if name == "test_batch" or name.startswith("data_batch_") else []


def read_cifar(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) uint8 and labels (n,) int64.

    Raises:
        DataError: A file is none of CIFAR-10's, or damaged.
    """
    parts = [_read_binary(path) if path.suffix == ".bin" else _read_python(path) for path in files]
    planes = np.concatenate([data for data, _ in parts]).reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.concatenate([labels for _, labels in parts])


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    stored = np.frombuffer(_bytes(path), np.uint8)
    if not stored.size or stored.size % (_PIXELS + 1):
        raise DataError(f"'{path}' is no CIFAR-10 file: its size is no multiple of {_PIXELS + 1} bytes")
    records = stored.reshape(-1, _PIXELS + 1)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _read_python(path: Path) -> tuple[np.ndarray, np.ndarray]:
    data, labels, key = b"", [], ""
    try:
        for opcode, argument, _ in pickletools.genops(_bytes(path)):
            if opcode.name in _STRINGS:
                text = argument if isinstance(argument, bytes) else str(argument).encode("latin-1")
                if len(text) > len(data) and len(text) % _PIXELS == 0:
                    data = text
                elif len(text) < 32:
                    key = text.decode("latin-1")
            elif opcode.name in _INTEGERS and key == "labels":
                labels.append(int(str(argument)))
    except Exception as error:  # of opcodes that make no sense
        raise DataError(f"'{path}' is no CIFAR-10 file, or it is damaged") from error
    count = len(data) // _PIXELS
    if not count or len(labels) != count:
        raise DataError(f"'{path}' is no CIFAR-10 file: it holds {count} images and {len(labels)} labels")
    if max(map(abs, labels)) > _CLASSES:
        raise DataError(f"'{path}' is no CIFAR-10 file: it holds a label of {max(labels, key=abs)}")
    return np.frombuffer(data, np.uint8).reshape(count, _PIXELS), np.array(labels, np.int64)


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"'{path}' is no CIFAR-10 file: it is larger than 1 GiB")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}") from error
