"""Spaces: which channels of a network can be removed together, from what, and why others cannot."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import pytest
from click.testing import CliRunner

from tests.nets import Net, shown, spaces_of
from trp_onnx.cli.main import main


def inverted_residual() -> Net:
    net = Net("N", 3, 8, 8)
    flow = net.op("Clip", net.conv("x", 3, 8, "stem", 3), net.const(0.0), net.const(6.0))
    for block in (1, 2):
        wide = net.op("Clip", net.conv(flow, 8, 24, f"expand{block}"), net.const(0.0), net.const(6.0))
        deep = net.op("HardSwish", net.conv(wide, 24, 24, f"depthwise{block}", 3, 24))
        flow = net.op("Add", flow, net.conv(deep, 24, 8, f"project{block}"))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", flow))
    net.gemm(pooled, 8, 5, "fc")
    return net


def test_inverted_residuals() -> None:
    spaces = spaces_of(inverted_residual().model("fc.out"))
    assert {name: shown(space) for name, space in spaces.items()} == {
        "stem": "8 stem project1 project2 > expand1 expand2 fc",
        "expand1": "24 expand1 > project1",
        "expand2": "24 expand2 > project2",
        "fc": "5 fc > ",
    }
    assert [space.closed for space in spaces.values()] == [None] * 3 + ["they are the output 'fc.out' of the network"]
    (depthwise, *_) = (node for node in spaces["expand1"].within if node.name == "depthwise1")
    assert depthwise.op == "Conv"


def test_a_fire_module_has_a_space_for_each_branch() -> None:
    net = Net("N", 3, 8, 8)
    squeeze = net.op("Relu", net.conv("x", 3, 4, "squeeze"))
    left = net.op("Relu", net.conv(squeeze, 4, 6, "left"))
    right = net.op("Relu", net.conv(squeeze, 4, 10, "right", 3))
    net.conv(net.op("MaxPool", net.op("Concat", left, right, axis=1), kernel_shape=[2, 2]), 16, 5, "next")
    spaces = spaces_of(net.model("next.out"))
    assert [shown(space) for space in spaces.values()] == [
        "4 squeeze > left right", "6 left > next", "10 right > next", "5 next > ",
    ]  # fmt: skip
    (unit,) = (consumer.unit for consumer in spaces["right"].consumers)
    assert unit.tolist() == [-1] * 6 + list(range(10))


@pytest.mark.parametrize(
    ("operator", "why"),
    [
        ("LRN", "LRN 'op' normalises over them, so that each output depends on all"),
        ("Einsum", "Einsum 'op' is not read as a matrix product: write it as MatMul to factorise it"),
        ("Det", "Det 'op' is not known to keep them apart"),
        ("Softmax", "Softmax 'op' mixes them: each output depends on all"),
        ("Add", "Add 'op' combines it with 'x', whose entries stay"),
    ],
)
def test_why_a_space_is_closed(operator: str, why: str) -> None:
    net = Net("N", 4, 8, 8)
    flow = net.conv("x", 4, 4, "conv1")
    more = {"LRN": {"size": 3}, "Einsum": {"equation": "nchw->nchw"}, "Softmax": {"axis": 1}}.get(operator, {})
    net.conv(net.op(operator, flow, *(["x"] if operator == "Add" else []), name="op", **more), 4, 4, "conv2")
    assert spaces_of(net.model("conv2.out"))["conv1"].closed == why


def attention(net: Net, flow: str, width: int, heads: int, name: str = "") -> str:
    """Multi-head attention, with its residual connection."""
    size = width // heads
    parts = []
    for part in ("q", "k", "v"):
        made = net.linear(flow, width, width, f"{name}{part}", bias=part == "v")
        rows = net.op("Reshape", made, net.const([0, 0, heads, size]))
        parts.append(net.op("Transpose", rows, perm=[0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]))
    scores = net.op("MatMul", net.op("Mul", parts[0], net.const(size**-0.5)), parts[1], name=f"{name}scores")
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), parts[2], name=f"{name}mixed")
    merged = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.const([0, 0, width]))
    return str(net.op("Add", flow, net.linear(merged, width, width, f"{name}o")))


def encoder() -> Net:
    net = Net("N", 5, 12)
    flow = attention(net, net.linear("x", 12, 12, "embed"), 12, 3)
    ones, zeros = net.const([1.0] * 12), net.const([0.0] * 12)
    flow = net.op("LayerNormalization", flow, ones, zeros, name="norm", axis=-1)
    wide = net.linear(flow, 12, 32, "up")
    half = net.op("Mul", wide, net.op("Add", net.op("Erf", net.op("Div", wide, net.const(2**0.5))), net.const(1.0)))
    net.op("Add", flow, net.linear(net.op("Mul", half, net.const(0.5)), 32, 12, "down"), name="last")
    return net


def test_attention_and_mlp() -> None:
    """Q goes with K and V with O, equally many dimensions of each head; hidden units go one by one."""
    spaces = spaces_of(encoder().model("last.out"))
    assert {name: (space.kind, shown(space)) for name, space in spaces.items() if not space.closed} == {
        "q": ("head", "12/3 q k > "),
        "v": ("head", "12/3 v > o"),
        "up": ("hidden", "32 up > down"),
    }
    assert spaces["embed"].closed == (
        "LayerNormalization 'norm' normalises over them, so that each output depends on all"
    )


def test_inspect_lists_spaces(tmp_path: Path) -> None:
    ir.save(inverted_residual().model("fc.out"), tmp_path / "net.onnx")
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "net.onnx"), "--json", "-"])
    assert json.loads(result.stdout)["spaces"][1:] == [
        {
            "name": name, "kind": kind, "units": units, "groups": 1, "producers": [name],
            "consumers": consumers, "closed": closed,
        }
        for name, kind, units, consumers, closed in (
            ("expand1", "channels", 24, ["project1"], None),
            ("expand2", "channels", 24, ["project2"], None),
            ("fc", "hidden", 5, [], "they are the output 'fc.out' of the network"),
        )
    ]  # fmt: skip
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "net.onnx")]).stdout
    assert "expand1 > project1" in shown and "(1) they are the output 'fc.out' of the network" in shown
