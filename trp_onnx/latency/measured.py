"""What a plan came to in time: the written file beside the original, interleaved, on the machine at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from trp_onnx.errors import ModelError
from trp_onnx.graph.model import open_model
from trp_onnx.graph.session import feeds_for
from trp_onnx.latency.int8 import file_in_precision
from trp_onnx.latency.pace import Pace, measure_at
from trp_onnx.latency.table import LatencyTable, target_of
from trp_onnx.latency.timing import Ratio, measure
from trp_onnx.latency.trial import Trial
from trp_onnx.progress import watch
from trp_onnx.runners import open_runner

ROUNDS, SECONDS = 100, 20.0
"""Where ranks were planned by time; it ends earlier where the interval is narrow."""

SHORT = 0.03
"""A file that is slower than asked by more than this part of it is a note."""

BRIEF_ROUNDS, BRIEF_SECONDS = 16, 1.0
"""Where nothing was planned by time: enough to say what the file came to."""


@dataclass(frozen=True)
class Latency:
    """Time of the written file against the original's.

    Attributes:
        target: What the ranks were planned for, or the machine at hand.
        predicted: Speed-up by the latency table; None without one.
        measured: Speed-up of the file; None where the table is of another machine, runtime or provider, or where
            onnxruntime has no kernels for the network.
        milliseconds: Median run of the original and of the written file; they drift, for orientation.
        asked: The speed-up that was asked for; None where it was something else.
        trials: The plans that were timed on the way to it.
        doubts: Why the measured speed-up may not be that of a quiet machine.
    """

    target: str
    predicted: float | None
    measured: Ratio | None
    milliseconds: tuple[float, float] | None
    asked: float | None = None
    trials: tuple[Trial, ...] = ()
    doubts: tuple[str, ...] = ()

    def on_the_way(self, asked: float | None, trials: tuple[Trial, ...]) -> Latency:
        """The same, with what was asked for and tried."""
        return replace(self, asked=asked, trials=trials)

    def notes(self) -> tuple[str, ...]:
        """Where the written file is slower than was asked; and what is in doubt, where ranks were planned by time."""
        doubts = self.doubts if self.predicted is not None else ()
        if self.asked is None or self.measured is None or self.measured.median >= (1 - SHORT) * self.asked:
            return doubts
        return (
            *doubts,
            f"the written file was measured {self.measured.median:.2f}x as fast, short of --speedup {self.asked:g}, "
            "though a candidate of its shapes was not: time both again with trp-onnx bench, when the machine is quiet",
        )


def realise(
    table: LatencyTable | None,
    predicted: float | None,
    before: Path,
    after: Path,
    input_shapes: Mapping[str, Sequence[int]] | None,
    threads: int = 1,
    *,
    original: ir.Model | None = None,
) -> Latency:
    """Time both files on the machine at hand, unless the table was measured on another.

    Args:
        table: By which ranks were planned; None where they were planned by something else.
        predicted: Speed-up by that table.
        before: The original.
        after: The written file.
        input_shapes: Sizes of dynamic inputs.
        threads: Intra-op threads, where there is no table.
        original: What was opened of the original, if it was.

    Returns:
        The time; without a measured one where a file does not run in onnxruntime and nothing was planned by time.

    Raises:
        ModelError: A file does not run, and was planned by time.
    """
    rounds = ROUNDS if table is not None else BRIEF_ROUNDS
    with open_runner() as runner:
        target = table.target if table is not None else target_of(runner, "cpu", threads)
        if not target.is_here(runner):
            return Latency(str(target), predicted, None, None)
        feeds = feeds_for(original or open_model(before), input_shapes)
        before, after = (
            file_in_precision(file, after.parent / f"int8-{name}.onnx", target.precision, feeds, input_shapes)
            for name, file in (("before", before), ("after", after))
        )
        try:
            runner.prepare([before, after], feeds, target.provider, target.threads)
        except ModelError:  # it was verified in onnx's reference implementation
            if table is not None:
                raise
            return Latency(str(target), predicted, None, None)
        with watch("timing both files") as show:

            def shown(done: int) -> None:
                show(done, rounds, "timing both files")

            if table is None:
                timing = measure(
                    runner.run, 2, rounds, limit_seconds=BRIEF_SECONDS, warms=False, on_round=shown
                )  # fmt: skip
            else:
                pace = Pace(before, feeds, target)
                timing = measure_at(pace, runner.run, 2, rounds, limit_seconds=SECONDS, on_round=shown)
    first, second = timing.seconds
    doubts = timing.notes()
    return Latency(str(target), predicted, timing.ratios[1], (first * 1e3, second * 1e3), doubts=doubts)
