"""A result in words: the verdict in one sentence, and what a layer became."""

from __future__ import annotations

from collections.abc import Callable

from trp_onnx.planning import Decision
from trp_onnx.planning.outlook import LEAST_SPEEDUP, MULTIPLIES, SLOWS, Outlook
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


def outlook_in_words(outlook: Outlook | None) -> str:
    """The verdict on a network before anything is compressed: one paragraph."""
    if outlook is None:
        return "No verdict: not all MACs of the network are known; give --input-shape where sizes are dynamic."
    said = [_by_rank(outlook), _by_width(outlook), _by_training(outlook), _by_int8(outlook), _judged_by(outlook)]
    return " ".join(sentence for sentence in said if sentence)


def _times(outlook: Outlook, speedup: float) -> str:
    """Rounded down: it is a prediction."""
    return f"{int(20 * speedup) / 20:.2f} times {'as fast' if outlook.judged_by == 'time' else 'fewer MACs'}"


def _by_rank(outlook: Outlook) -> str:
    of = "as fast" if outlook.judged_by == "time" else "fewer MACs"
    if outlook.fastest < LEAST_SPEEDUP:
        return f"Nothing is to be won by ranks: at best {outlook.fastest:.2f} times {of}, whatever that loses."
    more = "" if outlook.at_a_loss is None else f"{_times(outlook, outlook.at_a_loss)} a few points"
    if outlook.by_rank is None:
        if not more:
            return f"Ranks alone do not help: {LEAST_SPEEDUP:g} times {of} is expected to cost more than a few points."
        return f"Ranks alone bring little: {LEAST_SPEEDUP:g} times {of} is expected to cost over a point, and {more}."
    goal = f"--speedup {int(20 * outlook.by_rank) / 20:g}"
    if outlook.judged_by == "MACs":
        goal = f"--macs {1 / outlook.by_rank:.2f}"
    return (
        f"By ranks alone, {_times(outlook, outlook.by_rank)} is expected to cost about a point of the task's score at "
        f"most, and {more}: trp-onnx compress MODEL -o OUT {goal} --data SAMPLES --asymmetric, in about "
        f"{outlook.minutes:.0f} minutes."
    )


def _by_width(outlook: Outlook) -> str:
    if not outlook.open_spaces:
        return ""
    spaces = "1 space" if outlook.open_spaces == 1 else f"{outlook.open_spaces} spaces"
    return f"compress with --data also tries to remove channels, of {spaces}; what that brings is not predicted here."


def _by_training(outlook: Outlook) -> str:
    if outlook.by_training is None or outlook.training_minutes is None:
        return "How far training (--train) goes on networks like it was not measured beyond a few hundred steps."
    return (
        "Training (--train) took two ResNets of 3x3 convolutions to 2.5 times fewer MACs for about half a point; here "
        f"that is {_times(outlook, outlook.by_training)}, at a loss that is not known, in about "
        f"{outlook.training_minutes:.0f} minutes on two cores (500,000 samples)."
    )


def _by_int8(outlook: Outlook) -> str:
    if "int8" not in outlook.means:
        return "int8 (trp-onnx quantize) was not measured on networks like it."
    both = "for layers as small as these, low rank made int8 slower: take one of them"
    if outlook.macs_a_layer >= MULTIPLIES:
        both = "for layers as large as these, low rank made it faster still"
    elif outlook.macs_a_layer >= SLOWS:
        both = "whether low rank makes it faster still has to be tried"
    return (
        "int8 (trp-onnx quantize) made such networks 2.2 to 3.4 times as fast for 0.04 points at most, where the "
        f"processor has int8 dot products; {both}."
    )


def _judged_by(outlook: Outlook) -> str:
    speed = f"the latency table of {outlook.kernels}" if outlook.kernels else "MACs, of which time follows a part"
    better = [] if outlook.kernels else ["--latency-table (from trp-onnx profile)"]
    better += [] if outlook.errors_of == "outputs" else ["--data"]
    told = f"This is predicted, by {speed}, and by the spectra of {outlook.errors_of}"
    return f"{told}." if not better else f"{told}; {' and '.join(better)} would tell more."


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
