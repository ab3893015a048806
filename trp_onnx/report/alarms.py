"""Warnings of a result that is worse than a user could want; docs/planning.md has the thresholds.

What is closest to the task counts: accuracy where it was measured, else agreement with the original, else the error of
the outputs.
"""

from __future__ import annotations

from trp_onnx.report.document import Report

LOST_ACCURACY = 0.05
"""Top-1 accuracy, 0 to 1, whose loss is a warning."""

LEAST_AGREEMENT = 0.9
"""Agreement with the original, 0 to 1, below which the result is a warning."""

LARGEST_ERROR = 0.4
"""Relative error of an output, `|y - y'|_2 / |y|_2`, above which the result is a warning."""


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
    ruined = [output for output in report.outputs if output.relative_error > LARGEST_ERROR]
    return tuple(
        f"the network may be ruined: output '{output.name}' moves by {output.relative_error:.0%} of its size on "
        f"{report.verified_on}; {_ADVICE}"
        for output in ruined
    )


_ADVICE = "ask for less, give samples by --data, or train (--train)"
