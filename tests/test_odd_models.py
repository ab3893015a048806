"""Models whose shapes, sharing or numbers are unusual: budgets, the map and the data hold for them as well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import trp_onnx
from tests.easy import compress
from tests.graphs import info, model, rng, save, weights
from trp_onnx.errors import ModelError, UsageError
from trp_onnx.evaluation.divergence import RUINED, divergence


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "d.npz", x=rng().standard_normal((120, 12, 12, 3)).astype(np.float32))
    return tmp_path / "d.npz"


def conv(flow: str, weight: str, output: str, name: str, *bias: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [flow, weight, *bias], [output], name=name, pads=[1, 1, 1, 1])


def shared(path: Path, *bias: onnx.NodeProto) -> Path:
    """stem -> c1 -> relu -> c2, the last two of one weight; c2 with a bias that is computed where there are nodes."""
    nodes = [
        conv("x", "w0", "a", "stem"),
        conv("a", "w", "b", "c1"),
        helper.make_node("Relu", ["b"], ["r"]),
        *bias,
        conv("r", "w", "y", "c2", *(["bias"] if bias else [])),
    ]
    held = {"w0": weights(32, 3, 3, 3, seed=3), "w": weights(32, 32, 3, 3, seed=1), "fifty": np.float32([50])}
    return save(model(nodes, [info("x", ["N", 3, 12, 12])], [info("y", ["N", 32, 12, 12])], held), path)


def test_keep_counts_for_all_that_share_the_weight(tmp_path: Path) -> None:
    net = shared(tmp_path / "net.onnx")
    rules = [trp_onnx.LayerRule("c2", keep=True)]
    report = compress(net, tmp_path / "out.onnx", macs=0.99, config=rules, align=1)
    assert [layer.name for layer in report.layers if layer.scheme] == ["stem"]
    rules += [trp_onnx.LayerRule("c1", rank=(4,), scheme="spatial")]
    with pytest.raises(UsageError, match="share their weight"):
        compress(net, tmp_path / "out.onnx", macs=0.99, config=rules, align=1)


def test_a_bias_that_is_computed_stays(tmp_path: Path, data: Path) -> None:
    bias = (
        helper.make_node("ReduceMean", ["r"], ["mean"], axes=[0, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "fifty"], ["bias"]),
    )
    net = shared(tmp_path / "net.onnx", *bias)
    more = {"macs": 0.9, "align": 1, "scheme": "spatial", "plan_by": "weights", "simplify": False}
    report = compress(net, tmp_path / "out.onnx", data=data, **more)
    assert report.outputs[0].relative_error < 0.5  # without its bias nothing of the output is left


def test_a_budget_where_some_sizes_are_unknown(tmp_path: Path) -> None:
    """One of two layers of one weight has a dynamic size: neither is planned, the other layer pays for both."""
    nodes = [conv("x", "w", "a", "c1"), conv("z", "w", "b", "c2"), conv("x", "v", "c", "c3")]
    inputs = [info("x", [1, 32, 12, 12]), info("z", [1, 32, "h", "w"])]
    outputs = [info("a", [1, 32, 12, 12]), info("b", [1, 32, "h", "w"]), info("c", [1, 32, 12, 12])]
    held = {"w": weights(32, 32, 3, 3, seed=1), "v": weights(32, 32, 3, 3, seed=2)}
    net = save(model(nodes, inputs, outputs, held), tmp_path / "net.onnx")
    report = compress(net, tmp_path / "out.onnx", macs=0.7, align=1, simplify=False)
    assert report.macs.ratio is None and report.macs.remaining <= 0.7  # a part is not the network
    with pytest.raises(trp_onnx.TargetError, match=r"0\.5\d\d of the MACs remain"):
        compress(net, tmp_path / "out.onnx", macs=0.4, align=1, simplify=False)


@pytest.mark.parametrize("batch", [100, 128, 200])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_fixed_batches_of_any_size(tmp_path: Path, data: Path, batch: int, asymmetric: bool) -> None:
    nodes = [
        conv("x", "w1", "c1", "conv1"),
        helper.make_node("Relu", ["c1"], ["r1"]),
        conv("r1", "w2", "c2", "conv2"),
        helper.make_node("GlobalAveragePool", ["c2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    held = {"w1": weights(16, 3, 3, 3, seed=1), "w2": weights(16, 16, 3, 3, seed=2)}
    net = save(model(nodes, [info("x", [batch, 3, 12, 12])], [info("y", [batch, 16])], held), tmp_path / "net.onnx")
    report = compress(net, tmp_path / "out.onnx", macs=0.6, align=1, data=data, asymmetric=asymmetric)
    assert report.macs.ratio <= 0.6 and report.outputs[0].relative_error < 1


def test_a_matrix_times_a_vector(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["v"], axes=[0, 1], keepdims=0),
        helper.make_node("MatMul", ["W", "v"], ["z"], name="mm"),
        helper.make_node("Unsqueeze", ["z", "axis"], ["y"]),
    ]
    held = {"W": weights(32, 32), "axis": np.array([0])}
    net = save(model(nodes, [info("x", ["N", 5, 32])], [info("y", [1, 32])], held), tmp_path / "net.onnx")
    np.savez(tmp_path / "v.npz", x=rng().standard_normal((64, 5, 32)).astype(np.float32))
    report = compress(
        net, tmp_path / "out.onnx", macs=0.6, align=1, data=tmp_path / "v.npz", plan_by="weights", simplify=False
    )
    assert report.macs.ratio <= 0.6


def test_half_precision_whose_squares_overflow(tmp_path: Path, data: Path) -> None:
    large = np.full((4, 10, 4), 600, np.float16)
    moved = divergence({"y": large}, {"y": (large * 0.75).astype(np.float16)})
    assert moved == pytest.approx(0.0625)
    assert divergence({"y": large}, {"y": large * np.float16(np.inf)}) == RUINED
    with pytest.raises(ModelError, match="NaN or infinite"):
        divergence({"y": large * np.float16(np.inf)}, {"y": large})

    held = {"w1": weights(16, 3, 3, 3, seed=1).astype(np.float16), "w2": 600 * weights(8, 16, 3, 3, seed=2)}
    held["w2"] = held["w2"].astype(np.float16)
    nodes = [conv("x", "w1", "c", "conv1"), helper.make_node("Relu", ["c"], ["r"]), conv("r", "w2", "y", "conv2")]
    half = TensorProto.FLOAT16
    built = model(nodes, [info("x", ["N", 3, 12, 12], half)], [info("y", ["N", 8, 12, 12], half)], held)
    net = save(built, tmp_path / "net.onnx")
    report = compress(net, tmp_path / "out.onnx", macs=0.6, align=1, data=data)
    assert 0.5 < report.macs.ratio <= 0.6 and report.outputs[0].relative_error < 0.8


def test_half_precision_behind_a_chain(tmp_path: Path, data: Path) -> None:
    held = {
        "w1": weights(3, 3, 3, 16, seed=1).astype(np.float16),
        "w2": weights(16, 16, 3, 3, seed=2).astype(np.float16),
    }
    nodes = [
        helper.make_node("Transpose", ["w1"], ["w1t"], perm=[3, 0, 1, 2]),
        conv("x", "w1t", "c", "conv1"),
        helper.make_node("Relu", ["c"], ["r"]),
        conv("r", "w2", "y", "conv2"),
    ]
    half = TensorProto.FLOAT16
    built = model(nodes, [info("x", ["N", 3, 12, 12], half)], [info("y", ["N", 16, 12, 12], half)], held)
    net = save(built, tmp_path / "net.onnx")
    report = compress(net, tmp_path / "out.onnx", macs=0.6, align=1, data=data, simplify=False)
    assert report.macs.ratio <= 0.6


def test_the_standard_domain_by_its_other_name(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b"], ["c"], name="g1", domain="ai.onnx"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Gemm", ["r", "w2"], ["y"], name="g2"),
    ]
    held = {"w1": weights(64, 64, seed=1), "b": np.zeros(64, np.float32), "w2": weights(64, 64, seed=2)}
    built = model(nodes, [info("x", ["N", 64])], [info("y", ["N", 64])], held)
    built.opset_import[0].domain = "ai.onnx"
    report = compress(save(built, tmp_path / "net.onnx"), tmp_path / "out.onnx", macs=0.5, align=1)
    assert all(layer.scheme for layer in report.layers)
