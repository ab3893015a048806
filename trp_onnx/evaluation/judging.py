"""What a candidate loses against the original, in the unit of a metric, measured on its file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from trp_onnx.data import Dataset
from trp_onnx.errors import UsageError
from trp_onnx.evaluation.built_in import RELATIVE_ERROR
from trp_onnx.evaluation.evaluation import Evaluation, Given
from trp_onnx.evaluation.metric import Asked, Scores
from trp_onnx.evaluation.outputs import Output
from trp_onnx.graph.session import Arrays


@dataclass(frozen=True)
class Judge:
    """One way to judge candidates.

    Attributes:
        evaluation: The metric, the original and the samples.
        measure: What is lost, and on what, for people: "points of top-1 on 1000 held-out samples".
    """

    evaluation: Evaluation
    measure: str

    def lost(self, candidate: Path) -> float:
        """What the file of a candidate loses, in the metric's unit.

        Raises:
            ModelError: It does not run.
        """
        return self.evaluation.scores(candidate).lost

    def scores(self, candidate: Path, allowed: float) -> Scores:
        """The same, with what both files score and what may be lost."""
        return replace(self.evaluation.scores(candidate), allowed=allowed)


def judge(
    metric: Asked | None, original: Path, held_out: Dataset, said: Mapping[str, Output] | None = None
) -> Judge:  # fmt: skip
    """Judge by a metric on samples that nothing was fitted to; the original is measured now.

    Args:
        metric: What is asked for; by default top-1 where labels name classes, agreement where there are none.
        original: The original.
        held_out: The samples.
        said: What a user says of outputs.

    Raises:
        UsageError: The metric is none, or gives the original no finite value, of which a part could be lost.
        DataError: The samples or their labels do not fit.
        ModelError: The original does not run, or has no output that the metric can read.
    """
    evaluation = Evaluation(metric, original, held_out, said)
    chosen, before = evaluation.metric, evaluation.before.value
    if not math.isfinite(before):
        raise UsageError(
            f"--metric {chosen.name} gives the original {chosen.text(before)}, of which nothing can be lost: judge by "
            "another one"
        )
    return Judge(evaluation, f"{chosen.counted} on {len(held_out)} held-out samples")


def judge_by_error(original: Path, feeds: Arrays, fed: str, said: Mapping[str, Output] | None = None) -> Judge:
    """Judge by the relative error of the outputs, where there are no samples.

    Args:
        original: The original.
        feeds: What it and candidates run on.
        fed: What that is, for people.
        said: What a user says of outputs.

    Raises:
        ModelError: The original does not run.
    """
    return Judge(Evaluation(RELATIVE_ERROR, original, Given(feeds, fed), said), f"{RELATIVE_ERROR.counted} on {fed}")
