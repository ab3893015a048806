"""Arrays that come once, one after the other, kept as long as they are needed: in memory, and on disk beyond that."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping

import numpy as np

from trp_onnx.errors import DataError
from trp_onnx.graph.session import Arrays

SPOOL_BYTES = 256 << 20
"""What is kept in memory; all that is more goes to a file in the folder for temporary files, which nobody sees."""


class Spool:
    """Mappings of arrays, written once and read in any order."""

    def __init__(self) -> None:
        """Begin with none."""
        self._file = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115 - it lasts as long as this
        self._records: list[dict[str, tuple[int, np.dtype[np.generic], tuple[int, ...]]]] = []
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return len(self._records)

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep one mapping.

        Raises:
            DataError: An array holds objects, or there is no space for it.
        """
        record = {}
        for name, array in arrays.items():
            if array.dtype.hasobject:
                raise DataError(f"'{name}' is no array of numbers or text but of type {array.dtype}")
            try:
                start = self._file.seek(0, 2)
                self._file.write(np.ascontiguousarray(array).tobytes())
            except OSError as error:
                raise DataError(f"the samples cannot be kept in '{tempfile.gettempdir()}': {error.strerror}") from error
            record[name] = (start, array.dtype, array.shape)
        self._records.append(record)

    def shapes(self, place: int) -> dict[str, tuple[int, ...]]:
        """The shapes of one mapping."""
        return {name: shape for name, (_, _, shape) in self._records[place].items()}

    def read(self, place: int) -> Arrays:
        """One mapping."""
        found = {}
        for name, (start, dtype, shape) in self._records[place].items():
            self._file.seek(start)
            stored = self._file.read(int(np.prod(shape)) * dtype.itemsize)
            found[name] = np.frombuffer(stored, dtype).reshape(shape)
        return found
