"""What a candidate loses against the original, in points, measured on its file.

accuracy     points of top-1 on labelled samples that nothing was fitted to
agreement    points by which its answers agree less than wholly with the original's, no labels needed
error        per cent of the outputs' relative error on given inputs, where there is no data
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from trp_onnx.data import Dataset
from trp_onnx.errors import VerificationError
from trp_onnx.evaluation.accuracy import evaluate
from trp_onnx.evaluation.agreement import measure_agreement
from trp_onnx.evaluation.comparison import compare
from trp_onnx.graph.session import Arrays, run_model


@dataclass(frozen=True)
class Judge:
    """One way to judge candidates.

    Attributes:
        measure: What is lost, and on what, for people: "points of top-1 accuracy on 1000 held-out samples".
        lost: Of the file of a candidate.
    """

    measure: str
    lost: Callable[[Path], float]


def by_accuracy(source: Path, held_out: Dataset) -> Judge:
    """Points of top-1 accuracy.

    Args:
        source: The original.
        held_out: Labelled samples.
    """
    before = evaluate(source, held_out)

    def lost(path: Path) -> float:
        found = evaluate(path, held_out)
        return 100 * (before.correct - found.correct) / found.samples  # of counts: a limit that is met is met exactly

    return Judge(f"points of top-1 accuracy on {before.samples} held-out samples", lost)


def by_agreement(source: Path, held_out: Dataset) -> Judge:
    """Points of agreement with the original.

    Args:
        source: The original.
        held_out: Samples; labels are not looked at.
    """

    def lost(path: Path) -> float:
        return 100 * (1 - measure_agreement(source, path, held_out).value)

    return Judge(f"points of agreement with the original on {len(held_out)} held-out samples", lost)


def by_error(original: ir.Model, feeds: Arrays, expected: Arrays, fed: str) -> Judge:
    """Per cent of relative output error, of several outputs the worst.

    Args:
        original: The original, opened.
        feeds: What candidates run on.
        expected: What the original gives on it.
        fed: What that is, for people.
    """

    def lost(path: Path) -> float:
        try:
            found = compare(original, expected, run_model(path, feeds))
            return 100 * max(max(error.relative_error, error.hidden_error or 0.0) for error in found)
        except VerificationError:  # no numbers any more
            return math.inf

    return Judge(f"per cent of relative output error on {fed}", lost)
