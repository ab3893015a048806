"""Faster forms of what the gradient builder writes; every one computes the same numbers.

    ReluGrad(dY, Y)        -> dY * clip(2^127 Y, 0, 1): Y is never negative, so that is 1 for any normal Y > 0.
                              The kernels of ReluGrad, Sign and Cast to bool are all slow, these two are not
    dX of ConvGrad         -> Conv(dY, W flipped and transposed), for stride 1; ConvGrad keeps dW and dB.
                              Its own dX multiplies into a column buffer and scatters that back
    Conv                   -> ReorderInput, blocked Conv, ReorderOutput, where the channels fill the SIMD
                              blocks: what the runtime does by itself when weights are constant, and cannot
                              do in training, where they are inputs. The weight is reordered in the graph

`benchmarks/training_speed.py` measures what each one brings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

_BLOCKED = "com.microsoft.nchwc"


def speed_up(
    model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], block: int, *, only: tuple[str, ...] | None = None
) -> None:
    """Apply every rewrite, in place.

    Args:
        model: From `ort_engine.training_graph`, or any model with weights as inputs.
        shapes: Shapes of the weights, by name.
        block: Channels of a SIMD block of this CPU; 1 leaves convolutions as they are.
        only: Names of the rewrites to apply: "relu", "input_gradient", "blocked".
    """
    graph = _Graph(model, dict(shapes))
    for name, rewrite in (
        ("relu", _rewrite_relu_gradient),
        ("input_gradient", _rewrite_input_gradient),
        ("blocked", lambda g, n: _rewrite_blocked(g, n, block)),
    ):
        if only is None or name in only:
            graph.rewrite(rewrite)


class _Graph:
    """A graph in rewriting: nodes are replaced one by one, constants are shared."""

    def __init__(self, model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> None:
        self.model = model
        self.shapes = shapes
        self.fresh: list[onnx.NodeProto] = []
        self._constants = {tensor.name for tensor in model.graph.initializer}

    def rewrite(self, one: Any) -> None:
        nodes = list(self.model.graph.node)
        self.fresh = []
        for node in nodes:
            if not one(self, node):
                self.fresh.append(node)
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.fresh)

    def add(self, op: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        node = helper.make_node(op, inputs, [output], name=f"trp.{output}", domain=domain, **attributes)
        self.fresh.append(node)
        return output

    def integers(self, values: list[int]) -> str:
        return self._constant("trp.integers." + "_".join(map(str, values)), np.array(values, np.int64))

    def number(self, value: float) -> str:
        return self._constant(f"trp.number.{value!r}", np.array(value, np.float32))

    def _constant(self, name: str, array: np.ndarray) -> str:
        if name not in self._constants:
            self._constants.add(name)
            self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def permute(self, weight: str, split: list[int], order: list[int], shape: tuple[int, ...], output: str) -> str:
        """Reshape to `split`, transpose by `order`, reshape to `shape`."""
        self.add("Reshape", [weight, self.integers(split)], f"{output}.split")
        self.add("Transpose", [f"{output}.split"], f"{output}.turned", perm=order)
        self.shapes[output] = shape
        return self.add("Reshape", [f"{output}.turned", self.integers(list(shape))], output)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _rewrite_relu_gradient(graph: _Graph, node: onnx.NodeProto) -> bool:
    if node.op_type != "ReluGrad":
        return False
    gradient, output = node.input
    huge = graph.add("Mul", [output, graph.number(2.0**127)], f"{node.output[0]}.huge")
    mask = graph.add("Clip", [huge, graph.number(0.0), graph.number(1.0)], f"{node.output[0]}.mask")
    graph.add("Mul", [gradient, mask], node.output[0])
    return True


def _rewrite_input_gradient(graph: _Graph, node: onnx.NodeProto) -> bool:
    if node.op_type != "ConvGrad" or not node.output[0] or node.input[2] not in graph.shapes:
        return False
    attributes = _attributes(node)
    n, c, *kernel = graph.shapes[node.input[2]]
    axes = len(kernel)
    groups = attributes.get("group", 1)
    dilations = list(attributes.get("dilations", [1] * axes))
    pads = list(attributes.get("pads", [0] * 2 * axes))
    reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    mirrored = [r - p for r, p in zip(reach * 2, pads, strict=True)]
    plain = attributes.get("auto_pad", b"NOTSET") in (b"NOTSET", b"")
    if not plain or any(s != 1 for s in attributes.get("strides", [1])) or min(mirrored) < 0:
        return False
    dx, weight = node.output[0], node.input[2]
    turned = graph.permute(
        weight, [groups, n // groups, c, *kernel], [0, 2, 1, *range(3, 3 + axes)], (groups * c, n // groups, *kernel),
        f"{dx}.weight",
    )  # fmt: skip
    if max(kernel) > 1:
        flipped = f"{dx}.flipped"
        minus, end, along = [-1] * axes, [-(2**62)] * axes, list(range(2, 2 + axes))
        graph.add("Slice", [turned, *(graph.integers(v) for v in (minus, end, along, minus))], flipped)
        graph.shapes[flipped] = graph.shapes[turned]
        turned = flipped
    graph.add(
        "Conv", [node.input[0], turned], dx,
        kernel_shape=kernel, pads=mirrored, dilations=dilations, strides=[1] * axes, group=groups,
    )  # fmt: skip
    node.output[0] = ""
    return False  # what remains of ConvGrad follows


def _rewrite_blocked(graph: _Graph, node: onnx.NodeProto, block: int) -> bool:
    if node.op_type != "Conv" or node.domain or block == 1 or graph.shapes.get(node.input[1], ()) == ():
        return False
    attributes = _attributes(node)
    n, c, *kernel = graph.shapes[node.input[1]]
    groups = attributes.get("group", 1)
    if len(kernel) != 2 or n % block or attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b""):
        return False
    out = node.output[0]
    if groups == 1 and c % block == 0:
        split, order = [n // block, block, c // block, block, *kernel], [0, 2, 4, 5, 3, 1]
    elif groups == n and c == 1:
        split, order = [n // block, block, 1, *kernel], [0, 2, 3, 4, 1]
    else:
        return False
    weight = graph.permute(node.input[1], split, order, (n, c, *kernel), f"{out}.blocked")
    inside = graph.add("ReorderInput", [node.input[0]], f"{out}.in", _BLOCKED)
    graph.add("Conv", [inside, weight, *node.input[2:]], f"{out}.out", _BLOCKED, **attributes)
    graph.add("ReorderOutput", [f"{out}.out"], out, _BLOCKED, channels=n)
    if not any(entry.domain == _BLOCKED for entry in graph.model.opset_import):
        graph.model.opset_import.append(helper.make_opsetid(_BLOCKED, 1))
    return True
