"""Plans on trial: a network with a plan's shapes, timed against the original on the machine at hand.

What a kernel takes depends on shapes, not on values. So a plan can be timed before it is carried out: its factors hold
random values, of the size of the weight that they stand for, and need no decomposition and no data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.layers import Layer
from trp_onnx.graph.model import write_model
from trp_onnx.graph.session import Arrays
from trp_onnx.latency.int8 import in_precision
from trp_onnx.latency.pace import Pace, measure_at
from trp_onnx.latency.profiling import measure_points
from trp_onnx.latency.table import LatencyTable, Target
from trp_onnx.latency.timing import Ratio, Timing
from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.schemes import Rank, Scheme
from trp_onnx.passes import CleanUpPass, CutChannelsPass, FactorisePass, FoldBatchNormPass
from trp_onnx.progress import watch
from trp_onnx.runners import Runner, open_runner

ROUNDS, SECONDS = 100, 3.0
"""A candidate is timed in at most so many rounds, or in about so many seconds."""

SPELL = 1.08
"""A trial in which the original took so many times what it is known to take fell into a slow spell."""

STEADY, LONGER = 0.03, (1, 4, 10)
"""Where the interval is wider than this part of the ratio, it is timed again, so many times as long as at first."""

Chosen = Mapping[str, tuple[str, Rank]]
"""Scheme and rank by layer name."""

Kept = Mapping[str, Sequence[int]]
"""The units that stay, by the name of their space; other spaces stay whole."""


@dataclass(frozen=True)
class Trial:
    """A plan that was timed.

    Attributes:
        predicted: Speed-up by the latency table.
        measured: Speed-up of a file with its shapes.
        pace: Seconds of one run of the original meanwhile, when nothing slowed it down.
    """

    predicted: float
    measured: Ratio
    pace: float = 0.0


class Trials:
    """Times plans of one network."""

    def __init__(
        self,
        source: Path,
        normal: ir.Model,
        feeds: Arrays,
        folder: Path,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        runner: Runner | None = None,
    ) -> None:
        """Say what and where.

        Args:
            source: The original file.
            normal: The same, normalised; not changed.
            feeds: What both are run on.
            folder: Where candidates are written, and removed again.
            input_shapes: Sizes of dynamic inputs.
            runner: What runs them; this process otherwise.
        """
        self._source, self._normal, self._feeds, self._folder = source, normal, feeds, folder
        self._input_shapes, self._runner = input_shapes, runner or open_runner()
        self._pace: Pace | None = None
        self._base: Path | None = None

    def possible(self, table: LatencyTable) -> bool:
        """Whether a table was measured here, so that plans by it can be timed."""
        return table.target.is_here(self._runner)

    def refined(
        self, table: LatencyTable, layers: Sequence[Layer], chosen: Chosen, widths: Mapping[str, tuple[int, int]]
    ) -> LatencyTable:
        """The table with what was chosen timed; the same one where all of it is.

        Args:
            table: Of this network.
            layers: Its layers.
            chosen: Scheme and rank by layer name.
            widths: Inputs and outputs that are left of the layers that are cut.
        """
        return measure_points(table, layers, chosen, self._runner, widths)

    def _cut(self, kept: Kept | None) -> ir.Model:
        """A copy of the network with what stays of its spaces."""
        model = self._normal.clone()
        if kept:
            CutChannelsPass(kept, input_shapes=self._input_shapes)(model)
        return model

    def stale(self, trial: Trial) -> bool:
        """Whether a trial fell into a slow spell of the machine, as is known by now."""
        return self._pace is not None and trial.pace > SPELL * self._pace.seconds

    def time(self, table: LatencyTable, predicted: float, chosen: Chosen, kept: Kept | None = None) -> Trial:
        """A network with these ranks and widths against the original, on the table's target.

        A slow spell of the machine is waited out, for a while.

        Args:
            table: Says the provider, the threads and the precision.
            predicted: Speed-up by that table.
            chosen: Scheme and rank by layer name; of layers that are cut as well, the rank is of what is left.
            kept: The units that stay, by space.

        Raises:
            ModelError: The candidate does not run.
            OutputError: It cannot be written.
        """
        path = self._folder / "candidate.onnx"
        try:
            base = self._base = self._base or self._dense(table.target)
            self._write(path, chosen, kept, table.target)
            pace = self._pace = self._pace or Pace(base, self._feeds, table.target)
            for longer in LONGER:
                found = self._time([base, path], table.target, pace, longer)
                if found.ratios[1].width <= STEADY:
                    break
            return Trial(predicted, found.ratios[1], found.pace if found.slow else pace.seconds)
        finally:
            for file in self._folder.glob(f"{path.name}*"):
                file.unlink()

    def _time(self, pair: Sequence[Path], target: Target, pace: Pace, longer: int) -> Timing:
        rounds = ROUNDS * longer
        self._runner.prepare(pair, self._feeds, target.provider, target.threads)
        with watch("timing a candidate") as show:
            return measure_at(
                pace, self._runner.run, 2, rounds, limit_seconds=SECONDS * longer,
                on_round=lambda done: show(done, rounds, "timing a candidate"),
            )  # fmt: skip

    def _dense(self, target: Target) -> Path:
        """The original as it is to run."""
        if target.precision == "float":
            return self._source
        path = self._folder / "original-int8.onnx"
        write_model(in_precision(self._normal, target.precision, self._feeds), path)
        return path

    def _write(self, path: Path, chosen: Chosen, kept: Kept | None, target: Target) -> None:
        model = self._cut(kept)
        FactorisePass(chosen, _random, input_shapes=self._input_shapes)(model)
        FoldBatchNormPass()(model)
        CleanUpPass()(model)
        write_model(in_precision(model, target.precision, self._feeds), path)


def _random(layer: Layer, scheme: Scheme, rank: Rank) -> tuple[Sequence[Array], None]:
    """Factors whose product is about as large as the weight: no value over- or underflows that did not before."""
    assert layer.geometry is not None
    weight, rng = layer.weight(), np.random.default_rng(0)
    factors = [rng.standard_normal(shape) for shape in scheme.shapes(layer.geometry, rank)]
    factors = [factor / sqrt(max(1, prod(factor.shape[2:]))) for factor in factors]
    fan_in = max(1, prod(weight.shape[2:]))
    factors[-1] *= float(np.sqrt(np.mean(weight**2)) * sqrt(fan_in))
    return factors, None
