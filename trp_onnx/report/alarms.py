"""Warnings of a result that is worse than a user could want; docs/planning.md has the thresholds.

What is closest to the task counts: accuracy where it was measured, else agreement with the original, else the error of
the outputs.
"""

from __future__ import annotations

from trp_onnx.evaluation.comparison import OutputError
from trp_onnx.report.document import Report

LOST_ACCURACY = 0.05
"""Top-1 accuracy, 0 to 1, whose loss is a warning."""

LEAST_AGREEMENT = 0.9
"""Agreement with the original, 0 to 1, below which the result is a warning."""

LARGEST_ERROR = 0.4
"""Relative error of an output, `|y - y'|_2 / |y|_2`, above which the result is a warning."""

LARGEST_HIDDEN_ERROR = 0.8
"""Of channels that larger ones hide (see `comparison`): error over spread above which the result is a warning."""


def alarms(report: Report) -> tuple[str, ...]:
    """What a user must see before this result ships; empty where nothing is ruined."""
    before, after = report.accuracy_before, report.accuracy_after
    if before is not None and after is not None:
        lost = before.top1 - after.top1
        if lost <= LOST_ACCURACY:
            return ()
        return (
            f"the network is ruined: top-1 accuracy falls from {before.top1:.1%} to {after.top1:.1%} on "
            f"{after.samples} samples; {_ADVICE}",
        )
    agreement = report.agreement
    if agreement is not None:
        if agreement.value >= LEAST_AGREEMENT:
            return ()
        return (
            f"the network is ruined: {agreement.what} fall to {agreement.value:.1%} against the original on "
            f"{agreement.samples} samples; {_ADVICE}",
        )
    moved = ((output.name, _moved(output)) for output in report.outputs)
    return tuple(
        f"the network may be ruined: output '{name}' {how} on {report.verified_on}; {_ADVICE}"
        for name, how in moved
        if how
    )


def _moved(output: OutputError) -> str:
    if output.relative_error > LARGEST_ERROR:
        if output.measure != "relative error":
            return f"has {output.relative_error:.0%} other answers"
        return f"moves by {output.relative_error:.0%} of its size"
    if output.hidden_error is not None and output.hidden_error > LARGEST_HIDDEN_ERROR:
        return f"moves in its small channels by {output.hidden_error:.0%} of their spread"
    return ""


_ADVICE = "ask for less, give samples by --data, or train (--train)"
