"""Recovery: a compressed network learns from the original what it lost, on samples without labels.

    loss = sum_o D_o(y_o, t_o) + mean_b |h_b - t_b|^2 / var t_b

with y_o the outputs and D_o their distances (`losses`), h_b what layer b of the network gives, where it has the shape
of the original's, and t what the original gives for the same view of the sample: each step draws fresh views. The inner
values keep a few hundred samples from being learnt by heart (Romero et al. 2015; Wang and Wu 2023, "Practical network
acceleration with tiny sets").

First the step size is searched: short runs from the start, the best of which goes on. Runs are judged by how far the
outputs are on held-out samples; what is kept is the best of all, the start included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx_ir as ir

from trp_onnx.data import Dataset
from trp_onnx.errors import TrainingError
from trp_onnx.evaluation.outputs import Output, Told
from trp_onnx.files.staging import write_text
from trp_onnx.graph.inputs import Samples, inputs_of
from trp_onnx.graph.model import open_model
from trp_onnx.graph.session import Arrays
from trp_onnx.passes.normalise import normalise
from trp_onnx.planning import LayerRule, Plan, SpaceRule, read_rules
from trp_onnx.training.inner_values import inner_values
from trp_onnx.training.job import PLAN, REQUEST, TRIALS
from trp_onnx.training.options import TrainingOptions, View
from trp_onnx.training.run import TrainingRun, digest_of, take_over
from trp_onnx.training.run_folder import RunFolder
from trp_onnx.training.views import safe_views

_OPTIONS = TrainingOptions(
    epochs=10**9, optimizer="adam", warmup=10, weight_decay=0.0, labels=0.0, temperature=1.0, augment=(),
    checkpoint_seconds=30.0,
)  # fmt: skip
"""Time ends it, not epochs."""

_BATCH, _MICRO_BYTES = 32, 8 << 20
"""Samples of a step, and bytes of those that run at once, as they are at the input."""

_HELD_OUT, _MOST_HELD_OUT = 0.25, 512
"""Part of the samples by which a run is judged, and how many at most."""

_RATES, _BELOW, _ABOVE = (3e-4, 1e-3), 1e-4, 3e-3
"""Step sizes that are tried first, and the third: below where the lower one is better, else above."""

_TRIAL = 0.06
"""Part of the time that each trial takes."""


@dataclass(frozen=True)
class Recovered:
    """What recovery came to, measured on samples that it did not learn from.

    Attributes:
        samples: How many those are.
        before: Distance of the outputs from the original's as the network was compressed, weighed as in the loss.
        after: The same of the network that is written.
        rate: Step size.
        tried: That distance after a short run, by step size.
        steps: Steps of the network that is written.
        seconds: Wall time, interruptions not counted.
        views: How samples were changed: "crop", "flip", "color".
    """

    samples: int
    before: float
    after: float
    rate: float
    tried: dict[str, float]
    steps: int
    seconds: float
    views: tuple[View, ...]

    def notes(self) -> list[str]:
        """What the owner should know."""
        if self.after < self.before:
            return []
        return [
            f"--recover gained nothing on {self.samples} held-out samples: the weights are as compression left them"
        ]


class Recovery:
    """A run folder in which a network recovers; a context manager."""

    def __init__(
        self, folder: Path, dataset: Dataset, minutes: float, source: Path, original: ir.Model, request: str,
        said: Mapping[str, Output],
    ) -> None:  # fmt: skip
        """Open the data and the folder, and start the worker.

        Args:
            folder: The run directory; what was interrupted there goes on.
            dataset: Samples to learn from, none of which judges the result.
            minutes: Wall time.
            source: The original's file.
            original: The original.
            request: All that the plan follows from, as text.
            said: What a user says of outputs.

        Raises:
            TrainingError: There is no training runtime, or the folder holds another run.
            DataError: There are too few samples.
            UsageError: The folder is somebody else's.
            OutputError: The folder cannot be made.
        """
        self._folder, self._source, self._minutes = folder, source, minutes
        self._inputs, self._said = inputs_of(original), said
        self._request = hashlib.sha256(f"{digest_of(source)} {minutes} {request}".encode()).hexdigest()
        RunFolder(folder).check()
        if self._begun and (folder / REQUEST).read_text(encoding="utf-8", errors="replace") != self._request:
            raise TrainingError(
                f"'{folder}' holds the recovery of another model or for another goal: give the command that began it, "
                "or remove the folder"
            )
        self._options = _options_for(dataset)
        self._run = TrainingRun(
            folder, dataset, None, self._options, source, resume=None, keep=False, inputs=self._inputs, said=said
        )  # fmt: skip

    @property
    def _begun(self) -> bool:
        return (self._folder / REQUEST).is_file()

    @property
    def planned(self) -> tuple[LayerRule | SpaceRule, ...] | None:
        """The plan of the recovery that was interrupted, where one was."""
        return tuple(read_rules(self._folder / PLAN)) if self._begun else None

    def recover(self, model: ir.Model, plan: Plan) -> Recovered:
        """Train a compressed network, in place.

        Args:
            model: The network.
            plan: What made it smaller; kept, so that who is interrupted goes on with it.

        Raises:
            TrpOnnxError: The runtime cannot train it, or the worker died.
        """
        plan.save(self._folder / PLAN)
        write_text(self._folder / REQUEST, self._request)
        views = safe_views(self._run, self._source, self._inputs, Told(self._said, self._run.labels))
        options = replace(self._options, augment=views)
        inner = inner_values(model, normalise(open_model(self._source)), self._run.few)
        tried: dict[float, _Outcome] = {}
        for folder in TRIALS:
            rate = _next_rate(tried)
            some = replace(options, rate=rate, minutes=_TRIAL * self._minutes)
            tried[rate] = self._train(folder, model, some, inner, f"step size {rate:g}")
        rate, best = max(tried.items(), key=lambda item: item[1].score)
        take_over(model, best.weights)
        spent = sum(outcome.seconds for outcome in tried.values())
        rest = replace(options, rate=rate, minutes=max(_TRIAL * self._minutes, self._minutes - spent / 60))
        last = self._train("", model, rest, inner, "recovering")
        take_over(model, last.weights)
        return Recovered(
            self._run.held_out, -best.first, -last.score, rate, {f"{r:g}": -o.score for r, o in sorted(tried.items())},
            best.step + last.step, spent + last.seconds, views,
        )  # fmt: skip

    def _train(
        self, folder: str, model: ir.Model, options: TrainingOptions, inner: Sequence[str], what: str
    ) -> _Outcome:  # fmt: skip
        weights, state = self._run.stage(self._folder / folder, model, options, what, inner=inner, keeps_start=True)
        return _Outcome(weights, *(state[name] for name in ("first", "score", "step", "seconds")))

    def __enter__(self) -> Recovery:
        self._run.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run.__exit__(kind, error, trace)

    def remove(self) -> None:
        """The result is written: the directory has done its work."""
        self._run.remove()


@dataclass(frozen=True)
class _Outcome:
    """What a run came to: scores are negative distances on held-out samples.

    Attributes:
        weights: By name.
        first: Of the start.
        score: Of the weights.
        step: At which they were kept.
        seconds: Of the run.
    """

    weights: Arrays
    first: float
    score: float
    step: int
    seconds: float


def _options_for(dataset: Dataset) -> TrainingOptions:
    """How so many samples are learnt from."""
    count = len(dataset)
    held_out = min(_HELD_OUT, _MOST_HELD_OUT / count)
    batch = max(1, min(_BATCH, count - round(count * held_out)))
    size = Samples(dataset.inputs, dataset.take(np.zeros(1, int))).bytes_each
    return replace(_OPTIONS, batch=batch, micro_batch=max(1, min(batch, _MICRO_BYTES // size)), validation=held_out)


def _next_rate(tried: Mapping[float, _Outcome]) -> float:
    """The step size to try next."""
    if len(tried) < len(_RATES):
        return _RATES[len(tried)]
    low, high = (tried[rate].score for rate in _RATES)
    return _BELOW if low > high else _ABOVE
