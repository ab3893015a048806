"""First and last layers, by what flows through the graph and by no name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import trp_onnx
from tests.graphs import info, model, save, weights

CHANNELS = 8


class Net:
    """Nodes one after the other; every layer is called by the name that the test gives it."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def conv(self, x: str, name: str, channels: int = CHANNELS) -> str:
        self.constants[f"{name}.w"] = weights(CHANNELS, channels, 1, 1, seed=len(self.nodes))
        return self.op("Conv", [x, f"{name}.w"], name)

    def linear(self, x: str, name: str) -> str:
        self.constants[f"{name}.w"] = weights(CHANNELS, CHANNELS, seed=len(self.nodes))
        return self.op("MatMul", [x, f"{name}.w"], name)

    def op(self, op: str, inputs: list[str], name: str = "", **attributes: object) -> str:
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name or f"n{output}", **attributes))
        return output

    def roles(self, path: Path, inputs: list[onnx.ValueInfoProto], *outputs: str) -> dict[str, str]:
        built = model(self.nodes, inputs, [info(name, None) for name in outputs], self.constants)
        found = trp_onnx.inspect(save(built, path / "net.onnx"), simplify=False)
        return {view.name: view.role for view in found.layers if view.role}


IMAGE = [info("x", [1, 3, 6, 6])]


def residual(net: Net, x: str, name: str) -> str:
    inner = net.op("Relu", [net.conv(x, f"{name}.1")])
    return net.op("Relu", [net.op("Add", [net.conv(inner, f"{name}.2"), x])])


def test_a_residual_network_has_one_stem_and_one_last_layer(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Relu", [net.conv("x", "first", 3)])
    for block in "abc":
        x = residual(net, x, block)
    out = net.conv(net.op("GlobalAveragePool", [x]), "head")
    assert net.roles(tmp_path, IMAGE, out) == {"first": "stem", "head": "last"}


def test_skips_of_a_u_net(tmp_path: Path) -> None:
    net = Net()
    top = net.conv("x", "down", 3)
    low = net.conv(net.op("MaxPool", [top], kernel_shape=[2, 2], strides=[2, 2]), "bottom")
    net.constants["scales"] = np.array([1, 1, 2, 2], np.float32)
    up = net.op("Resize", [low, "", "scales"])
    out = net.conv(net.op("Add", [up, top]), "up")
    assert net.roles(tmp_path, IMAGE, out) == {"down": "stem", "up": "last"}


def test_every_head_has_a_last_layer(tmp_path: Path) -> None:
    net = Net()
    x = net.conv("x", "first", 3)
    small = net.conv(x, "neck")
    outputs = [
        net.op("Sigmoid", [net.conv(level, f"{kind}{i}")]) for i, level in enumerate((x, small)) for kind in "bc"
    ]
    lasts = dict.fromkeys(("b0", "c0", "b1", "c1"), "last")
    assert net.roles(tmp_path, IMAGE, *outputs) == {"first": "stem", **lasts}


def transformer(net: Net, x: str, blocks: int) -> str:
    """A residual stream that every layer reads, with a way around all of them."""
    for i in range(blocks):
        q, k, v = (net.linear(x, f"{name}{i}") for name in "qkv")
        scores = net.op("Softmax", [net.op("MatMul", [q, net.op("Transpose", [k], perm=[0, 2, 1])], f"qk{i}")])
        x = net.op("Add", [x, net.linear(net.op("MatMul", [scores, v], f"av{i}"), f"o{i}")])
        x = net.op("Add", [x, net.linear(net.op("Relu", [net.linear(x, f"up{i}")]), f"down{i}")])
    return x


def test_ids_have_no_stem_and_a_residual_stream_one_last_layer(tmp_path: Path) -> None:
    net = Net()
    net.constants["table"] = weights(20, CHANNELS)
    out = transformer(net, net.op("Gather", ["table", "ids"]), 3)
    ids = [info("ids", [1, 5], TensorProto.INT64)]
    assert net.roles(tmp_path, ids, out) == {"down2": "last"}


def test_a_stream_of_floats_begins_with_what_reads_it_first(tmp_path: Path) -> None:
    net = Net()
    out = transformer(net, "x", 2)
    stems = dict.fromkeys(("q0", "k0", "v0"), "stem")
    assert net.roles(tmp_path, [info("x", [1, 5, CHANNELS])], out) == {**stems, "down1": "last"}


def test_bytes_are_a_signal_and_every_input_has_its_stem(tmp_path: Path) -> None:
    net = Net()
    left = net.conv(net.op("Cast", ["x"], to=TensorProto.FLOAT), "left", 3)
    out = net.conv(net.op("Add", [net.conv(left, "deep"), net.conv("z", "right")]), "head")
    inputs = [info("x", [1, 3, 6, 6], TensorProto.UINT8), info("z", [1, CHANNELS, 6, 6])]
    assert net.roles(tmp_path, inputs, out) == {"left": "stem", "right": "stem", "head": "last"}


def test_a_network_that_ends_in_an_index_has_a_last_layer(tmp_path: Path) -> None:
    net = Net()
    out = net.op("ArgMax", [net.conv(net.conv("x", "first", 3), "head")], axis=1)
    assert net.roles(tmp_path, IMAGE, out) == {"first": "stem", "head": "last"}


def test_sizes_carry_nothing_on(tmp_path: Path) -> None:
    net = Net()
    x = net.conv("x", "first", 3)
    head = net.conv(x, "head")
    net.constants["one"] = np.array([0.5], np.float32)
    filled = net.op("ConstantOfShape", [net.op("Shape", [head])])
    other = net.conv(net.op("Add", [filled, x]), "other")
    assert net.roles(tmp_path, IMAGE, head, other) == {"first": "stem", "head": "last", "other": "last"}


def test_branches_of_an_if_have_ends_of_their_own(tmp_path: Path) -> None:
    net = Net()

    def body(name: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node("Conv", ["x", f"{name}1.w"], [f"{name}.h"], name=f"{name}1"),
            helper.make_node("Conv", [f"{name}.h", f"{name}2.w"], [f"{name}.y"], name=f"{name}2"),
        ]
        return helper.make_graph(nodes, name, [], [info(f"{name}.y", None)])

    for name in "ab":
        net.constants |= {f"{name}1.w": weights(CHANNELS, 3, 1, 1), f"{name}2.w": weights(CHANNELS, CHANNELS, 1, 1)}
    net.constants["zero"] = np.float32(0)
    choice = net.op("Greater", [net.op("ReduceMax", ["x"], keepdims=0), "zero"])
    out = net.op("If", [choice], "choose", then_branch=body("a"), else_branch=body("b"))
    assert net.roles(tmp_path, IMAGE, out) == {"a1": "stem", "a2": "last", "b1": "stem", "b2": "last"}
    head = net.conv(out, "head")
    assert net.roles(tmp_path, IMAGE, head) == {"a1": "stem", "b1": "stem", "head": "last"}
