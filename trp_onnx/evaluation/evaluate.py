"""`trp-onnx evaluate`: what a file scores on data, alone or beside the original."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import overload

import numpy as np

from trp_onnx.data import Data, Preprocessing, open_data
from trp_onnx.evaluation.evaluation import Evaluation
from trp_onnx.evaluation.metric import Asked, Score, Scores
from trp_onnx.evaluation.outputs import read_said
from trp_onnx.graph.in_memory import ModelLike, model_file
from trp_onnx.progress import at_work
from trp_onnx.schema import Count, held

Said = Iterable[str] | Mapping[str, str]


@overload
def evaluate(
    model: ModelLike,
    data: Data,
    *,
    metric: Asked | None = None,
    against: None = None,
    output_kinds: Said = (),
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
) -> Score: ...


@overload
def evaluate(
    model: ModelLike,
    data: Data,
    *,
    metric: Asked | None = None,
    against: ModelLike,
    output_kinds: Said = (),
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
) -> Scores: ...


def evaluate(
    model: ModelLike,
    data: Data,
    *,
    metric: Asked | None = None,
    against: ModelLike | None = None,
    output_kinds: Said = (),
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
) -> Score | Scores:
    """Measure a network on data.

    Args:
        model: An ONNX or `.ort` file, its bytes, an `onnx.ModelProto` or an `onnx_ir.Model`.
        data: Whatever `open_data` takes.
        metric: A name ("top-1", "top-5", "miou", "agreement", "cosine", "snr", "relative-error"),
            "pkg.module:function", a function, an object with `update` and `result`, or a `Metric`. By default top-1
            where labels name classes, agreement where there are none.
        against: The original, to measure beside on the same samples.
        output_kinds: What outputs are, where that cannot be seen: {"logits": "scores:2"}, or as for `--output-kind`.
        preprocessing: How samples become inputs; not with a `Dataset`, which has its own.
        limit: Only the first so many samples.

    Returns:
        The score; with `against` those of both files, and what is lost.

    Raises:
        ModelError: A model cannot be loaded or run, or has no output that the metric can read.
        DataError: The data cannot be read, has no labels that the metric wants, or does not fit the model.
        UsageError: The metric is none, or failed, or wants an original that is not given; `output_kinds` is wrong.
    """
    beside = model if against is None else against
    with at_work() as notes, model_file(model) as (file, _), model_file(beside) as (original, _):
        dataset = open_data(data, preprocessing)
        limit = held(limit, Count | None, "limit")
        if limit is not None and limit < len(dataset):
            dataset = dataset.subset(np.arange(limit))
        evaluation = Evaluation(metric, original, dataset, read_said(output_kinds), alone=against is None)
        found = evaluation.before if against is None else evaluation.scores(file)
        return found.with_notes(notes)
