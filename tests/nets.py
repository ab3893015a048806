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

    def linear(self, flow: str, into: int, out: int, name: str) -> str:
        """A matrix product and a bias."""
        product = self.op("MatMul", flow, self.const(self._rng.standard_normal((into, out)) / into**0.5), name=name)
        return str(self.op("Add", product, self.random(out)))

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
            weight = weights.setdefault(consumer.layer.name, consumer.layer.weight())
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
