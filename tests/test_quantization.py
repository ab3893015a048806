"""int8 after low rank: what it promises, what it balances, what it leaves in float, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx import helper

import trp_onnx
from tests.easy import compress
from tests.graphs import conv_net, info, model, rng, run, save, weights
from trp_onnx.cli.main import main
from trp_onnx.errors import DataError, ModelError, UsageError
from trp_onnx.graph.layers import find_layers
from trp_onnx.graph.model import open_model
from trp_onnx.passes import BalanceFactorsPass
from trp_onnx.passes.balance_factors import pairs_of


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return conv_net(tmp_path / "net.onnx", channels=32)


def samples(net: Path, folder: Path, count: int = 200) -> Path:
    """Images labelled with what the network says of them."""
    x = rng().standard_normal((count, 12, 12, 3)).astype(np.float32)
    scores = run(net, {"x": np.ascontiguousarray(x.transpose(0, 3, 1, 2))})[0]
    np.savez(folder / "d.npz", x=x, y=scores.argmax(axis=1))
    return folder / "d.npz"


def test_int8_answers_as_float_does(net: Path, tmp_path: Path) -> None:
    data = samples(net, tmp_path)
    before = net.read_bytes()
    small = tmp_path / "small.onnx"
    compress(net, small, macs=0.8, align=1, scheme="spatial")
    result = CliRunner().invoke(
        main, ["quantize", str(small), "-o", str(tmp_path / "q.onnx"), "--data", str(data), "--test", str(data),
               "--max-drop", "10", "--original", str(net), "--json", str(tmp_path / "q.json")],
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "original, int8" in result.stdout and "layers in int8" in result.stdout
    document = json.loads((tmp_path / "q.json").read_text())
    rows = {row["name"]: row for row in document["variants"]}
    assert set(rows) == {"original", "original, int8", "float", "int8"}
    assert rows["original"]["score"]["value"] == 100 and rows["original, int8"]["score"]["value"] > 85
    assert rows["int8"]["bytes"] < 0.5 * rows["float"]["bytes"]
    assert document["lost"] <= 0.1 and document["layers"] >= 3
    ops = {node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= ops and net.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def linear_pair(folder: Path) -> Path:
    """Two convolutions with nothing between them, the channels between of very different size."""
    sizes = np.logspace(2, -2, 8, dtype=np.float32)[:, None, None, None]
    w = {"v": weights(8, 4, 3, 1) * sizes, "h": weights(6, 8, 1, 3, seed=1) / sizes.reshape(1, 8, 1, 1),
         "b": weights(8, 1, seed=2)[:, 0] * sizes[:, 0, 0, 0]}  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "v", "b"], ["m"], name="layer/v"),
        helper.make_node("Conv", ["m", "h"], ["y"], name="layer/h"),
    ]
    return save(model(nodes, [info("x", ["N", 4, 9, 9])], [info("y", ["N", 6, 7, 7])], w), folder / "pair.onnx")


def test_balancing_evens_out_channels_and_changes_nothing(tmp_path: Path) -> None:
    path = linear_pair(tmp_path)
    x = {"x": rng().standard_normal((3, 4, 9, 9)).astype(np.float32)}
    opened = open_model(path)
    pairs = pairs_of(find_layers(opened))
    assert [(a.name, b.name) for a, b in pairs] == [("layer/v", "layer/h")]

    def between(file: Path) -> np.ndarray:
        proto = onnx.load(file)
        proto.graph.output.append(info("m", ["N", 8, 7, 9]))
        onnx.save(proto, tmp_path / "seen.onnx")
        return np.abs(run(tmp_path / "seen.onnx", x)[1]).max(axis=(0, 2, 3))

    largest = between(path).astype(np.float64)
    BalanceFactorsPass({"m": largest})(opened)
    ir.save(opened, tmp_path / "even.onnx")
    np.testing.assert_allclose(run(tmp_path / "even.onnx", x)[0], run(path, x)[0], rtol=1e-4, atol=1e-4)
    even = between(tmp_path / "even.onnx")
    assert largest.max() / largest.min() > 1e3 and even.max() / even.min() < 30


def test_layers_that_are_no_pair(tmp_path: Path, net: Path) -> None:
    assert pairs_of(find_layers(open_model(net))) == []  # an activation stands between


def fragile(folder: Path) -> Path:
    """conv_net, but one huge channel that only the second layer's tiny weights see: one scale cannot hold both."""
    path = conv_net(folder / "fragile.onnx", channels=16)
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name == "w1":
            array[0] *= 3000
        elif tensor.name == "w2":
            array[:, 0] /= 3e5
        elif tensor.name == "wf":
            array *= 300  # sure of its answers
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, path)
    x = rng(9).standard_normal((200, 3, 12, 12)).astype(np.float32)
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "bf")  # so that it takes every class
    centred = onnx.numpy_helper.to_array(bias) - run(path, {"x": x})[0].mean(axis=0)
    bias.CopyFrom(onnx.numpy_helper.from_array(centred.astype(np.float32), "bf"))
    onnx.save(proto, path)
    return path


def test_what_int8_hurts_stays_in_float(tmp_path: Path) -> None:
    net = fragile(tmp_path)
    data = samples(net, tmp_path)
    rough = trp_onnx.quantize(net, tmp_path / "rough.onnx", data, max_drop=99)
    careful = trp_onnx.quantize(net, tmp_path / "careful.onnx", data, max_drop=30)
    assert rough.in_float == () and rough.lost > 50
    assert careful.lost <= 30 and {entry.layer for entry in careful.in_float} == {"conv1", "conv2"}
    assert all("int8 hurts it" in entry.reason for entry in careful.in_float)
    assert careful.layers + len(careful.in_float) == 3


def test_the_ends_stay_in_float_when_asked(net: Path, tmp_path: Path) -> None:
    result = trp_onnx.quantize(net, tmp_path / "q.onnx", samples(net, tmp_path), keep_ends=True, max_drop=50)
    assert {entry.layer for entry in result.in_float} == {"conv1", "fc"} and result.layers == 1


def test_a_fixed_batch_of_any_size(net: Path, tmp_path: Path) -> None:
    data = samples(net, tmp_path, 100)
    compress(net, tmp_path / "small.onnx", macs=0.6, align=1, scheme="spatial")
    proto = onnx.load(tmp_path / "small.onnx")
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 64
    onnx.save(proto, tmp_path / "fixed.onnx")
    assert trp_onnx.quantize(tmp_path / "fixed.onnx", tmp_path / "q.onnx", data, max_drop=50).layers >= 3


def test_signed_activations_for_arm(net: Path, tmp_path: Path) -> None:
    trp_onnx.quantize(
        net, tmp_path / "q.onnx", samples(net, tmp_path), device=trp_onnx.Device(target="arm"), max_drop=50
    )
    points = [t for t in onnx.load(tmp_path / "q.onnx").graph.initializer if t.name.endswith("zero_point")]
    assert points and all(t.data_type == onnx.TensorProto.INT8 or t.data_type == onnx.TensorProto.INT32 for t in points)


def test_outputs_that_are_no_scores_and_old_opsets(tmp_path: Path) -> None:
    """A 1-d convolution that gives a signal, from before scales had channels."""
    w = {"v": weights(16, 4, 3), "h": weights(6, 16, 3, seed=1)}
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["c"], name="c1"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "h"], ["y"], name="c2"),
    ]
    built = model(nodes, [info("x", ["N", 4, 32])], [info("y", ["N", 6, 28])], w, opset=9, ir_version=4)
    np.savez(tmp_path / "d.npz", x=rng().standard_normal((80, 4, 32)).astype(np.float32))
    result = trp_onnx.quantize(save(built, tmp_path / "n.onnx"), tmp_path / "q.onnx", tmp_path / "d.npz")
    assert result.layers == 2 and 0 < result.lost < 1
    x = {"x": rng(5).standard_normal((2, 4, 32)).astype(np.float32)}
    before, after = run(tmp_path / "n.onnx", x)[0], run(tmp_path / "q.onnx", x)[0]
    assert np.linalg.norm(before - after) < 0.1 * np.linalg.norm(before)


def test_what_the_quantiser_does_not_take_stays_in_float(tmp_path: Path) -> None:
    """A Gemm with a bias of two dimensions stops it; the rest is quantised all the same."""
    w = {"a": weights(20, 16), "b": weights(16, 5), "c": weights(1, 5)}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "b", "c"], ["y"], name="last"),
    ]
    net = save(model(nodes, [info("x", ["N", 20])], [info("y", ["N", 5])], w), tmp_path / "n.onnx")
    np.savez(tmp_path / "d.npz", x=rng().standard_normal((64, 20)).astype(np.float32))
    result = trp_onnx.quantize(net, tmp_path / "q.onnx", tmp_path / "d.npz", max_drop=50)
    assert [entry.layer for entry in result.in_float] == ["last"] and result.layers == 1
    assert "quantiser does not take it" in result.in_float[0].reason


def test_names_that_clash_and_outputs_that_are_inputs(net: Path, tmp_path: Path) -> None:
    data = samples(net, tmp_path)
    wide = conv_net(tmp_path / "wide.onnx", channels=48)
    trp_onnx.quantize(net, tmp_path / "original.onnx", data, original=wide, max_drop=50)
    x = {"x": rng().standard_normal((4, 3, 12, 12)).astype(np.float32)}
    expected, actual = run(net, x)[0], run(tmp_path / "original.onnx", x)[0]
    assert np.linalg.norm(expected - actual) < 0.2 * np.linalg.norm(expected)
    before = {path: path.read_bytes() for path in (net, wide, data)}
    for options in (["-o", data], ["-o", wide], ["-o", tmp_path / "q.onnx", "--json", net]):
        arguments = ["quantize", net, "--data", data, "--original", wide, *options]
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == 2 and "is an input" in result.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_what_is_refused(net: Path, tmp_path: Path) -> None:
    data = samples(net, tmp_path)
    with pytest.raises(UsageError, match="--max-drop"):
        trp_onnx.quantize(net, tmp_path / "q.onnx", data, max_drop=-1)
    with pytest.raises(UsageError, match="--target"):
        trp_onnx.quantize(net, tmp_path / "q.onnx", data, device=trp_onnx.Device(target="phone"))
    with pytest.raises(DataError, match="10 samples"):
        trp_onnx.quantize(net, tmp_path / "q.onnx", samples(net, tmp_path, 10))
    data = samples(net, tmp_path)
    trp_onnx.quantize(net, tmp_path / "q.onnx", data, max_drop=50)
    with pytest.raises(ModelError, match="in int8 already"):
        trp_onnx.quantize(tmp_path / "q.onnx", tmp_path / "qq.onnx", data)
    np.savez(tmp_path / "wide.npz", x=np.zeros((64, 20, 20, 3), np.float32))
    with pytest.raises(DataError, match=r"\(64,20,20,3\), but the model's input is 'x' \(N,3,12,12\)"):
        trp_onnx.quantize(net, tmp_path / "qq.onnx", tmp_path / "wide.npz")
    with pytest.raises(UsageError, match="is an input"):
        trp_onnx.quantize(net, net, data)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    half = model(
        nodes, [info("x", ["N", 20], onnx.TensorProto.FLOAT16)], [info("y", ["N", 5], onnx.TensorProto.FLOAT16)],
        {"w": weights(20, 5).astype(np.float16)},
    )  # fmt: skip
    with pytest.raises(ModelError, match="no float32"):
        trp_onnx.quantize(save(half, tmp_path / "half.onnx"), tmp_path / "qq.onnx", data)
    assert not (tmp_path / "qq.onnx").exists() and not list(tmp_path.glob(".*"))
