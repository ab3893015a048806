"""Which layers int8 hurts, and how few of them must stay in float.

Each layer is quantised alone, and the divergence of the network's outputs (see `divergence`) is what it does. Then
layers return to float in that order, the worst first, as few as keep the answers: their number is found by bisection,
each candidate run on samples that nothing was calibrated on. With c and c' the classes of the largest scores before and
after, and p the original's probabilities, at every place (sample, token, pixel),

    lost = mean (p(c) - p(c'))         for SCORES and PROBABILITIES
           1 - agreement               for all other kinds (see `divergence`), of several outputs the worst

measured on the floats that decisions rest on (see `origins.measurable`). The first is the accuracy that is lost if p is
to be believed, and needs no labels: an answer that changes between two classes that the original held for equally
likely costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from trp_onnx.calibration.moments import with_outputs
from trp_onnx.errors import ModelError
from trp_onnx.evaluation.divergence import Divergence, agreements, probabilities
from trp_onnx.evaluation.evaluation import Evaluation
from trp_onnx.evaluation.origins import measurable
from trp_onnx.evaluation.outputs import Output, OutputKind, Told, Value, joined, output_kinds
from trp_onnx.graph.inputs import Run
from trp_onnx.graph.session import open_session, run_session
from trp_onnx.passes.calibrated import Calibrated
from trp_onnx.progress import track

SWEPT = 64
"""Samples on which single layers are judged."""


@dataclass(frozen=True)
class InFloat:
    """A layer that stays in float.

    Attributes:
        layer: Its name.
        reason: Why.
    """

    layer: str
    reason: str


LOST: Mapping[OutputKind, str] = {
    OutputKind.SCORES: "{:.2f} points of accuracy lost, by the float model's own probabilities",
    OutputKind.PROBABILITIES: "{:.2f} points of accuracy lost, by the float model's own probabilities",
    OutputKind.UNIT_VECTORS: "mean cosine {:.2f} % below 1",
    OutputKind.DISCRETE: "{:.2f} % of the elements differ",
    OutputKind.ITEMS: "{:.2f} % of the items differ",
    OutputKind.BOXES: "relative mean square error {:.2f} %",
    OutputKind.VALUES: "relative mean square error {:.2f} %",
}
"""What is lost of each kind, in words; the number is per cent."""


def outputs_of(model: onnx.ModelProto, runs: Sequence[Run]) -> dict[str, Value]:
    """Outputs on all runs, one after the other."""
    session = open_session(model)
    return joined((run.counted(run_session(session, run.feeds)) for run in runs), [run.count for run in runs])


def lost(expected: Mapping[str, Value], actual: Mapping[str, Value], kinds: Mapping[str, Output]) -> tuple[float, str]:
    """What is lost (see the module) of the worst of these outputs, and its name.

    Raises:
        ModelError: There is no output to measure.
    """
    found = {name: 1.0 - agrees for name, agrees in agreements(expected, actual, kinds).items()}
    for name in found:
        before = expected[name]
        if kinds[name].chooses and isinstance(before, np.ndarray):
            p, rows = probabilities(before, kinds[name]), np.arange(before.size // before.shape[kinds[name].axis])
            now = probabilities(np.asarray(actual[name]), kinds[name]).argmax(axis=1)
            found[name] = float((p.max(axis=1) - p[rows, now]).mean())
    if not found:
        raise ModelError("the model has no output that can be measured")
    worst = max(found, key=lambda name: found[name])
    return found[worst], worst


@dataclass(frozen=True)
class Judged:
    """An int8 model, and what it is worth.

    Attributes:
        proto: The model.
        in_float: Layers that stayed in float.
        lost: What it loses on the samples that judged it, as the limit counts.
        measure: The same in words, with the output that loses most, and how much of the answers of those that decide
            differs.
    """

    proto: onnx.ModelProto
    in_float: list[InFloat]
    lost: float
    measure: str


class _Judge:
    """What the original gives on the samples that nothing was calibrated on."""

    def __init__(self, float_model: onnx.ModelProto, judging: Sequence[Run], told: Told) -> None:
        graph = ir.from_proto(float_model)
        self._proto, self._judging, self._shown = float_model, judging, measurable(graph)
        self._expected = self._outputs(float_model, judging)
        self._kinds = output_kinds(graph, self._expected, told)

    def _outputs(self, model: onnx.ModelProto, runs: Sequence[Run]) -> dict[str, Value]:
        """Outputs, and the floats that those which decide rest on."""
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return outputs_of(with_outputs(copy, self._shown), runs)

    def _measured(self) -> dict[str, Output]:
        return {name: kind for name, kind in self._kinds.items() if {name, name.rpartition("[")[0]} & set(self._shown)}

    def lost(self, model: onnx.ModelProto) -> tuple[float, str]:
        """What another model loses, and that in words."""
        actual = self._outputs(model, self._judging)
        loses, name = lost(self._expected, actual, self._measured())
        words = LOST[self._kinds[name].kind].format(100 * loses)
        decided = {key: kind for key, kind in self._kinds.items() if key not in self._measured()}
        words = words if len(self._kinds) == 1 else f"{words} (in '{name}')"
        for key, agrees in agreements(self._expected, actual, decided).items():
            words += f"; {100 * (1 - agrees):.2f} % of '{key}' differ"
        return 100 * loses, words

    def by_damage(self, calibrated: Calibrated, names: Sequence[str]) -> list[tuple[str, float]]:
        """Layers and what each of them does alone, the worst first."""
        few = self._judging[: max(1, -(-SWEPT // self._judging[0].count))]
        measure = Divergence(self._outputs(self._proto, few), self._measured())
        found = [
            (name, measure(self._outputs(calibrated.quantised(only=[name]), few)))
            for name in track(names, "int8, layer by layer")
        ]
        return sorted(found, key=lambda entry: -entry[1])


def keep_what_is_hurt(
    calibrated: Calibrated,
    float_model: onnx.ModelProto,
    judging: Sequence[Run],
    allowed: float,
    always: Sequence[str] = (),
    told: Told | None = None,
    evaluation: Evaluation | None = None,
) -> Judged:
    """An int8 model that loses no more than is allowed, with as few layers in float as that takes.

    Args:
        calibrated: What int8 models are made of.
        float_model: The original.
        judging: Runs of samples that nothing was calibrated on.
        allowed: What may be lost: in per cent of what the module says, or in the unit of the metric.
        always: Layers that stay in float whatever they do.
        told: What is known of the outputs, see `output_kinds`.
        evaluation: The metric that judges in place of that.

    Raises:
        ModelError: There is no output to judge by.
    """
    judge = _Judge(float_model, judging, told or Told())
    kept = [InFloat(name, "asked for: first or last layer") for name in always]

    def attempt(worst: Sequence[tuple[str, float]]) -> tuple[onnx.ModelProto, float, str]:
        model = calibrated.quantised(kept=[*always, *(name for name, _ in worst)])
        if evaluation is None:
            return model, *judge.lost(model)
        lost = evaluation.scores(model).lost
        return model, lost, f"{lost:.2f} {evaluation.metric.counted} lost"

    found = attempt([])
    kept += [
        InFloat(name, f"onnxruntime's quantiser does not take it: {why}")
        for name, why in calibrated.refused.items()
        if name not in always
    ]
    always = [entry.layer for entry in kept]
    if found[1] > allowed:
        order = judge.by_damage(calibrated, [name for name in calibrated.layers if name not in always])
        low, high = 0, len(order)  # `low` loses too much
        found = attempt(order)
        while high - low > 1:
            middle = (low + high) // 2
            candidate = attempt(order[:middle])
            if candidate[1] <= allowed:
                high, found = middle, candidate
            else:
                low = middle
        kept += [
            InFloat(name, f"int8 hurts it: alone it moves the outputs by {damage:.2g} ({place} of {len(order)})")
            for place, (name, damage) in enumerate(order[:high], start=1)
        ]
    return Judged(found[0], kept, found[1], found[2])
