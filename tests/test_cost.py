"""MACs are those of all operators, from shapes that inference or a run gives; hand-computed numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import trp_onnx
from tests.easy import compress
from tests.graphs import conv_net, info, model, save, weights

S, B, X, H = 5, 2, 6, 4
"""Steps, batch, inputs and hidden units of the recurrent cells."""


def recurrent(op: str, gates: int, directions: int) -> onnx.ModelProto:
    w = weights(directions, gates * H, X, seed=1)
    r = weights(directions, gates * H, H, seed=2)
    direction = "bidirectional" if directions == 2 else "forward"
    node = helper.make_node(op, ["x", "w", "r"], ["y"], name="cell", hidden_size=H, direction=direction)
    return model([node], [info("x", [S, B, X])], [info("y", None)], {"w": w, "r": r})


def of_two(op: str, a: list[int], b: list[int], domain: str = "", **attributes: object) -> onnx.ModelProto:
    node = helper.make_node(op, ["a", "b"], ["y"], name="product", domain=domain, **attributes)
    built = model([node], [info("a", a), info("b", b)], [info("y", None)])
    built.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return built


def attention(heads: int, kv_heads: int) -> onnx.ModelProto:
    q, kv = [B, S, heads * 8], [B, 7, kv_heads * 8]
    node = helper.make_node(
        "Attention", ["q", "k", "v"], ["y"], name="attend", q_num_heads=heads, kv_num_heads=kv_heads
    )
    return model([node], [info("q", q), info("k", kv), info("v", kv)], [info("y", None)], opset=23, ir_version=10)


def packed_attention() -> onnx.ModelProto:
    node = helper.make_node("Attention", ["x", "w", "b"], ["y"], name="attend", num_heads=2, domain="com.microsoft")
    constants = {"w": weights(16, 48), "b": weights(48, 1)[:, 0]}
    built = model([node], [info("x", [B, S, 16])], [info("y", [B, S, 16])], constants)
    built.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return built


CASES = {
    "lstm": (recurrent("LSTM", 4, 1), S * B * 4 * H * (X + H)),
    "lstm both ways": (recurrent("LSTM", 4, 2), 2 * S * B * 4 * H * (X + H)),
    "gru": (recurrent("GRU", 3, 1), S * B * 3 * H * (X + H)),
    "rnn": (recurrent("RNN", 1, 2), 2 * S * B * H * (X + H)),
    "product of activations": (of_two("MatMul", [2, 3, 4, 5], [2, 3, 5, 6]), 2 * 3 * 4 * 5 * 6),
    "broadcast product": (of_two("MatMul", [2, 1, 4, 5], [3, 5, 6]), 2 * 3 * 4 * 5 * 6),
    "product with a vector": (of_two("MatMul", [4, 5], [5]), 4 * 5),
    "einsum": (of_two("Einsum", [2, 3, 4, 5], [2, 3, 6, 5], equation="bhqd,bhkd->bhqk"), 2 * 3 * 4 * 6 * 5),
    "einsum with ellipsis": (of_two("Einsum", [2, 3, 4, 5], [3, 5, 6], equation="...ij,...jk"), 2 * 3 * 4 * 5 * 6),
    "gemm of activations": (of_two("Gemm", [5, 4], [6, 5], transA=1, transB=1), 4 * 5 * 6),
    "fused product": (of_two("FusedMatMul", [2, 5, 4], [2, 5, 6], "com.microsoft", transA=1), 2 * 4 * 5 * 6),
    "attention": (attention(4, 4), 2 * B * S * 7 * 4 * 8),
    "grouped attention": (attention(4, 2), 2 * B * S * 7 * 4 * 8),
    "packed attention": (packed_attention(), B * S * 16 * 48 + 2 * B * S * S * 16),
}


@pytest.mark.parametrize("case", CASES)
def test_macs_of_operators(case: str, tmp_path: Path) -> None:
    built, macs = CASES[case]
    found = trp_onnx.inspect(save(built, tmp_path / "net.onnx"), simplify=False)
    assert (found.macs, found.unknown) == (macs, 0)
    assert [view.share for view in found.layers] == [1.0]


def beside_a_conv(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: list[int | str]
) -> onnx.ModelProto:
    """A convolution of 16 x 16 x 9 x 64 MACs, and what `nodes` make of its output 'c' (1, 16, 8, 8)."""
    conv = helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1])
    return model([conv, *nodes], [info("x", shape)], [info("y", None)], {"w": weights(16, 16, 3, 3), **constants})


CONV = 16 * 16 * 9 * 64
CELL = 64 * 4 * 32 * (16 + 32)
LSTM = [
    helper.make_node("Reshape", ["c", "rows"], ["flat"]),
    helper.make_node("Transpose", ["flat"], ["steps"], perm=[2, 0, 1]),
    helper.make_node("LSTM", ["steps", "lw", "lr"], ["y"], name="cell", hidden_size=32),
]
CONSTANTS = {
    "rows": np.array([0, 16, -1]),
    "lw": weights(1, 128, 16, seed=3),
    "lr": weights(1, 128, 32, seed=4),
}


def test_one_total_everywhere(tmp_path: Path) -> None:
    path = save(beside_a_conv(LSTM, CONSTANTS, ["n", 16, 8, 8]), tmp_path / "net.onnx")
    seen = trp_onnx.inspect(path)
    report = compress(path, tmp_path / "small.onnx", macs=0.8, align=1)
    assert seen.macs == report.macs.before == CONV + CELL
    assert report.macs.after <= 0.8 * (CONV + CELL)
    cell = next(d for d in report.layers if d.op == "LSTM")
    assert cell.macs_before == cell.macs_after == CELL
    assert trp_onnx.inspect(tmp_path / "small.onnx").macs == report.macs.after


def test_a_budget_below_what_cannot_be_factorised_is_out_of_reach(tmp_path: Path) -> None:
    path = save(beside_a_conv(LSTM, CONSTANTS, [1, 16, 8, 8]), tmp_path / "net.onnx")
    with pytest.raises(trp_onnx.TargetError, match="out of reach"):
        compress(path, tmp_path / "small.onnx", macs=0.3, align=1)


def test_sizes_that_inference_leaves_open_come_from_a_run(tmp_path: Path) -> None:
    # How many rows there are depends on the values of a sum: no inference knows.
    nodes = [
        helper.make_node("ReduceSum", ["four"], ["sum"], keepdims=1),
        helper.make_node("Concat", ["minus", "sum"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["c", "sizes"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["columns"], perm=[1, 0]),
        helper.make_node("MatMul", ["columns", "rows"], ["y"], name="product"),
    ]
    constants = {"four": np.array([1, 1, 2]), "minus": np.array([-1])}
    path = save(beside_a_conv(nodes, constants, ["n", 16, 8, 8]), tmp_path / "net.onnx")
    found = trp_onnx.inspect(path, simplify=False)
    assert (found.macs, found.unknown) == (CONV + 4 * 4 * 256, 0)


def test_unknown_macs_are_said_and_no_share_is_made_of_them(tmp_path: Path) -> None:
    path = save(beside_a_conv(LSTM, CONSTANTS, ["n", 16, 8, "w"]), tmp_path / "net.onnx")
    found = trp_onnx.inspect(path)
    assert found.unknown == 2
    assert [view.share for view in found.layers] == [None, None]
    assert any("MACs of 2 nodes are unknown" in note and "'conv'" in note for note in found.notes)
    assert trp_onnx.inspect(path, input_shapes={"x": (1, 16, 8, 8)}).macs == CONV + CELL


def branches() -> list[onnx.NodeProto]:
    def body(name: str, weight: str) -> onnx.GraphProto:
        node = helper.make_node("Conv", ["c", weight], [f"{name}.y"], name=f"{name}.conv", pads=[1, 1, 1, 1])
        return helper.make_graph([node], name, [], [info(f"{name}.y", None)])

    return [
        helper.make_node("ReduceMax", ["c"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["positive"]),
        helper.make_node(
            "If", ["positive"], ["y"], name="if", then_branch=body("a", "wa"), else_branch=body("b", "wb")
        ),
    ]


def test_of_an_if_the_larger_branch_counts(tmp_path: Path) -> None:
    constants = {
        "zero": np.float32(0), "wa": weights(8, 16, 3, 3, seed=5), "wb": weights(16, 16, 3, 3, seed=6)
    }  # fmt: skip
    path = save(beside_a_conv(branches(), constants, [1, 16, 8, 8]), tmp_path / "net.onnx")
    found = trp_onnx.inspect(path)
    assert found.macs == 2 * CONV
    assert any("branches of an If" in note for note in found.notes)
    report = compress(path, tmp_path / "small.onnx", macs=0.5, align=1)
    assert report.macs.before == 2 * CONV and report.macs.ratio <= 0.5
    assert {d.name for d in report.layers if d.scheme} == {"conv", "a.conv", "b.conv"}


def loop(trips: np.ndarray | None) -> onnx.ModelProto:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["on"]),
            helper.make_node("MatMul", ["h", "w"], ["m"], name="step"),
            helper.make_node("Tanh", ["m"], ["next"]),
        ],
        "body",
        [info("i", [], TensorProto.INT64), info("going", [], TensorProto.BOOL), info("h", [3, 16])],
        [info("on", [], TensorProto.BOOL), info("next", [3, 16])],
    )
    inputs = [info("x", [3, 16])]
    constants: dict[str, np.ndarray] = {"w": weights(16, 16), "true": np.array(True)}
    if trips is None:
        inputs.append(info("trips", [], TensorProto.INT64))
    else:
        constants["trips"] = trips
    node = helper.make_node("Loop", ["trips", "true", "x"], ["y"], name="l", body=body)
    return model([node], inputs, [info("y", None)], constants)


def test_a_loop_counts_as_often_as_it_runs(tmp_path: Path) -> None:
    known = trp_onnx.inspect(save(loop(np.array(7)), tmp_path / "known.onnx"), simplify=False)
    assert known.macs == 7 * 3 * 16 * 16
    assert (known.layers[0].macs, known.layers[0].share) == (3 * 16 * 16, 1.0)
    assert any("runs 7 times" in note for note in known.notes)
    open_ = trp_onnx.inspect(save(loop(None), tmp_path / "open.onnx"), simplify=False)
    assert open_.macs == 3 * 16 * 16
    assert any("one iteration" in note for note in open_.notes)


def test_an_operator_of_a_foreign_domain_is_unknown(tmp_path: Path) -> None:
    node = helper.make_node("Mystery", ["c"], ["y"], name="mystery", domain="my.own")
    built = beside_a_conv([node], {}, [1, 16, 8, 8])
    built.opset_import.append(helper.make_opsetid("my.own", 1))
    found = trp_onnx.inspect(save(built, tmp_path / "net.onnx"))
    assert (found.macs, found.unknown) == (CONV, 1)
    assert found.layers[0].share is None
    assert any("Mystery" in note for note in found.notes)


def test_convolutions_cost_what_they_did(tmp_path: Path) -> None:
    assert trp_onnx.inspect(conv_net(tmp_path / "net.onnx")).macs == 16 * 144 * (27 + 144) + 160


def test_a_ratio_of_a_part_is_not_the_networks(tmp_path: Path) -> None:
    # The recurrent part has steps that no run can tell: they are as many as the input is wide.
    nodes = [
        helper.make_node("GlobalAveragePool", ["c"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["row"]),
        helper.make_node("MatMul", ["row", "f"], ["fc"], name="fc"),
        helper.make_node("Transpose", ["z"], ["zs"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["zs", "lw", "lr"], ["steps", "", "cell"], name="cell", hidden_size=32),
        helper.make_node("Squeeze", ["cell", "zero"], ["last"]),
        helper.make_node("Concat", ["fc", "last"], ["y"], axis=1),
    ]
    f = weights(16, 2, seed=8) @ weights(40, 2, seed=9).T
    constants = {"f": f, "zero": np.array([0]), "lw": CONSTANTS["lw"], "lr": CONSTANTS["lr"]}
    built = beside_a_conv(nodes, constants, [1, 16, 8, 8])
    built.graph.input.append(info("z", [1, "steps", 16]))
    rules = [trp_onnx.LayerRule("fc", scheme="svd", rank=(2,))]
    report = compress(save(built, tmp_path / "net.onnx"), tmp_path / "small.onnx", config=rules, align=1)
    document = report.to_dict()["macs"]
    assert report.macs.ratio is None and document["ratio"] is None
    assert (report.macs.unknown, document["unknown_nodes"]) == (1, 1)
    assert (report.macs.before, report.macs.after) == (CONV + 16 * 40, CONV + 2 * 16 + 2 * 40)
    assert document["ratio_of_the_known"] == report.macs.remaining
    assert any("MACs of 1 node are unknown" in note and "LSTM" in note for note in report.notes)
