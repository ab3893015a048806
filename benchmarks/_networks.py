"""ResNet-18 and ResNet-50 (He et al. 2015, table 1) with random weights: shapes to be timed, not accuracies.

`face` is a residual network as face recognition has them: 29 3x3 convolutions, 112x112 in, 512 numbers out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class _Network:
    """Collects nodes and weights of a random network whose spectra decay as trained ones do."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def weight(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def conv(self, x: str, name: str, n: int, c: int, k: int, stride: int = 1, relu: bool = True) -> str:
        matrix = self.rng.standard_normal((n, c * k * k)) * (np.arange(1, n + 1) ** -0.5)[:, None]
        w = (self.rng.standard_normal((n, n)) @ matrix / n).reshape(n, c, k, k)
        inputs = [x, self.weight(f"{name}.weight", w)]
        self.nodes.append(
            helper.make_node("Conv", inputs, [f"{name}.out"], name=name, strides=[stride] * 2, pads=[k // 2] * 4)
        )
        stats = [self.weight(f"{name}.bn{i}", np.abs(self.rng.standard_normal(n)) * 0.1 + 1) for i in range(4)]
        self.nodes.append(
            helper.make_node("BatchNormalization", [f"{name}.out", *stats], [f"{name}.norm"], name=f"{name}.bn")
        )
        return self.node("Relu", [f"{name}.norm"]) if relu else f"{name}.norm"

    def node(self, op: str, inputs: list[str], **attributes: object) -> str:
        out = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [out], name=out, **attributes))
        return out


def resnet18(folder: Path) -> Path:
    """The 18-layer column."""
    net, channels = _Network(), 64
    x = net.conv("x", "stem", 64, 3, 7, stride=2)
    x = net.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            stride = 2 if block == 0 and stage > 1 else 1
            name = f"layer{stage}.{block}"
            y = net.conv(x, f"{name}.conv1", width, channels, 3, stride)
            y = net.conv(y, f"{name}.conv2", width, width, 3, relu=False)
            if stride > 1:
                x = net.conv(x, f"{name}.down", width, channels, 1, stride, relu=False)
            channels = width
            x = net.node("Relu", [net.node("Add", [x, y])])
    return _finish(net, x, channels, folder / "resnet18.onnx")


def resnet50(folder: Path) -> Path:
    """The 50-layer column."""
    net = _Network()
    x = net.conv("x", "stem", 64, 3, 7, stride=2)
    x = net.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 1 else 1
            name = f"layer{stage}.{block}"
            y = net.conv(x, f"{name}.conv1", width, channels, 1)
            y = net.conv(y, f"{name}.conv2", width, width, 3, stride)
            y = net.conv(y, f"{name}.conv3", 4 * width, width, 1, relu=False)
            if block == 0:
                x = net.conv(x, f"{name}.down", 4 * width, channels, 1, stride, relu=False)
            channels = 4 * width
            x = net.node("Relu", [net.node("Add", [x, y])])
    return _finish(net, x, channels, folder / "resnet50.onnx")


def face(folder: Path) -> Path:
    """28 layers in residual blocks of two behind a stem, 22 MB."""
    net, channels = _Network(), 64
    x = net.conv("x", "stem", 64, 3, 3, stride=2)
    for stage, (width, blocks) in enumerate(((64, 3), (128, 5), (192, 5), (256, 1)), 1):
        for block in range(blocks):
            stride = 2 if block == 0 else 1
            name = f"layer{stage}.{block}"
            y = net.conv(x, f"{name}.conv1", width, channels, 3, stride)
            y = net.conv(y, f"{name}.conv2", width, width, 3, relu=False)
            if stride > 1:
                x = net.conv(x, f"{name}.down", width, channels, 1, stride, relu=False)
            channels = width
            x = net.node("Relu", [net.node("Add", [x, y])])
    return _finish(net, x, channels, folder / "face.onnx", size=112, outputs=512)


def _finish(net: _Network, x: str, channels: int, path: Path, size: int = 224, outputs: int = 1000) -> Path:
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x])])
    head = net.weight("fc.weight", net.rng.standard_normal((outputs, channels)) / 50)
    net.nodes.append(helper.make_node("Gemm", [x, head], ["logits"], name="fc", transB=1))
    graph = helper.make_graph(
        net.nodes,
        path.stem,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", outputs])],
        net.weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
