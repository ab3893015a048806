"""The score of a candidate by a metric: the first worker measures all held-out samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from trp_onnx.evaluation.built_in import BUILT_IN
from trp_onnx.evaluation.metric import Setting, as_metric
from trp_onnx.graph.inputs import Run
from trp_onnx.graph.session import Arrays
from trp_onnx.training.batches import MicroBatch
from trp_onnx.training.job import ChosenBy


def score_by(
    chosen: ChosenBy,
    samples: Iterable[MicroBatch],
    run: Callable[[Run], Arrays],
    teacher: Callable[[Run], Arrays] | None,
    offset: int,
) -> float:
    """The value of a metric, negative where lower is better; minus infinity for one that is no number.

    Args:
        chosen: The metric, and what it may know of the outputs.
        samples: The held-out samples.
        run: What the candidate gives for some of them.
        teacher: What the teacher gives, where there is one.
        offset: Outputs before the first class.

    Raises:
        UsageError: The metric fails.
        DataError: It cannot be imported, or the labels do not fit.
    """
    metric = as_metric(chosen.metric, BUILT_IN)
    running = metric.start(Setting(chosen.outputs, chosen.samples, offset, chosen.data))
    for micro in samples:
        reference = teacher(micro.run) if metric.reference == "original" and teacher is not None else micro.labels
        running.update(run(micro.run), reference, micro.run.count)
    value = running.result() if metric.higher_is_better else -running.result()
    return -math.inf if math.isnan(value) else value
