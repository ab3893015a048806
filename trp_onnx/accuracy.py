"""Accuracy of a file on data: the number that counts is measured on what was written."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from trp_onnx.batching import find_batching
from trp_onnx.data import Dataset, Preprocessing, open_data
from trp_onnx.errors import DataError
from trp_onnx.model import open_model
from trp_onnx.outputs import classes_of, scores_of
from trp_onnx.progress import track
from trp_onnx.runtime import Arrays, open_session, run_session
from trp_onnx.sizes import real_inputs

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
    several see `outputs.scores_of`); both may have further dimensions of size 1.

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
    opened = open_model(Path(model)) if Path(model).suffix.lower() != ".ort" else _interface(session)
    count = len(dataset) if limit is None else min(limit, len(dataset))
    batching = find_batching(session, as_feed(opened, dataset.take(np.arange(min(2, count)))[0]), most=BATCH)
    offset = dataset.preprocessing.label_offset
    correct, named = 0, ""
    for piece in track(batching.pieces(count), f"evaluating {Path(model).name}"):
        x, y = dataset.take(np.arange(piece.start, piece.stop))
        assert y is not None
        feeds = {name: batching.filled(array) for name, array in as_feed(opened, x).items()}
        outputs = run_session(session, feeds)
        named = named or _named(outputs, len(x), classes_of(dataset.labels, offset), str(model))
        scores = outputs[named].reshape(len(outputs[named]), -1)[: len(x), offset:]
        if y.min() < 0 or y.max() >= scores.shape[1]:
            wrong = int(y.min() if y.min() < 0 else y.max())
            raise DataError(
                f"'{dataset.source}' has label {wrong}, but the model has {scores.shape[1]} classes "
                f"(0 to {scores.shape[1] - 1}): see --label-offset"
            )
        correct += int((scores.argmax(axis=1) == y).sum())
    return Accuracy(correct, count)


def as_feed(model: ir.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    """Samples in the type and size of the model's one input; a short batch is filled up.

    Raises:
        DataError: The model has several inputs, or takes samples of another shape.
    """
    first, *others = real_inputs(model)
    if others:
        raise DataError(f"the model has {len(others) + 1} inputs; only models with one can take such data")
    expected = [d if isinstance(d, int) else None for d in first.shape or ()]
    fits = first.shape is None or (
        len(expected) == x.ndim
        and all(want in (None, have) for want, have in zip(expected[1:], x.shape[1:], strict=True))
    )
    if not fits:
        want = "x".join("?" if d is None else str(d) for d in expected[1:])
        have = "x".join(map(str, x.shape[1:]))
        raise DataError(
            f"the model takes samples of {want} at input '{first.name}', the data gives {have}: "
            "see --crop, --resize and --layout"
        )
    if expected and expected[0] is not None and len(x) < expected[0]:
        x = np.concatenate([x, np.repeat(x[-1:], expected[0] - len(x), axis=0)])
    dtype = first.dtype.numpy() if first.dtype is not None else np.float32
    return {first.name or "": x.astype(dtype)}


def _interface(session: Any) -> ir.Model:
    """The inputs of an `.ort` file, which only the runtime reads, as a model that has nothing else."""
    types = {"tensor(float)": ir.DataType.FLOAT, "tensor(float16)": ir.DataType.FLOAT16}
    inputs = [
        ir.Value(name=given.name, shape=ir.Shape(given.shape), type=ir.TensorType(types[given.type]))
        for given in session.get_inputs()
        if given.type in types
    ]
    return ir.Model(ir.Graph(inputs, [], nodes=[], opset_imports={"": 17}), ir_version=8)


def _named(outputs: Arrays, count: int, classes: int, model: str) -> str:
    """The output that labels speak of."""
    each = {name: output[:count] for name, output in outputs.items() if output.ndim and len(output) >= count}
    name = scores_of(each, classes) or scores_of(each)
    if name is None:
        raise DataError(
            f"'{model}' has no output with one score a class for each sample: its accuracy cannot be measured"
        )
    return name
