"""Accuracy of a file on data: the number that counts is measured on what was written."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from trp_onnx.data import Dataset, Preprocessing, open_data
from trp_onnx.data.feeding import as_feed, bound, interface_of
from trp_onnx.errors import DataError
from trp_onnx.evaluation.outputs import ClassLabels, Told, labelled, output_kinds
from trp_onnx.graph.batching import find_batching
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
    data: str | PathLike[str] | Dataset,
    *,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
) -> Accuracy:
    """Measure the top-1 accuracy of an ONNX or `.ort` file.

    The first input of the model takes the samples, the output that has one score a class for each sample is read (of
    several see `outputs`); both may have further dimensions of size 1.

    Args:
        model: The file.
        data: An `.npz` file, an image folder, or an open `Dataset`.
        preprocessing: How samples become inputs; not with a `Dataset`, which has its own.
        limit: Only the first so many samples.

    Raises:
        ModelError: The model cannot be loaded or run.
        DataError: The data cannot be read, has no labels, or does not fit the model.
    """
    dataset = data if isinstance(data, Dataset) else open_data(Path(data), preprocessing)
    if dataset.labels is None:
        raise DataError(f"'{dataset.source}' has no labels: accuracy cannot be measured")
    session = open_session(Path(model))
    opened = open_model(Path(model)) if Path(model).suffix.lower() != ".ort" else interface_of(session)
    dataset = bound(dataset, opened)
    count = len(dataset) if limit is None else min(limit, len(dataset))
    batching = find_batching(session, as_feed(opened, dataset.take(np.arange(min(2, count)))[0]), most=BATCH)
    offset = dataset.preprocessing.label_offset
    correct, named = 0, ""
    for piece in track(batching.pieces(count), f"evaluating {Path(model).name}"):
        x, y = dataset.take(np.arange(piece.start, piece.stop))
        assert y is not None
        feeds = {name: batching.filled(array) for name, array in as_feed(opened, x).items()}
        outputs = run_session(session, feeds)
        named = named or _named(outputs, len(x), ClassLabels.of(dataset.labels, offset), str(model))
        scores = outputs[named].reshape(len(outputs[named]), -1)[: len(x), offset:]
        if y.min() < 0 or y.max() >= scores.shape[1]:
            wrong = int(y.min() if y.min() < 0 else y.max())
            raise DataError(
                f"'{dataset.source}' has label {wrong}, but the model has {scores.shape[1]} classes "
                f"(0 to {scores.shape[1] - 1}): see --label-offset"
            )
        correct += int((scores.argmax(axis=1) == y).sum())
    return Accuracy(correct, count)


def check_labels(model: Path, dataset: Dataset) -> None:
    """Refuse a data set on which the accuracy of a file could not be measured, before any work.

    The samples of the smallest and the largest label are run.

    Raises:
        ModelError: See `evaluate`.
        DataError: See `evaluate`.
    """
    labels = dataset.labels
    ends = [] if labels is None or not len(labels) else sorted({int(labels.argmin()), int(labels.argmax())})
    evaluate(model, dataset.subset(np.array(ends, dtype=np.int64)) if ends else dataset)


def _named(outputs: Arrays, count: int, labels: ClassLabels | None, model: str) -> str:
    """The output that labels speak of."""
    each = {name: output[:count] for name, output in outputs.items() if output.ndim and len(output) >= count}
    name = labelled(output_kinds(None, each, Told(labels=labels)))
    if name is None:
        raise DataError(
            f"'{model}' has no output with one score a class for each sample: its accuracy cannot be measured"
        )
    return name
