"""The samples that ranks and factors are fitted to, and those held out to choose among candidates."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trp_onnx.accuracy import as_feed
from trp_onnx.data import Dataset, Preprocessing, open_data
from trp_onnx.errors import DataError
from trp_onnx.outputs import classes_of

SAMPLES = 512
"""Samples of the data that factors are fitted to."""

JUDGING_SAMPLES, LEAST_JUDGING = 2000, 100
"""Labelled samples of the data, at most and at least, that are held out to choose among candidates."""


class Samples:
    """The data that ranks and factors are fitted to; what is left of it judges candidates where there are any."""

    def __init__(self, data: str | PathLike[str] | Dataset, preprocessing: Preprocessing | None, judges: bool) -> None:
        """Draw them.

        Args:
            data: A file, a folder or an open data set.
            preprocessing: How samples of a file or folder become inputs.
            judges: Whether labelled samples are held out.

        Raises:
            DataError: The data cannot be read, has no labels, or too few samples to hold any out.
        """
        self.dataset = data if isinstance(data, Dataset) else open_data(Path(data), preprocessing)
        order = np.random.default_rng(0).permutation(len(self.dataset))
        held_out = 0
        if judges:
            if self.dataset.labels is None:
                raise DataError(f"'{self.dataset.source}' has no labels: --max-drop cannot measure accuracy on it")
            held_out = min(JUDGING_SAMPLES, len(order) // 2)
            if held_out < LEAST_JUDGING:
                raise DataError(
                    f"'{self.dataset.source}' has {len(order)} samples: --max-drop holds half of them out to measure "
                    f"accuracy, which {2 * LEAST_JUDGING} make meaningful at the least"
                )
        self.judging = self.dataset.subset(order[:held_out])
        self._fitting = order[held_out : held_out + SAMPLES]

    @property
    def classes(self) -> int:
        """How many classes the labels name, see `outputs.classes_of`."""
        return classes_of(self.dataset.labels, self.dataset.preprocessing.label_offset)

    def fitting(self, model: ir.Model) -> np.ndarray:
        """Samples to fit to, in the type that the model takes: (b, ...)."""
        (x,) = as_feed(model, self.dataset.take(self._fitting)[0]).values()
        return np.ascontiguousarray(x)
