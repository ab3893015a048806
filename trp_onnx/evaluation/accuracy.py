"""Accuracy of a file on data: the number that counts is measured on what was written."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from trp_onnx.data import Data, Dataset, Preprocessing, open_data
from trp_onnx.errors import DataError
from trp_onnx.evaluation.outputs import ClassLabels, Told, labelled, output_kinds
from trp_onnx.graph.batching import find_batching
from trp_onnx.graph.inputs import inputs_of, interface_of
from trp_onnx.graph.model import open_model
from trp_onnx.graph.session import Arrays, open_session, run_session
from trp_onnx.progress import track

BATCH = 64


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy.

    Attributes:
        correct: Samples whose largest output is their label.
        samples: Samples that were run.
    """

    correct: int
    samples: int

    @property
    def top1(self) -> float:
        """The part that is correct, 0 to 1."""
        return self.correct / self.samples


def evaluate(
    model: str | PathLike[str],
    data: Data,
    *,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
) -> Accuracy:
    """Measure the top-1 accuracy of an ONNX or `.ort` file.

    The output that has one score a class for each sample is read (of several see `outputs`); it may have further
    dimensions of size 1.

    Args:
        model: The file.
        data: Whatever `open_data` takes, with a whole number for each sample as its label.
        preprocessing: How samples become inputs; not with a `Dataset`, which has its own.
        limit: Only the first so many samples.

    Raises:
        ModelError: The model cannot be loaded or run.
        DataError: The data cannot be read, has no labels, or does not fit the model.
    """
    session = open_session(Path(model))
    inputs = inputs_of(open_model(Path(model)) if Path(model).suffix.lower() != ".ort" else interface_of(session))
    dataset = open_data(data, preprocessing).bound(inputs)
    labels = _class_numbers(dataset)
    if limit is not None and limit < len(dataset):
        dataset, labels = dataset.subset(np.arange(limit)), labels[:limit]
    batching = find_batching(session, dataset.take(np.arange(min(2, len(dataset))))[0], inputs, most=BATCH)
    offset = dataset.preprocessing.label_offset
    correct, named = 0, ""
    total = -(-len(dataset) // batching.size)
    for run, rows in track(dataset.runs(batching), f"evaluating {Path(model).name}", total):
        y, outputs = labels[rows], run_session(session, run.feeds)
        named = named or _named(outputs, run.count, ClassLabels.of(labels, offset), str(model))
        scores = outputs[named].reshape(len(outputs[named]), -1)[: run.count, offset:]
        if y.min() < 0 or y.max() >= scores.shape[1]:
            wrong = int(y.min() if y.min() < 0 else y.max())
            raise DataError(
                f"'{dataset.source}' has label {wrong}, but the model has {scores.shape[1]} classes "
                f"(0 to {scores.shape[1] - 1}): see --label-offset"
            )
        correct += int((scores.argmax(axis=1) == y).sum())
    return Accuracy(correct, len(dataset))


def _class_numbers(dataset: Dataset) -> np.ndarray:
    labels = dataset.labels
    if labels is None:
        raise DataError(f"'{dataset.source}' has no labels: accuracy cannot be measured")
    if labels.dtype.kind not in "ui" or labels.ndim != 1:
        raise DataError(
            f"'{dataset.source}' has labels of type {labels.dtype} and shape {list(labels.shape)}: for the accuracy "
            "whole numbers are needed, one a sample"
        )
    return labels


def check_labels(model: Path, dataset: Dataset) -> None:
    """Refuse a data set, bound to the model, on which its accuracy could not be measured, before any work.

    The samples of the smallest and the largest label are run.

    Raises:
        ModelError: See `evaluate`.
        DataError: See `evaluate`.
    """
    labels = _class_numbers(dataset)
    ends = sorted({int(labels.argmin()), int(labels.argmax())})
    evaluate(model, dataset.subset(np.array(ends, dtype=np.int64)))


def _named(outputs: Arrays, count: int, labels: ClassLabels | None, model: str) -> str:
    """The output that labels speak of."""
    each = {name: output[:count] for name, output in outputs.items() if output.ndim and len(output) >= count}
    name = labelled(output_kinds(None, each, Told(labels=labels)))
    if name is None:
        raise DataError(
            f"'{model}' has no output with one score a class for each sample: its accuracy cannot be measured"
        )
    return name
