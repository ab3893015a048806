"""The samples that ranks and factors are fitted to, and those held out to choose among candidates."""

from __future__ import annotations

import numpy as np

from trp_onnx.data import Data, Dataset, Preprocessing, open_data
from trp_onnx.errors import DataError
from trp_onnx.evaluation.outputs import ClassLabels
from trp_onnx.graph.inputs import Inputs, Samples
from trp_onnx.progress import note

SAMPLES = 512
"""Samples of the data that factors are fitted to."""

JUDGING_SAMPLES, LEAST_JUDGING = 2000, 100
"""Samples of the data that are held out to choose among candidates: at most, and so many that a point can be told."""


class CalibrationSplit:
    """The data that ranks and factors are fitted to; what is held out of it judges candidates where there are any.

    Attributes:
        dataset: All of it.
        held_out: Samples that nothing is fitted to; empty where no candidates are judged.
    """

    def __init__(
        self,
        data: Data,
        preprocessing: Preprocessing | None,
        inputs: Inputs,
        *,
        holds_out: bool,
        by_labels: bool = False,
    ) -> None:
        """Draw them.

        Args:
            data: Whatever `open_data` takes.
            preprocessing: How samples become inputs.
            inputs: The model's.
            holds_out: Whether half of the samples, 2000 at most, are held out to judge candidates.
            by_labels: Whether they are judged by labels where there are any: that takes 200 samples.

        Raises:
            DataError: The data cannot be read, or has too few samples to hold any out.
        """
        self.dataset: Dataset = open_data(data, preprocessing).bound(inputs)
        order = np.random.default_rng(0).permutation(len(self.dataset))
        count = min(JUDGING_SAMPLES, len(order) // 2) if holds_out else 0
        if holds_out and (not count or (by_labels and self.dataset.labels is not None and count < LEAST_JUDGING)):
            raise DataError(
                f"'{self.dataset.source}' has {len(order)} samples: half of them are held out to judge what is fitted "
                f"to the rest, which {2 * LEAST_JUDGING} make meaningful"
            )
        if holds_out and count < LEAST_JUDGING:
            note(
                f"candidates are judged on {count} samples, half of '{self.dataset.source}': one sample counts for "
                f"{100 / count:.1f} points, and {2 * LEAST_JUDGING} samples would judge better"
            )
        self._held_out = order[:count]
        self.held_out = self.dataset.subset(self._held_out)
        self._fitting = order[count : count + SAMPLES]
        self._rest = order[count + SAMPLES :]

    @property
    def labels(self) -> ClassLabels | None:
        """What the labels say of the output that they speak of; None where they name no classes."""
        return ClassLabels.of(self.dataset.labels, self.dataset.preprocessing.label_offset)

    def fitting(self) -> Samples:
        """Samples to fit to."""
        return Samples(self.dataset.inputs, self.dataset.take(self._fitting))

    def learnable(self, scored: int) -> Dataset:
        """Samples that judge nothing: neither candidates nor the result, which `unfitted` judges by `scored`."""
        return self.dataset.subset(np.sort(np.concatenate([self._fitting, self._rest[scored:]])))

    def unfitted(self, count: int) -> Dataset:
        """At most so many samples that factors were not fitted to; of those they were where there are no others."""
        for indices in (self._rest, self._held_out, self._fitting):
            if len(indices):
                return self.dataset.subset(indices[:count])
        return self.dataset
