"""One residual network, twice: as an ONNX model and as a PyTorch module, to compare training speed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NETS = {"resnet20": ((16, 3), (32, 3), (64, 3)), "wide": ((64, 2), (128, 2), (256, 2))}
"""Channels and residual blocks of each stage, on 32x32 images; stages after the first halve the size."""

CLASSES = 10


def as_onnx(name: str) -> onnx.ModelProto:
    """Conv, BatchNormalization and ReLU as an exporter writes them; 1x1 convolutions where the size changes."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    stored: list[onnx.TensorProto] = []

    def keep(label: str, array: np.ndarray) -> str:
        stored.append(numpy_helper.from_array(array.astype(np.float32), label))
        return label

    def conv(x: str, c: int, n: int, k: int, stride: int) -> str:
        label = f"conv{len(nodes)}"
        w = keep(f"{label}.weight", rng.standard_normal((n, c, k, k)) * np.sqrt(2 / (c * k * k)))
        pads = [k // 2] * 4
        nodes.append(helper.make_node("Conv", [x, w], [label], name=label, pads=pads, strides=[stride] * 2))
        fill = (("scale", np.ones(n)), ("shift", np.zeros(n)), ("mean", np.zeros(n)), ("var", np.ones(n)))
        names = [keep(f"{label}.{part}", array) for part, array in fill]
        nodes.append(helper.make_node("BatchNormalization", [label, *names], [f"{label}.bn"]))
        return f"{label}.bn"

    def relu(x: str) -> str:
        nodes.append(helper.make_node("Relu", [x], [f"{x}.relu"]))
        return f"{x}.relu"

    stages = NETS[name]
    c = stages[0][0]
    x = relu(conv("x", 3, c, 3, 1))
    for stage, (n, blocks) in enumerate(stages):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = conv(relu(conv(x, c, n, 3, stride)), n, n, 3, 1)
            short = conv(x, c, n, 1, stride) if stride > 1 or c != n else x
            nodes.append(helper.make_node("Add", [y, short], [f"{y}.sum"]))
            x, c = relu(f"{y}.sum"), n
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    w = keep("fc.weight", rng.standard_normal((CLASSES, c)) / np.sqrt(c))
    nodes.append(helper.make_node("Gemm", ["flat", w, keep("fc.bias", np.zeros(CLASSES))], ["logits"], transB=1))
    graph = helper.make_graph(
        nodes, name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])], stored,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def as_torch(name: str) -> Any:
    """The same in PyTorch."""
    import torch
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self, c: int, n: int, stride: int) -> None:
            super().__init__()
            self.first = _torch_conv(nn, c, n, 3, stride)
            self.second = _torch_conv(nn, n, n, 3, 1)
            self.short = _torch_conv(nn, c, n, 1, stride) if stride > 1 or c != n else nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.second(torch.relu(self.first(x)))
            return torch.relu(y + self.short(x))

    stages = NETS[name]
    c = stages[0][0]
    layers: list[Any] = [_torch_conv(nn, 3, c, 3, 1), nn.ReLU()]
    for stage, (n, blocks) in enumerate(stages):
        for block in range(blocks):
            layers.append(Block(c, n, 2 if stage and not block else 1))
            c = n
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, CLASSES))


def _torch_conv(nn: Any, c: int, n: int, k: int, stride: int) -> Any:
    return nn.Sequential(nn.Conv2d(c, n, k, stride, k // 2, bias=False), nn.BatchNorm2d(n))
