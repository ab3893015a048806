"""A result in words: the verdict in one sentence, and what a layer became."""

from __future__ import annotations

from collections.abc import Callable

from trp_onnx.planning import Decision
from trp_onnx.report.document import Report


def verdict(report: Report) -> str:
    """One sentence: how much faster, and at what loss; whether it should ship."""
    if report.warnings:
        return "Do not ship this as it is: see the warnings."
    return f"{_speed(report)}{_loss(report)}."


def _speed(report: Report) -> str:
    measured = report.latency.measured if report.latency is not None else None
    if measured is None:
        return f"It keeps {report.macs.remaining:.0%} of the MACs; its time was not measured here"
    if measured.low > 1:
        return f"It is {measured.median:.2f} times as fast as the original"
    if measured.high < 1:
        return f"It is slower than the original ({measured.median:.2f}x)"
    return "It is as fast as the original, within the noise of the measurement"


def _loss(report: Report) -> str:
    score = report.score
    if score is None:
        worst = max((output.relative_error for output in report.outputs), default=0.0)
        return f", and its outputs move by {worst:.1%}"
    error = score.standard_error
    if error is not None and abs(score.lost) <= 2 * error:
        return f", and its {score.metric.name} is the same within twice the standard error"
    moved = score.change if score.lost > 0 else f"{score.change}, a gain"
    return f", and its {score.metric.name} changes by {moved}"


def chain_of(decision: Decision) -> tuple[str, str, list[str]] | None:
    """Name of a factorised layer, what it was and what it became: "3x3, 64 → 64" and its factors."""
    if decision.scheme is None or decision.rank is None or decision.shape is None:
        return None
    groups, outputs, inputs, *kernel = decision.shape
    whole = [str(k) for k in kernel]
    first, last = decision.rank[0], decision.rank[-1]
    c, n, ones = inputs * groups, outputs * groups, ["1"] * len(kernel)
    tall, wide = [*whole[:-1], "1"], [*ones[:-1], *whole[-1:]]
    a, b = first * groups, last * groups
    steps: dict[str, Callable[[], list[str]]] = {
        "spatial": lambda: [_step(tall, c, a), _step(wide, a, n)],
        "spatial-mirror": lambda: [_step(wide, c, a), _step(tall, a, n)],
        "channel": lambda: [_step(whole, c, a), _step(ones, a, n)],
        "channel-mirror": lambda: [_step(ones, c, a), _step(whole, a, n)],
        "tucker2": lambda: [_step(ones, c, a), _step(whole, a, b), _step(ones, b, n)],
    }
    made = steps.get(decision.scheme, lambda: [_step(ones, c, a), _step(ones, a, n)])()
    return decision.name, _step(whole, c, n), made


def _step(kernel: list[str], inputs: int, outputs: int) -> str:
    size = "\u00d7".join(kernel)
    return f"{size}{', ' * bool(size)}{inputs} \u2192 {outputs}"
