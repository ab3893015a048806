"""What a plan came to in time: the written file beside the original, interleaved, on the machine at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trp_onnx.latency.table import LatencyTable, target_of
from trp_onnx.latency.timing import Ratio, measure
from trp_onnx.model import open_model
from trp_onnx.progress import watch
from trp_onnx.runners import open_runner
from trp_onnx.runtime import feeds_for

ROUNDS = 100


@dataclass(frozen=True)
class Latency:
    """Time of the written file against the original's.

    Attributes:
        target: What the ranks were planned for.
        predicted: Speed-up by the latency table.
        measured: Speed-up of the file; None where the table is of another machine, runtime or provider.
        milliseconds: Median run of the original and of the written file; they drift, for orientation.
    """

    target: str
    predicted: float | None
    measured: Ratio | None
    milliseconds: tuple[float, float] | None


def realise(
    table: LatencyTable,
    predicted: float | None,
    before: Path,
    after: Path,
    input_shapes: Mapping[str, Sequence[int]] | None,
) -> Latency:
    """Time both files, where the table was measured on the machine at hand.

    Raises:
        ModelError: A file does not run.
    """
    target = table.target
    with open_runner() as runner:
        if target != target_of(runner, target.provider, target.threads):
            return Latency(str(target), predicted, None, None)
        feeds = feeds_for(open_model(before), input_shapes)
        runner.prepare([before, after], feeds, target.provider, target.threads)
        with watch("timing both files") as show:
            timing = measure(runner.run, 2, ROUNDS, on_round=lambda done: show(done, ROUNDS, "timing both files"))
    first, second = timing.seconds
    return Latency(str(target), predicted, timing.ratios[1], (first * 1e3, second * 1e3))
