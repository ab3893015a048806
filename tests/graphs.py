"""Small real graphs for the tests: one layer with everything ONNX lets it have, and how to run them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from trp_onnx.graph.inputs import InputSpec, Run, Samples

FLOAT = TensorProto.FLOAT


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def info(name: str, shape: list[int | str | None] | None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)


def weights(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    """A weight whose outputs stay near 1."""
    fan_in = max(1, int(np.prod(shape[1:])))
    return (rng(seed).standard_normal(shape) / np.sqrt(fan_in)).astype(dtype)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initializers: dict[str, np.ndarray] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    **more: object,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g", inputs, outputs, [tensor(name, array) for name, array in (initializers or {}).items()]
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version, **more)
    helper.set_model_props(built, {"owner": "tests", "trained": "no"})
    return built


def save(built: onnx.ModelProto, path: Path) -> Path:
    onnx.save(built, path)
    return path


def conv_net(path: Path, channels: int = 16, **attributes: object) -> Path:
    """conv1 -> relu -> conv2 -> global pool -> fc: enough to have a stem, a middle and a last layer."""
    w = {
        "w1": weights(channels, 3, 3, 3, seed=1),
        "b1": weights(channels, 1, seed=2)[:, 0],
        "w2": weights(channels, channels, 3, 3, seed=3),
        "wf": weights(10, channels, seed=4),
        "bf": weights(10, 1, seed=5)[:, 0],
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1], **attributes),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "wf", "bf"], ["logits"], name="fc", transB=1),
    ]
    return save(model(nodes, [info("x", ["N", 3, 12, 12])], [info("logits", ["N", 10])], w), path)


def resized(path: Path, names: Mapping[str, str], size: int) -> None:
    """Rename inputs of a network, and give its images another fixed size."""
    proto = onnx.load(path)
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim[2:]:
            dim.dim_value = size
        value.name = names.get(value.name, value.name)
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    onnx.save(proto, path)


def network_of(path: Path) -> bytes:
    """All of a file but the record of what was measured, whose times differ from run to run."""
    proto = onnx.load(path)
    kept = [entry for entry in proto.metadata_props if entry.key != "trp_onnx.record"]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    return bytes(proto.SerializeToString(deterministic=True))


def drawn(**feeds: np.ndarray) -> Samples:
    """Arrays whose first axis counts samples, as calibration takes them."""
    inputs = {name: InputSpec(name, None, (None, *array.shape[1:]), 0) for name, array in feeds.items()}
    return Samples(inputs, [Run(feeds, len(next(iter(feeds.values()))))])


def run(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def nodes_of(path: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(path).graph.node)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-30))


def softmax_net(path: Path, channels: int = 32, rank: int | None = None, layers: int = 3, size: int = 20) -> Path:
    """3x3 convolutions of one width, pooled to ten probabilities; of a low rank where one is given."""
    w = {"w0": weights(channels, 3, 3, 3, seed=1)}
    nodes = [helper.make_node("Conv", ["x", "w0"], ["c0"], name="conv0", pads=[1, 1, 1, 1])]
    flow = "c0"
    for i in range(1, layers + 1):
        w[f"w{i}"] = weights(channels, channels, 3, 3, seed=i + 1)
        if rank is not None:
            left, right = weights(channels * 3, rank, seed=10 + i), weights(rank, channels * 3, seed=20 + i)
            product = (left @ right).reshape(channels, 3, channels, 3).transpose(2, 0, 1, 3)
            w[f"w{i}"] = np.ascontiguousarray(product / np.sqrt(9 / rank), np.float32)
        nodes += [
            helper.make_node("Relu", [flow], [f"r{i}"], name=f"relu{i}"),
            helper.make_node("Conv", [f"r{i}", f"w{i}"], [f"c{i}"], name=f"conv{i}", pads=[1, 1, 1, 1]),
        ]
        flow = f"c{i}"
    w["wf"] = 4 * weights(10, channels, seed=40)
    nodes += [
        helper.make_node("GlobalAveragePool", [flow], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "wf"], ["z"], name="fc", transB=1),
        helper.make_node("Softmax", ["z"], ["probabilities"], name="softmax", axis=1),
    ]
    return save(model(nodes, [info("x", ["N", 3, size, size])], [info("probabilities", ["N", 10])], w), path)
