"""One metric, the original, and the samples: what the original scores by it, and what any other file loses.

What the original gives is kept, where the metric wants it and memory allows, so that it does not run anew for each
other file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trp_onnx.data import Dataset
from trp_onnx.errors import DataError, UsageError
from trp_onnx.evaluation.built_in import AGREEMENT, BUILT_IN, MEAN_IOU, TOP_1, TOP_5
from trp_onnx.evaluation.metric import Asked, Metric, Running, Score, Scores, Setting, as_metric
from trp_onnx.evaluation.outputs import ClassLabels, Output, Told, joined, output_kinds
from trp_onnx.evaluation.verify import MAPPED_FROM
from trp_onnx.graph.batching import find_batching
from trp_onnx.graph.inputs import Run, inputs_of, interface_of
from trp_onnx.graph.model import open_model, weight_bytes
from trp_onnx.graph.session import Arrays, open_session, run_session, runner
from trp_onnx.progress import track
from trp_onnx.schema import check_type

if TYPE_CHECKING:
    import onnx

_BATCH, _MEMORY = 64, 64 << 20
"""Samples of a run at most, and bytes of the outputs of one."""

_LOOKED_AT = 32
"""Samples on which it is seen what outputs are."""

RunOn = Callable[[Arrays], Arrays]

_KEPT = 256 << 20
"""Bytes of the original's outputs that are kept."""


def choose_metric(asked: Asked | None, labels: np.ndarray | None, data: str, *, alone: bool = False) -> Metric:
    """What a user asks for; else top-1 where labels name classes, agreement where there are none.

    Args:
        asked: See `as_metric`.
        labels: Of the data.
        data: Where they come from, for messages.
        alone: Whether there is no original to compare with.

    Raises:
        UsageError: There is no such metric, or it wants an original.
        DataError: The metric wants labels, and there are none; labels name no classes, and none is asked for; or its
            function cannot be imported.
    """
    if asked is None and labels is None and alone:
        raise DataError(f"'{data}' has no labels: give the original by --against, or --metric")
    usual = AGREEMENT if labels is None else TOP_1
    metric = usual if asked is None else as_metric(asked, BUILT_IN)
    if metric in (TOP_1, TOP_5, MEAN_IOU) and labels is not None and labels.dtype.kind not in "iub":
        raise DataError(
            f"'{data}' has labels of type {labels.dtype}: {metric.name} takes whole numbers, or give another --metric"
        )
    if metric is MEAN_IOU and labels is None:
        metric = replace(metric, reference="original")
    if metric.reference == "labels" and labels is None:
        raise DataError(f"'{data}' has no labels, which --metric {metric.name} wants")
    if metric.reference == "original" and alone:
        raise UsageError(f"--metric {metric.name} compares with the original's outputs: give it by --against")
    return metric


@dataclass(frozen=True)
class Given:
    """Inputs that are given, or were generated: one run.

    Attributes:
        feeds: They themselves.
        name: What they are, for people.
    """

    feeds: Arrays
    name: str


class Evaluation:
    """What files score on the same samples.

    Attributes:
        metric: What is counted.
        before: The score of the original; by a metric that compares with it, against itself.
        kinds: What each output is.
    """

    def __init__(
        self,
        metric: Asked | None,
        original: Path | onnx.ModelProto,
        source: Dataset | Given,
        said: Mapping[str, Output] | None = None,
        *,
        alone: bool = False,
    ) -> None:
        """Measure the original.

        Args:
            metric: See `choose_metric`.
            original: The file, or the model in memory.
            source: What to run on.
            said: What a user says of its outputs, see `outputs.read_said`.
            alone: Whether the file is only measured itself, so that there is no original.

        Raises:
            ModelError: It does not run, or has no output that the metric can read.
            DataError: The samples or their labels do not fit it.
            UsageError: See `choose_metric`; the metric of a user failed; or what a user says of outputs is wrong.
        """
        self._kept, self._original, model, offset = dict[int, Arrays](), original, _interface(original), 0
        self._mapped = isinstance(source, Given) and model is not None and weight_bytes(model) > MAPPED_FROM
        self._labels: np.ndarray | None = None
        self._runs: Callable[[], Iterator[tuple[Run, slice]]]
        if isinstance(source, Given):
            run = Run(source.feeds, 1)
            run_on = self._load(original)
            self._runs = lambda: iter([(run, slice(0, 1))])
            self._name, self._samples, self._count = source.name, 1, 1
        else:
            session = open_session(original, mapped=self._mapped)
            inputs = inputs_of(model or interface_of(session))
            dataset = source.bound(inputs)
            first = dataset.take(np.arange(min(2, len(dataset))))[0]
            batching = find_batching(session, first, inputs, most=_BATCH, memory=_MEMORY)
            run_on, self._runs = partial(run_session, session), partial(dataset.runs, batching)
            self._name, self._labels, offset = dataset.source, dataset.labels, dataset.preprocessing.label_offset
            self._samples, self._count = len(dataset), len(batching.pieces(len(dataset)))
        self.metric = choose_metric(metric, self._labels, self._name, alone=alone)
        self.kinds = self._decide(run_on, model, Told(said or {}, ClassLabels.of(self._labels, offset)))
        self._setting = Setting(self.kinds, self._samples, offset, self._name)
        self.before = self._score(run_on, _name(original), keep=self.metric.reference == "original")

    def scores(self, model: Path | onnx.ModelProto) -> Scores:
        """Measure another file beside the original.

        Raises:
            ModelError: It does not run.
            UsageError: The metric of a user failed.
        """
        return Scores(self.before, self._score(self._load(model), _name(model)))

    def _load(self, model: Path | onnx.ModelProto) -> RunOn:
        return runner(model, mapped=self._mapped)

    def _decide(self, run_on: RunOn, model: ir.Model | None, told: Told) -> dict[str, Output]:
        """See what the outputs are, on the first samples of equal sizes."""
        runs: list[Run] = []
        for run, _ in self._runs():
            if runs and (_shapes(run) != _shapes(runs[0]) or sum(run.count for run in runs) >= _LOOKED_AT):
                break
            runs.append(run)
        outputs = (run.counted(run_on(run.feeds)) for run in runs)
        return output_kinds(model, joined(outputs, [run.count for run in runs]), told)

    def _score(self, run_on: RunOn, name: str, *, keep: bool = False) -> Score:
        wants_original, running, held = self.metric.reference == "original", self.metric.start(self._setting), 0
        original: RunOn | None = None
        check_type(running, Running, f"what the metric '{self.metric.name}' starts")
        for place, (run, rows) in enumerate(track(self._runs(), f"evaluating {name}", self._count)):
            outputs = reference = run.counted(run_on(run.feeds))
            if wants_original and not keep and place in self._kept:
                reference = self._kept[place]
            elif wants_original and not keep:
                original = original or self._load(self._original)
                reference = run.counted(original(run.feeds))
            held += sum(array.nbytes for array in outputs.values()) if keep else 0
            if keep and held <= _KEPT:
                self._kept[place] = outputs
            labels = None if self._labels is None else self._labels[rows]
            running.update(outputs, reference if wants_original else labels, run.count)
        return Score(self.metric, running.result(), self._samples, self._name, running.output, running.each)


def _interface(model: Path | onnx.ModelProto) -> ir.Model | None:
    """The graph of a model; None of an `.ort` file, which only the runtime reads."""
    if not isinstance(model, Path):
        return ir.from_proto(model)
    return None if model.suffix.lower() == ".ort" else open_model(model)


def _name(model: Path | onnx.ModelProto) -> str:
    return model.name if isinstance(model, Path) else "the model"


def _shapes(run: Run) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, array.shape[1:]) for name, array in run.feeds.items()]
