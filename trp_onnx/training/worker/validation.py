"""The score of a candidate on the held-out samples: by a metric, else its accuracy, else the distance to the teacher.

Workers share the samples out and add up what they count; a metric, which may want all of them at once, the first worker
measures alone.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import numpy_helper

from trp_onnx.evaluation.built_in import BUILT_IN
from trp_onnx.evaluation.metric import Setting, as_metric
from trp_onnx.graph.session import Arrays
from trp_onnx.training.batches import Batches, CallableBatches
from trp_onnx.training.communicator import Communicator
from trp_onnx.training.job import ChosenBy, Job
from trp_onnx.training.labels import count_right
from trp_onnx.training.worker.engine import Engine, Network
from trp_onnx.training.worker.teacher import Teacher


class Validation:
    """The held-out samples, and what candidates are measured by on them."""

    def __init__(
        self, job: Job, model: onnx.ModelProto, data: Batches | CallableBatches, teacher: Teacher | None,
        world: Communicator, engine: Engine,
    ) -> None:  # fmt: skip
        """`model`: The network without a loss."""
        self._job, self._model, self._data, self._teacher = job, onnx.ModelProto(), data, teacher
        self._model.CopyFrom(model)
        inner = {output.name for output in job.outputs if output.inner}
        del self._model.graph.output[:]
        self._model.graph.output.extend(value for value in model.graph.output if value.name not in inner)
        self._world, self._engine = world, engine
        self._labelled = next((output for output in job.outputs if output.label_weight), None)
        self._offset = job.data.preprocessing.label_offset

    def score(self, weights: Arrays) -> tuple[float, float | None]:
        """How good a candidate is, higher is better, and its accuracy where that is what chooses.

        Args:
            weights: Its weights and statistics, by name.

        Raises:
            UsageError: The metric fails.
            DataError: It cannot be imported, or the labels do not fit.
        """
        network = self._candidate(weights)
        if self._job.chosen_by is not None:
            score = self._by_metric(self._job.chosen_by, network) if self._world.rank == 0 else None
            return float(self._world.share(score)), None
        counts = np.zeros(3, np.float64)  # samples or labels, those that are right, distance to the teacher
        for micro in self._data.validation(self._job.options.micro_batch, self._world.rank, self._world.size):
            outputs = network.run_on(micro.run)
            if self._labelled is not None and micro.labels is not None:
                scores = outputs[self._labelled.name]
                right, all_of_them = count_right(scores, self._labelled.axis, micro.labels, self._offset)
                counts += (all_of_them, right, 0)
            elif self._teacher is not None:
                counts += (micro.run.count, -np.inf, self._teacher.distance(micro.run, outputs))
        self._world.sum(counts)
        if np.isfinite(counts[1]):
            accuracy = float(counts[1] / counts[0])
            return accuracy, accuracy
        return -float(counts[2] / counts[0]), None

    def _candidate(self, weights: Arrays) -> Network:
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for tensor in model.graph.initializer:
            if tensor.name in weights:
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weights[tensor.name]), tensor.name))
        return self._engine.network(model)

    def _by_metric(self, chosen: ChosenBy, network: Network) -> float:
        """The value of a metric, negative where lower is better; minus infinity for one that is no number."""
        metric = as_metric(chosen.metric, BUILT_IN)
        running = metric.start(Setting(chosen.outputs, chosen.samples, self._offset, chosen.data))
        teacher = self._teacher if metric.reference == "original" else None
        for micro in self._data.validation(self._job.options.micro_batch, 0, 1):
            reference = micro.labels if teacher is None else teacher.answers(micro.run)
            running.update(network.run_on(micro.run), reference, micro.run.count)
        value = running.result() if metric.higher_is_better else -running.result()
        return -math.inf if math.isnan(value) else value
