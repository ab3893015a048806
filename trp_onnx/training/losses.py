"""The loss, written into the model's own graph as ONNX nodes.

    loss = w_ce CE(z, labels) + sum_o w_o D_o

    KL for class scores z:          D = -T^2 mean_b sum_k softmax(t_b / T)_k log softmax(z_b / T)_k
    MSE for any other output:       D = mean((y - t)^2)

with b all places of all samples that have scores (one of an image, all tokens of a text, all pixels of a map) and
t the teacher's output (Hinton, Vinyals and Dean 2015; T^2 keeps the gradient's scale). The KL term is the cross-entropy
against the teacher: its gradient is the same, and it lacks only the teacher's own entropy, which training cannot
change; it is taken off again where the loss is reported.

An output of probabilities p has z = log p, which has the same softmax. What class scores are, says `outputs`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trp_onnx.errors import DataError, ModelError, UsageError
from trp_onnx.evaluation.outputs import OutputKind, Told, is_float, labelled, output_kinds
from trp_onnx.graph.session import Arrays
from trp_onnx.training.labels import IGNORED
from trp_onnx.training.options import TrainingOptions

LABELS = "trp.labels"
LOSS = "trp.loss"
_TINY = 1e-30


@dataclass(frozen=True)
class OutputLoss:
    """What one output is held to.

    Attributes:
        name: The output.
        axis: That of classes, whose scores are held to KL (and cross-entropy on labels); 0 for MSE.
        classes: How many there are.
        probabilities: The scores went through a Softmax already.
        label_weight: Weight of the cross-entropy on labels; 0 for none.
        distill_weight: Weight of the distance to the teacher; 0 for none.
        inner: A value inside the network: learnt from, and not judged by.
    """

    name: str
    axis: int = 0
    classes: int = 0
    probabilities: bool = False
    label_weight: float = 0.0
    distill_weight: float = 0.0
    inner: bool = False

    @property
    def logits(self) -> bool:
        """Whether it is held to the teacher's answers, and not to its numbers."""
        return self.axis > 0

    @property
    def target(self) -> str:
        """The input that takes the teacher's softened probabilities or its output."""
        return f"trp.target.{self.name}"


def choose_losses(
    model: onnx.ModelProto, options: TrainingOptions, has_labels: bool, outputs: Arrays, told: Told
) -> tuple[OutputLoss, ...]:
    """What each output is held to: labels on the one that holds class scores, the teacher on all that are floats.

    Args:
        model: With the sizes of its outputs.
        options: Weights and kinds.
        has_labels: Whether the data has labels that name classes.
        outputs: What the model gives on a few samples, which says what its outputs are (see `output_kinds`).
        told: What is known of the outputs, see `output_kinds`.

    Raises:
        DataError: Labels are asked for, but there are none, or no output to compare them with.
        ModelError: No output is a float, so that nothing can be learnt from the teacher.
        UsageError: Nothing to learn from, or a weight for an output that does not exist.
    """
    if options.labels and not has_labels:
        raise DataError("the training data has no labels that name classes: train with distillation alone, --labels 0")
    labels = (1.0 if options.distill == 0 else 0.3) if options.labels is None else options.labels
    labels = labels if has_labels else 0.0
    distill = (0.7 if labels else 1.0) if options.distill is None else options.distill
    if not labels and not distill:
        raise UsageError("training: without labels the loss needs --distill")
    unknown = set(options.output_weights) - {value.name for value in model.graph.output}
    if unknown:
        raise UsageError(f"training: the model has no output '{min(unknown)}' to weigh")
    if not any(is_float(outputs[value.name]) for value in model.graph.output):
        raise ModelError(
            "no output of the model is a float, so nothing can be learnt from it: export it with what its last "
            "operator chooses from as an output"
        )
    kinds = output_kinds(None, outputs, told)
    named = labelled(kinds) if labels else None
    if labels and named is None:
        raise DataError("the model has no output with one score a class for each label: train with --labels 0")
    losses: list[OutputLoss] = []
    for value in model.graph.output:
        weight = options.output_weights.get(value.name, 1.0)
        teaches = distill * weight if is_float(outputs[value.name]) else 0.0
        kind = kinds[value.name]
        chooses = options.distill_kind == "kl" or (options.distill_kind == "auto" and kind.chooses)
        axis = max(0, kind.axis) if chooses or value.name == named else 0
        classes = outputs[value.name].shape[axis] if axis else 0
        probabilities = axis > 0 and kind.kind is OutputKind.PROBABILITIES
        label_weight = labels * weight if value.name == named else 0.0
        losses.append(OutputLoss(value.name, axis, classes, probabilities, label_weight, teaches))
    return tuple(losses)


def on_one_scale(losses: Sequence[OutputLoss], outputs: Arrays, inner: Collection[str]) -> tuple[OutputLoss, ...]:
    """Losses that can be added up: square errors over the variance of what is expected; of inner values the mean.

    Args:
        losses: From `choose_losses`.
        outputs: What the model gives on a few samples.
        inner: Outputs that are values inside the network.
    """
    found = []
    for loss in losses:
        weight = loss.distill_weight
        if loss.name in inner:
            loss, weight = OutputLoss(loss.name, inner=True), 1.0 / len(inner)
        if not loss.logits and weight:
            weight /= max(float(np.var(outputs[loss.name], dtype=np.float64)), _TINY)
        found.append(replace(loss, distill_weight=weight))
    return tuple(found)


class _Tail:
    """What is put behind a model's outputs."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph

    def node(self, op: str, inputs: list[str], result: str, **attributes: Any) -> str:
        self.graph.node.append(helper.make_node(op, inputs, [result], name=result, **attributes))
        return result

    def constant(self, name: str, value: float) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name


def add_loss(model: onnx.ModelProto, outputs: Sequence[OutputLoss], temperature: float) -> None:
    """Append the loss; it becomes the model's only output."""
    graph, tail = model.graph, _Tail(model.graph)
    values = {value.name: value for value in graph.output}
    terms = [term for loss in outputs for term in _terms(tail, loss, values[loss.name], temperature)]
    total = ""
    for index, (term, weight) in enumerate(terms):
        scaled = tail.node("Mul", [term, tail.constant(f"trp.weight.{index}", weight)], f"trp.term.{index}")
        total = tail.node("Add", [total, scaled], f"trp.sum.{index}") if total else scaled
    tail.node("Identity", [total], LOSS)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(LOSS, TensorProto.FLOAT, []))


def _terms(
    tail: _Tail, loss: OutputLoss, value: onnx.ValueInfoProto, temperature: float
) -> Iterator[tuple[str, float]]:  # fmt: skip
    """What one output adds to the loss, and how much that counts."""
    prefix = f"trp.loss.{loss.name}"
    if not loss.logits:
        if loss.distill_weight:
            yield _square_error(tail, loss, value, prefix), loss.distill_weight
        return
    logits = _rows_of_logits(tail, loss, value, prefix)
    if loss.label_weight:
        yield _cross_entropy(tail, logits, prefix), loss.label_weight
    if loss.distill_weight:
        mean = _likelihood(tail, loss, logits, prefix, temperature)
        yield mean, -loss.distill_weight * loss.classes * temperature**2


def _square_error(tail: _Tail, loss: OutputLoss, value: onnx.ValueInfoProto, prefix: str) -> str:
    """Mean square distance from the teacher's output."""
    target = onnx.ValueInfoProto()
    target.CopyFrom(value)
    target.name = loss.target
    tail.graph.input.append(target)
    gap = tail.node("Sub", [loss.name, loss.target], f"{prefix}.gap")
    square = tail.node("Mul", [gap, gap], f"{prefix}.square")
    return tail.node("ReduceMean", [square], f"{prefix}.mse", keepdims=0)


def _rows_of_logits(tail: _Tail, loss: OutputLoss, value: onnx.ValueInfoProto, prefix: str) -> str:
    """The output as (rows, classes), before the softmax."""
    logits, rank = loss.name, len(value.type.tensor_type.shape.dim)
    if loss.axis != rank - 1:
        order = [axis for axis in range(rank) if axis != loss.axis] + [loss.axis]
        logits = tail.node("Transpose", [logits], f"{prefix}.classes_last", perm=order)
    rows = numpy_helper.from_array(np.array([-1, loss.classes], np.int64), f"{prefix}.rows")
    tail.graph.initializer.append(rows)
    logits = tail.node("Reshape", [logits, rows.name], f"{prefix}.flat")
    if loss.probabilities:
        logits = tail.node("Max", [logits, tail.constant(f"{prefix}.tiny", _TINY)], f"{prefix}.positive")
        logits = tail.node("Log", [logits], f"{prefix}.logits")
    return logits


def _cross_entropy(tail: _Tail, logits: str, prefix: str) -> str:
    """With the labels."""
    if not any(value.name == LABELS for value in tail.graph.input):
        tail.graph.input.append(helper.make_tensor_value_info(LABELS, TensorProto.INT64, ["labels"]))
    term = f"{prefix}.ce"
    results = [term, f"{prefix}.log_probabilities"]  # its gradient wants the second output
    tail.graph.node.append(
        helper.make_node("SoftmaxCrossEntropyLoss", [logits, LABELS], results, name=term, ignore_index=IGNORED)
    )
    return term


def _likelihood(tail: _Tail, loss: OutputLoss, logits: str, prefix: str, temperature: float) -> str:
    """Mean of the teacher's probabilities times our log-probabilities, both at a temperature."""
    shape: list[str | int | None] = [f"{loss.target}.rows", loss.classes]
    tail.graph.input.append(helper.make_tensor_value_info(loss.target, TensorProto.FLOAT, shape))
    soft = tail.node("Mul", [logits, tail.constant(f"{prefix}.1/T", 1 / temperature)], f"{prefix}.soft")
    soft = tail.node("LogSoftmax", [soft], f"{prefix}.log_softmax", axis=1)
    product = tail.node("Mul", [soft, loss.target], f"{prefix}.product")
    return tail.node("ReduceMean", [product], f"{prefix}.kl", keepdims=0)


def soften(output: np.ndarray, temperature: float, loss: OutputLoss) -> np.ndarray:
    """Scores of classes, the teacher's or ours, as softmax(t / T): (b * places, K) float32."""
    z = np.moveaxis(output, loss.axis, -1).reshape(-1, loss.classes).astype(np.float64)
    if loss.probabilities:
        z = np.log(np.maximum(z, _TINY))
    z = z / temperature
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(z / z.sum(axis=1, keepdims=True), np.float32)


def entropy(probabilities: np.ndarray) -> float:
    """Mean entropy of the rows, (rows, K), in nats."""
    p = probabilities.astype(np.float64)
    return float(-(p * np.log(np.maximum(p, _TINY))).sum(axis=1).mean())
