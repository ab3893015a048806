"""Networks built layer by layer, for tests that are about how layers hang together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from trp_onnx.graph.layers import find_layers
from trp_onnx.graph.session import run_model
from trp_onnx.graph.spaces import Space, find_spaces
from trp_onnx.passes import CleanUpPass, CutChannelsPass, ReplaceWeightsPass
from trp_onnx.passes.normalise import normalise


class Net:
    """A graph that grows: each method adds a node and returns the name of what it makes."""

    def __init__(self, *shape: int | str, seed: int = 0, opset: int = 17) -> None:
        self.opset, self._rng = opset, np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)]
        self._widths = {"x": shape[1]}

    def const(self, array: Any) -> str:
        """A constant."""
        name = f"k{len(self._constants)}"
        array = np.asarray(array)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array.astype(np.int64)
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def random(self, *shape: int) -> str:
        """A random constant, whose products keep their size."""
        fan_in = max(1, int(np.prod(shape[1:])))
        return self.const(self._rng.standard_normal(shape) / np.sqrt(fan_in))

    def op(self, kind: str, *inputs: str, outputs: int = 1, name: str | None = None, **attributes: Any) -> Any:
        """Any node."""
        name = name or f"{kind.lower()}{len(self._nodes)}"
        made = [f"{name}.{i}" if i else f"{name}.out" for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), made, name=name, **attributes))
        return made[0] if outputs == 1 else made

    def conv(self, flow: str, into: int, out: int, name: str, kernel: int = 1, groups: int = 1, **more: Any) -> str:
        """A convolution that keeps the size, with a bias."""
        weight = self.random(out, into // groups, kernel, kernel)
        pads = [kernel // 2] * 4
        return str(self.op("Conv", flow, weight, self.random(out), name=name, group=groups, **({"pads": pads} | more)))

    def gemm(self, flow: str, into: int, out: int, name: str) -> str:
        """A fully connected layer."""
        return str(self.op("Gemm", flow, self.random(out, into), self.random(out), name=name, transB=1))

    def linear(self, flow: str, into: int, out: int, name: str, *, bias: bool = True) -> str:
        """A matrix product and a bias."""
        product = self.op("MatMul", flow, self.const(self._rng.standard_normal((into, out)) / into**0.5), name=name)
        return str(self.op("Add", product, self.random(out)) if bias else product)

    def model(self, *outputs: str) -> ir.Model:
        """The model, normalised but not simplified."""
        ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self._nodes, "net", self._inputs, ends, self._constants)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        return normalise(ir.from_proto(onnx.shape_inference.infer_shapes(proto)), simplify=False)


def spaces_of(model: ir.Model, shapes: dict[str, Sequence[int]] | None = None) -> dict[str, Space]:
    """Its spaces, by name."""
    return {space.name: space for space in find_spaces(model, find_layers(model, shapes), shapes)}


def shown(space: Space) -> str:
    """A space in a line: "conv1 16 conv1 > conv2"."""
    groups = f"/{space.groups}" if space.groups > 1 else ""
    makers, readers = ([layer.name for layer in layers] for layers in (space.producers, consumers_of(space)))
    return f"{space.size}{groups} {' '.join(makers)} > {' '.join(readers)}"


def consumers_of(space: Space) -> list[Any]:
    """Its consuming layers."""
    return [consumer.layer for consumer in space.consumers]


def outputs(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What a model gives."""
    return list(run_model(ir.to_proto(model), feeds).values())


def forgets(model: ir.Model, gone: dict[str, Sequence[int]], shapes: dict[str, Sequence[int]] | None = None) -> None:
    """Let the consumers of some units read nothing of them, in place."""
    weights: dict[str, np.ndarray] = {}
    for name, units in gone.items():
        for consumer in spaces_of(model, shapes)[name].consumers:
            weight = weights.setdefault(consumer.layer.name, np.ascontiguousarray(consumer.layer.weight()))
            columns = np.isin(consumer.unit, units).reshape(weight.shape[0], 1, -1)
            weight.reshape(*weight.shape[:2], -1)[np.broadcast_to(columns, (*weight.shape[:2], columns.shape[2]))] = 0
    ReplaceWeightsPass({name: (weight, None) for name, weight in weights.items()})(model)


def cut(model: ir.Model, gone: dict[str, Sequence[int]], shapes: dict[str, Sequence[int]] | None = None) -> ir.Model:
    """A copy without some units."""
    copy = model.clone()
    sizes = {name: space.size for name, space in spaces_of(copy, shapes).items()}
    kept = {name: [unit for unit in range(sizes[name]) if unit not in set(units)] for name, units in gone.items()}
    CutChannelsPass(kept, input_shapes=shapes)(copy)
    CleanUpPass()(copy)
    return copy


def _with_constant(kind: str, *shape: int) -> Any:
    return lambda net, flow, c: (net.op(kind, flow, net.random(*(c if size == -1 else size for size in shape))), c)


def _unary(kind: str, **attributes: Any) -> Any:
    return lambda net, flow, c: (net.op(kind, flow, **attributes), c)


def _batch_norm(net: Net, flow: str, c: int) -> tuple[str, int]:
    return net.op("BatchNormalization", flow, *(net.const(np.full(c, x)) for x in (1.5, 0.1, 0.2, 2.0))), c


def _instance_norm(net: Net, flow: str, c: int) -> tuple[str, int]:
    return net.op("InstanceNormalization", flow, net.random(c), net.random(c)), c


def _multiplied(net: Net, flow: str, c: int) -> tuple[str, int]:
    return net.op("Conv", flow, net.random(2 * c, 1, 3, 3), net.random(2 * c), group=c, pads=[1] * 4), 2 * c


def _grouped(net: Net, flow: str, c: int) -> tuple[str, int]:
    return net.op("Conv", flow, net.random(12, c // 2, 3, 3), net.random(12), group=2, pads=[1] * 4), 12


def _transposed(net: Net, flow: str, c: int) -> tuple[str, int]:
    return net.op("ConvTranspose", flow, net.random(c, 8, 3, 3), net.random(8), pads=[1] * 4), 8


def _spread(net: Net, flow: str, c: int) -> tuple[str, int]:
    """A transposed convolution of groups, then one of each channel."""
    wide = net.op("ConvTranspose", flow, net.random(c, 4, 3, 3), group=2, pads=[1] * 4)
    return net.op("ConvTranspose", wide, net.random(8, 1, 3, 3), net.random(8), group=8, pads=[1] * 4), 8


def _concat(net: Net, flow: str, c: int) -> tuple[str, int]:
    return net.op("Concat", net.op("Conv", flow, net.random(8, c, 1, 1)), flow, axis=1), c + 8


def _residual(net: Net, flow: str, c: int) -> tuple[str, int]:
    return net.op("Add", net.op("Relu", net.op("Conv", flow, net.random(c, c, 1, 1))), flow), c


def _gate(net: Net, flow: str, c: int) -> tuple[str, int]:
    few = net.op("Relu", net.op("Conv", net.op("GlobalAveragePool", flow), net.random(4, c, 1, 1)))
    return net.op("Mul", flow, net.op("HardSigmoid", net.op("Conv", few, net.random(c, 4, 1, 1)))), c


def _split(net: Net, flow: str, c: int) -> tuple[str, int]:
    first, second = net.op("Split", flow, net.const([c // 4, c - c // 4]), axis=1, outputs=2)
    return net.op("Concat", second, net.op("Tanh", first), first, axis=1), c + c // 4


def _evenly_split(net: Net, flow: str, c: int) -> tuple[str, int]:
    first, second = net.op("Split", flow, axis=1, outputs=2)
    return net.op("Mul", first, net.op("Sigmoid", second)), c // 2


def _slice(net: Net, flow: str, c: int) -> tuple[str, int]:
    return net.op("Slice", flow, net.const([1]), net.const([-3]), net.const([1])), c - 4


def _reversed(net: Net, flow: str, c: int) -> tuple[str, int]:
    return net.op("Slice", flow, net.const([-1]), net.const([-1000]), net.const([1]), net.const([-1])), c


def _padded(net: Net, flow: str, c: int) -> tuple[str, int]:
    """More channels, some of them zero beside the others of another layer."""
    wide = net.op("Pad", flow, net.const([0, 2, 1, 0, 0, 2, -1, 0]))
    return net.op("Add", wide, net.op("Conv", wide, net.random(c + 4, c + 4, 1, 1))), c + 4


def _flat(net: Net, flow: str, c: int) -> tuple[str, int]:
    rows = net.op("Abs", net.op("Reshape", flow, net.const([0, c, -1])))
    return net.op("Reshape", rows, net.const([0, 0, 4, -1])), c


def _channels_last(net: Net, flow: str, c: int) -> tuple[str, int]:
    last = net.op("Transpose", flow, perm=[0, 2, 3, 1])
    return net.op("Transpose", net.op("Add", last, net.random(c)), perm=[0, 3, 1, 2]), c


def _shuffled(net: Net, flow: str, c: int) -> tuple[str, int]:
    apart = net.op("Transpose", net.op("Reshape", flow, net.const([0, 2, c // 2, 4, -1])), perm=[0, 2, 1, 3, 4])
    return net.op("Reshape", apart, net.const([0, c, 4, -1])), c


def _mean(net: Net, flow: str, c: int) -> tuple[str, int]:
    mean = net.op("ReduceMean", flow, axes=[2, 3], keepdims=0)
    return net.op("Sub", flow, net.op("Unsqueeze", mean, net.const([2, 3]))), c


def _depth(net: Net, flow: str, c: int) -> tuple[str, int]:
    deep = net.op("SpaceToDepth", flow, blocksize=2)
    return net.op("DepthToSpace", deep, blocksize=2), c


def _rounded(net: Net, flow: str, c: int) -> tuple[str, int]:
    ends = net.const(0.05), net.const(np.array(0, np.float32))
    return net.op("Mul", net.op("Round", net.op("Div", flow, ends[0])), ends[0]), c


def _tokens(net: Net, flow: str, c: int) -> tuple[str, int]:
    """A product along positions: a layer for each channel alone."""
    rows = net.op("MatMul", net.op("Reshape", flow, net.const([0, c, -1])), net.random(16, 16))
    return net.op("Reshape", rows, net.const([0, -1, 4, 4])), c


STEPS = {
    **{kind: _unary(kind) for kind in ("Relu", "Sigmoid", "LeakyRelu", "HardSwish", "Softplus", "Identity", "Elu")},
    "Softmax": _unary("Softmax", axis=3),
    "Dropout": _unary("Dropout"),
    "MaxPool": _unary("MaxPool", kernel_shape=[3, 3], pads=[1] * 4),
    "AveragePool": _unary("AveragePool", kernel_shape=[3, 3], pads=[1] * 4),
    "PRelu": _with_constant("PRelu", -1, 1, 1),
    "Mul": _with_constant("Mul", 1, -1, 1, 1),
    "Max": _with_constant("Max", 1),
    "bias of places": _with_constant("Add", 4, 4),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "depthwise, two each": _multiplied,
    "grouped": _grouped,
    "transposed": _transposed,
    "transposed groups": _spread,
    "Concat": _concat,
    "residual": _residual,
    "gate": _gate,
    "Split": _split,
    "GLU": _evenly_split,
    "Slice": _slice,
    "reversed": _reversed,
    "Pad": _padded,
    "flat": _flat,
    "channels last": _channels_last,
    "shuffled": _shuffled,
    "mean": _mean,
    "depth to space": _depth,
    "rounded": _rounded,
    "tokens": _tokens,
}
"""Steps that keep maps of 4 x 4: each takes a net, a value and its channels, and gives the same of what it makes."""
