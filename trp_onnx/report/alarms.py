"""Warnings of a result that is worse than a user could want; docs/planning.md has the thresholds.

What is closest to the task counts: a score where one was measured, and its metric says what loss is ruin, else the
error of the outputs.
"""

from __future__ import annotations

from trp_onnx.evaluation.comparison import OutputDifference
from trp_onnx.report.document import Report

LARGEST_ERROR = 0.4
"""Relative error of an output, `|y - y'|_2 / |y|_2`, above which the result is a warning."""

LARGEST_HIDDEN_ERROR = 0.8
"""Of channels that larger ones hide (see `comparison`): error over spread above which the result is a warning."""


def alarms(report: Report) -> tuple[str, ...]:
    """What a user must see before this result ships; empty where nothing is ruined."""
    scores = report.score
    if scores is not None and scores.metric.ruinous is not None:
        if scores.lost <= scores.metric.ruinous:
            return ()
        metric = scores.metric
        before, after = metric.text(scores.before.value), metric.text(scores.after.value)
        moves = "falls" if metric.higher_is_better else "rises"
        return (
            f"the network is ruined: {metric.name} {moves} from {before} to {after} on {scores.after.on}; {_ADVICE}",
        )
    moved = ((output.name, _moved(output)) for output in report.outputs)
    return tuple(
        f"the network may be ruined: output '{name}' {how} on {report.verified_on}; {_ADVICE}"
        for name, how in moved
        if how
    )


def _moved(output: OutputDifference) -> str:
    if output.relative_error > LARGEST_ERROR:
        if output.measure != "relative error":
            return f"has {output.relative_error:.0%} other answers"
        return f"moves by {output.relative_error:.0%} of its size"
    if output.hidden_error is not None and output.hidden_error > LARGEST_HIDDEN_ERROR:
        return f"moves in its small channels by {output.hidden_error:.0%} of their spread"
    return ""


_ADVICE = "ask for less, give more samples by --data, or train (--train)"
