"""What the network is held to on a micro-batch: labels and the teacher's outputs."""

from __future__ import annotations

import math

import numpy as np

from trp_onnx.errors import DataError
from trp_onnx.graph.session import Arrays
from trp_onnx.training.batches import MicroBatch
from trp_onnx.training.job import Job
from trp_onnx.training.labels import targets_of
from trp_onnx.training.losses import LABELS
from trp_onnx.training.worker.teacher import Teacher


class Objective:
    """The losses of a job."""

    def __init__(self, job: Job, teacher: Teacher | None) -> None:
        """`teacher`: None where nothing is distilled."""
        self._job, self._teacher = job, teacher

    def feeds(self, micro: MicroBatch) -> tuple[Arrays, float]:
        """What a learner takes.

        Returns:
            The network's inputs with the labels and the teacher's outputs, and the teacher's entropy, by which the
            loss of the graph exceeds the divergence.

        Raises:
            DataError: Samples lack labels that name classes.
        """
        feeds, entropy = dict(micro.run.feeds), 0.0
        if any(output.label_weight for output in self._job.outputs):
            feeds[LABELS] = self._labels_of(micro)
        if self._teacher is not None:
            targets, entropy = self._teacher.targets(micro.run)
            feeds |= targets
        return feeds, entropy

    def chance(self, feeds: Arrays) -> float:
        """The loss of a network that knows nothing: uniform classes, zero everywhere else."""
        loss = 0.0
        for output in self._job.outputs:
            target = feeds.get(output.target)
            if output.logits:
                scale = output.label_weight + output.distill_weight * self._job.options.temperature**2
                loss += scale * math.log(max(2, output.classes))
            elif target is not None:
                loss += output.distill_weight * float(np.mean(np.square(target)))
        return max(loss, 1e-6)

    def _labels_of(self, micro: MicroBatch) -> np.ndarray:
        labels, data = micro.labels, self._job.data
        if labels is None or labels.dtype.kind not in "iub":
            raise DataError(
                f"some samples of '{data.name}' have no labels that name classes, or other samples of equal sizes have "
                "more: train with distillation alone, --labels 0"
            )
        return targets_of(labels, data.preprocessing.label_offset)
