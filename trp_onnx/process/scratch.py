"""Arrays in temporary files: memory that the system may write out when it wants it for something else."""

from __future__ import annotations

import shutil
import tempfile

import numpy as np
from numpy.typing import NDArray

SHARE = 0.5
"""Part of the free disk that may be taken."""


def room() -> int:
    """Bytes that arrays may take together."""
    return int(SHARE * shutil.disk_usage(tempfile.gettempdir()).free)


def zeros(shape: tuple[int, ...], dtype: type[np.float32]) -> NDArray[np.float32]:
    """An array of zeros in a file that has no name and goes with the array."""
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype, "w+", shape=shape)
