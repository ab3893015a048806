"""Runs in the training runtime: gradients and running statistics against float64 finite differences.

The reference knows nothing of the training runtime: it is onnx's reference evaluator on the model in float64,
with BatchNormalization in training mode, and a central difference along a random direction. Prints JSON:
for each net and tensor the relative error.
"""

import json
import math
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tests.graphs import info, model, weights
from trp_onnx.graph.inputs import Run
from trp_onnx.planning.alignment import simd_block
from trp_onnx.training.labels import targets_of
from trp_onnx.training.losses import LABELS, LOSS, OutputLoss, add_loss
from trp_onnx.training.trainable import make_trainable
from trp_onnx.training.worker.ort_engine import Session, training_graph
from trp_onnx.training.worker.ort_rewrites import speed_up

BATCH, CLASSES, STEP = 3, 5, 1e-5


class Erf(OpRun):
    """onnx's own rounds to float32."""

    op_domain = ""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


def norm(channels: int, prefix: str) -> dict[str, np.ndarray]:
    r = np.random.default_rng(len(prefix))
    return {
        f"{prefix}.scale": r.uniform(0.5, 1.5, channels).astype(np.float32),
        f"{prefix}.shift": r.standard_normal(channels).astype(np.float32),
        f"{prefix}.mean": r.standard_normal(channels).astype(np.float32),
        f"{prefix}.var": r.uniform(0.5, 1.5, channels).astype(np.float32),
    }


def conv_net() -> onnx.ModelProto:
    """Strides, asymmetric pads, dilation, groups, depthwise, 1x1; channels that fill SIMD blocks and that do not."""
    w = {
        "w1": weights(16, 3, 3, 3, seed=1), "b1": weights(16, 1, seed=2)[:, 0],
        "w2": weights(32, 16, 3, 3, seed=3), "w3": weights(32, 1, 3, 3, seed=4), "w4": weights(32, 32, 1, 1, seed=5),
        "w5": weights(24, 16, 3, 3, seed=6), "w6": weights(16, 24, 5, 1, seed=7),
        "wf": weights(CLASSES, 16, seed=8), "bf": weights(CLASSES, 1, seed=9)[:, 0],
    } | norm(32, "bn2")  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 0, 1, 2]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c2", "bn2.scale", "bn2.shift", "bn2.mean", "bn2.var"], ["n2"]),
        helper.make_node("Relu", ["n2"], ["r2"]),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], pads=[1, 1, 1, 1], group=32),
        helper.make_node("HardSwish", ["c3"], ["r3"]),
        helper.make_node("Conv", ["r3", "w4"], ["c4"]),
        helper.make_node("Add", ["c4", "r2"], ["a4"]),
        helper.make_node("Conv", ["a4", "w5"], ["c5"], pads=[2, 2, 2, 2], dilations=[2, 2], group=2),
        helper.make_node("Elu", ["c5"], ["r5"]),
        helper.make_node("Conv", ["r5", "w6"], ["c6"], pads=[2, 0, 2, 0]),
        helper.make_node("GlobalAveragePool", ["c6"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "wf", "bf"], ["logits"], transB=1),
    ]
    return model(nodes, [info("x", ["N", 3, 10, 9])], [info("logits", ["N", CLASSES])], w)


def conv1d_net() -> onnx.ModelProto:
    w = {"w1": weights(16, 4, 5, seed=1), "s": weights(16, 1, seed=2), "w2": weights(16, 16, 3, seed=3),
         "wf": weights(16, CLASSES, seed=4)}  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[2, 2], strides=[2]),
        helper.make_node("PRelu", ["c1", "s"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[2, 2], dilations=[2]),
        helper.make_node("Softplus", ["c2"], ["r2"]),
        helper.make_node("ReduceMean", ["r2"], ["p"], axes=[2], keepdims=0),
        helper.make_node("MatMul", ["p", "wf"], ["z"]),
        helper.make_node("Softmax", ["z"], ["logits"], axis=1),
    ]
    return model(nodes, [info("x", ["N", 4, 14])], [info("logits", ["N", CLASSES])], w)


def matmul_net() -> onnx.ModelProto:
    w = {"w1": weights(8, 12, seed=1), "b1": weights(12, 1, seed=2)[:, 0], "g": 1 + weights(12, 1, seed=3)[:, 0],
         "h": weights(12, 1, seed=4)[:, 0], "w2": weights(12, CLASSES, seed=5)}  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m"]),
        helper.make_node("Add", ["m", "b1"], ["a"]),
        helper.make_node("LayerNormalization", ["a", "g", "h"], ["n"], axis=-1),
        helper.make_node("Tanh", ["n"], ["t"]),
        helper.make_node("MatMul", ["t", "w2"], ["seq"]),
        helper.make_node("ReduceMean", ["seq"], ["logits"], axes=[1], keepdims=0),
    ]
    outputs = [info("logits", ["N", CLASSES]), info("seq", ["N", 6, CLASSES])]
    return model(nodes, [info("x", ["N", 6, 8])], outputs, w)


def encoder_net() -> onnx.ModelProto:
    """Attention under a mask, Gelu; one score a class for each of six tokens."""
    w = {f"w{part}": weights(8, 8, seed=i) for i, part in enumerate("qkv")}
    w |= {"w1": weights(8, 12, seed=4), "w2": weights(12, CLASSES, seed=5), "root": np.float32(0.5**0.5),
          "one": np.float32(1), "far": np.float32(-30), "zero": np.float32(0), "middle": np.array([1])}  # fmt: skip
    nodes = [
        *(helper.make_node("MatMul", ["x", f"w{part}"], [part]) for part in "qkv"),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["s"]),
        helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.BOOL),
        helper.make_node("Unsqueeze", ["m", "middle"], ["m3"]),
        helper.make_node("Where", ["m3", "zero", "far"], ["bias"]),
        helper.make_node("Add", ["s", "bias"], ["sb"]),
        helper.make_node("Softmax", ["sb"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["c"]),
        helper.make_node("MatMul", ["c", "w1"], ["u"]),
        helper.make_node("Mul", ["u", "root"], ["ur"]),
        helper.make_node("Erf", ["ur"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["e1"]),
        helper.make_node("Mul", ["u", "e1"], ["g"]),
        helper.make_node("MatMul", ["g", "w2"], ["logits"]),
    ]
    inputs = [info("x", ["N", 6, 8]), info("mask", ["N", 6], TensorProto.INT64)]
    return model(nodes, inputs, [info("logits", ["N", 6, CLASSES])], w)


def map_net() -> onnx.ModelProto:
    """Probabilities of each pixel, classes on the second axis."""
    w = {"w1": weights(16, 3, 3, 3, seed=1), "w2": weights(CLASSES, 16, 1, 1, seed=2)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["z"]),
        helper.make_node("Softmax", ["z"], ["logits"], axis=1),
    ]
    return model(nodes, [info("x", ["N", 3, 5, 4])], [info("logits", ["N", CLASSES, 5, 4])], w)


def as_double(graph_model: onnx.ModelProto) -> onnx.ModelProto:
    double = onnx.ModelProto()
    double.CopyFrom(graph_model)
    for tensor in double.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in (*double.graph.input, *double.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in double.graph.node:
        if node.op_type == "BatchNormalization":
            node.attribute.append(helper.make_attribute("training_mode", 1))
            node.output.extend([f"{node.input[3]}.new", f"{node.input[4]}.new"])
            for name in node.output[1:]:
                double.graph.output.append(helper.make_tensor_value_info(name, TensorProto.DOUBLE, None))
    return double


def check(built: onnx.ModelProto, block: int) -> dict[str, float]:
    import onnx_ir as ir

    r = np.random.default_rng(0)
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim[1:]] for v in built.graph.input}
    given = {"x": r.standard_normal([BATCH, *sizes.pop("x")]).astype(np.float32)}
    for name, size in sizes.items():  # masks
        given[name] = (np.arange(BATCH * np.prod(size)) % 4 > 0).astype(int).reshape(BATCH, *size)
    ready = make_trainable(ir.from_proto(built), Run(given, BATCH))
    shape = ready.outputs["logits"].shape
    axis = shape.index(CLASSES)
    losses = [OutputLoss("logits", axis, CLASSES, built.graph.node[-1].op_type == "Softmax", 0.3, 0.7)]
    rows = int(np.prod(shape)) // CLASSES
    labels = r.integers(0, CLASSES, rows)
    if rows > BATCH:  # one at each place, some of which count for nothing
        labels = targets_of(np.where(np.arange(rows) % 5 > 1, labels, 255).reshape(BATCH, -1), 0)
    feeds = given | {LABELS: labels, losses[0].target: r.dirichlet(np.ones(CLASSES), rows)}
    if len(built.graph.output) > 1:
        losses.append(OutputLoss("seq", distill_weight=0.5))
        feeds[losses[1].target] = r.standard_normal((BATCH, 6, CLASSES))
    feeds = {name: a.astype(np.float32) if a.dtype == np.float64 else a for name, a in feeds.items()}
    with_loss = onnx.ModelProto()
    with_loss.CopyFrom(ready.model)
    add_loss(with_loss, losses, temperature=4.0)

    values = {t.name: numpy_helper.to_array(t).copy() for t in with_loss.graph.initializer}
    graph = training_graph(with_loss, ready.parameters, ready.statistics)
    speed_up(graph.model, {name: values[name].shape for name in ready.parameters}, block)
    session = Session(graph.model)
    session.bind_inputs({name: values[name] for name in (*ready.parameters, *ready.statistics)} | feeds)
    gradients = {name: np.zeros_like(values[name]) for name in ready.parameters}
    updates = {name: np.zeros_like(values[name]) for name in ready.statistics}
    loss = np.zeros((), np.float32)
    session.bind_outputs({graph.gradients[name]: array for name, array in gradients.items()})
    session.bind_outputs({graph.updates[name]: array for name, array in updates.items()} | {LOSS: loss})
    session.run()

    double = as_double(with_loss)
    wide = {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in feeds.items()}

    def reference(name: str, shift: np.ndarray | float) -> list[np.ndarray]:
        moved = onnx.ModelProto()
        moved.CopyFrom(double)
        tensor = next(t for t in moved.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + shift, name))
        return ReferenceEvaluator(moved, new_ops=[Erf]).run(None, wide)

    first = reference(ready.parameters[0], 0.0)
    found = {"loss": abs(float(loss) - float(first[0])) / abs(float(first[0]))}
    for name in ready.parameters:
        direction = r.standard_normal(values[name].shape)
        up, down = (float(reference(name, sign * STEP * direction)[0]) for sign in (1, -1))
        slope, mine = (up - down) / (2 * STEP), float((gradients[name] * direction).sum())
        scale = float(np.linalg.norm(gradients[name]) * np.linalg.norm(direction)) / np.sqrt(direction.size)
        found[name] = abs(slope - mine) / max(scale, 1e-9)
    for value, array in zip(double.graph.output[1:], first[1:], strict=True):
        name = value.name.removesuffix(".new")
        found[name] = float(np.abs(array - updates[name]).max() / np.abs(array).max())
    return found


if __name__ == "__main__":
    nets = {"conv": conv_net, "conv1d": conv1d_net, "matmul": matmul_net, "encoder": encoder_net, "map": map_net}
    report = {f"{name}-{block}": check(net(), block) for name, net in nets.items() for block in (1, simd_block())}
    json.dump(report, sys.stdout)
