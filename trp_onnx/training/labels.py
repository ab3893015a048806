"""Labels that a network can learn from: whole numbers that name classes, one a sample or one at each of its places.

Of several labels a sample those that are negative or 255 count for nothing, see `evaluation.outputs.counted`. Where
samples have different numbers of labels, a data set holds an object array of one array a sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trp_onnx.evaluation.outputs import counted

IGNORED = -1
"""The class of a place whose label does not count."""


def stacked(labels: np.ndarray) -> np.ndarray:
    """Labels of samples that have as many each as one array, (b, ...); all others as they are."""
    alike = labels.dtype.kind == "O" and len({np.shape(label) for label in labels}) == 1
    return np.stack(list(labels)) if alike else labels


def joined(batches: Sequence[np.ndarray]) -> np.ndarray:
    """The labels of several batches, (n, ...), or of each sample an array where their numbers differ."""
    if len({labels.shape[1:] for labels in batches}) == 1:
        return np.concatenate(batches)
    each = [label for labels in batches for label in labels]
    found = np.empty(len(each), object)
    found[:] = each
    return found


def name_classes(labels: np.ndarray | None) -> bool:
    """Whether they are whole numbers."""
    return labels is not None and all(part.dtype.kind in "iub" for part in _parts(labels))


def class_range(labels: np.ndarray) -> tuple[int, int]:
    """The smallest and the largest class."""
    found = [part[counted(part)] for part in _parts(labels)]
    some = [part for part in found if part.size]
    return (min(int(part.min()) for part in some), max(int(part.max()) for part in some)) if some else (0, 0)


def targets_of(labels: np.ndarray, offset: int) -> np.ndarray:
    """Labels (b, ...) as the outputs to choose, (b * places,) int64.

    Args:
        labels: Of samples that have as many each.
        offset: Outputs before the first class.
    """
    return np.where(counted(labels), labels.astype(np.int64) + offset, IGNORED).reshape(-1)


def count_right(scores: np.ndarray, axis: int, labels: np.ndarray, offset: int) -> tuple[int, int]:
    """How many labels have the largest score, and how many count.

    Args:
        scores: An output, one score a class along `axis` for each label.
        axis: Of classes.
        labels: (b, ...).
        offset: Outputs before the first class.
    """
    rows = np.moveaxis(scores, axis, -1).reshape(-1, scores.shape[axis])[:, offset:]
    wanted = counted(labels)
    return int(((rows.argmax(axis=1) == labels.reshape(-1)) & wanted.reshape(-1)).sum()), int(wanted.sum())


def _parts(labels: np.ndarray) -> list[np.ndarray]:
    """One array of all labels, or one a sample where they differ in number."""
    return [np.asarray(part)[None] for part in labels] if labels.dtype.kind == "O" else [labels]
