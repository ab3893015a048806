"""Every way in which a model can hold a weight goes through compress, loads, runs and keeps its interface."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import trp_onnx
from tests import graphs
from tests.easy import compress
from tests.hard_cases import CASES, W4

# float16 rounds; ONNX Runtime runs the original DequantizeLinear + MatMul with int8 activations (0.5 % off
# what the operators say), the factors in float.
TOLERANCE = {"float16": 3e-3, "behind_dequantize": 1e-2}


def interface(path: Path) -> tuple[object, ...]:
    built = onnx.load(path)
    stored = {t.name for t in built.graph.initializer}
    return (
        [i.SerializeToString() for i in built.graph.input if i.name not in stored],
        [o.SerializeToString() for o in built.graph.output],
        sorted((o.domain, o.version) for o in built.opset_import),
        {p.key: p.value for p in built.metadata_props if p.key not in ("trp_onnx", "trp_onnx.record")},
    )


@pytest.mark.parametrize("simplify", [True, False], ids=["simplified", "as-is"])
@pytest.mark.parametrize("case", CASES)
def test_goes_through_compress_at_60_percent_of_the_macs(tmp_path: Path, case: str, simplify: bool) -> None:
    path = graphs.save(CASES[case](), tmp_path / "m.onnx")
    before = path.read_bytes()
    out = tmp_path / "out.onnx"
    report = compress(path, out, macs=0.6, align=1, simplify=simplify)
    assert path.read_bytes() == before
    assert 0 < report.macs.ratio <= 0.6
    assert any(layer.scheme for layer in report.layers)
    assert interface(out) == interface(path)
    assert report.outputs[0].relative_error < 1.0  # the weights are random: much is lost, never all
    assert not any(node.op_type == "BatchNormalization" for node in graphs.nodes_of(out))


@pytest.mark.parametrize("simplify", [True, False], ids=["simplified", "as-is"])
@pytest.mark.parametrize("case", [case for case in CASES if case != "conv_depthwise"])
def test_loses_nothing_at_full_rank(tmp_path: Path, case: str, simplify: bool) -> None:
    path = graphs.save(CASES[case](), tmp_path / "m.onnx")
    views = trp_onnx.inspect(path, simplify=simplify).layers
    rules = [trp_onnx.LayerRule(v.name, scheme=v.scheme, rank=(v.full_rank,)) for v in views]
    report = compress(path, tmp_path / "out.onnx", config=rules, align=1, simplify=simplify)
    assert all(layer.scheme for layer in report.layers)
    assert report.outputs[0].relative_error < TOLERANCE.get(case, 1e-5)


@pytest.mark.parametrize(
    "case,macs,parameters",
    [
        ("conv_1d", 15 * 32 * 24 * 5, 32 * 24 * 5),
        ("conv_3d", 64 * 16 * 12 * 27, 16 * 12 * 27),
        ("conv_grouped", 64 * 40 * 16 * 9, 40 * 16 * 9),
        ("conv_depthwise", 81 * 16 * 49, 16 * 49),
        ("conv_transpose", 49 * 24 * 20 * 9, 24 * 20 * 9),
        ("gemm", 3 * 48 * 40, 48 * 40),
        ("matmul_left", 2 * 5 * 48 * 40, 48 * 40),
        ("matmul_batched", 3 * 5 * 48 * 40, 3 * 48 * 40),
        ("local_function", 64 * W4.size, W4.size),
        ("loop_body", 4 * 40 * 40, 40 * 40),
    ],
)
def test_macs_and_parameters_of_a_layer(tmp_path: Path, case: str, macs: int, parameters: int) -> None:
    path = graphs.save(CASES[case](), tmp_path / "m.onnx")
    (layer,) = trp_onnx.inspect(path, simplify=False).layers  # the simplifier unrolls the loop
    assert (layer.macs, layer.parameters) == (macs, parameters)


def test_layers_that_share_a_weight_share_its_factors(tmp_path: Path) -> None:
    path = graphs.save(CASES["shared_weight"](), tmp_path / "m.onnx")
    out = tmp_path / "out.onnx"
    report = compress(path, out, macs=0.6, align=1)
    assert len({(layer.scheme, layer.rank) for layer in report.layers}) == 1
    assert len(graphs.initializers(out)) == 2
    assert report.parameters.after < report.parameters.before


def test_both_branches_and_their_outer_weights_are_factorised(tmp_path: Path) -> None:
    path = graphs.save(CASES["if_body"](), tmp_path / "m.onnx")
    out = tmp_path / "out.onnx"
    compress(path, out, macs=0.6, align=1)
    x = graphs.rng().standard_normal([1, 24, 10, 10]).astype(np.float32)
    for flag in (True, False):
        feeds = {"x": x, "flag": np.array(flag)}
        (a,), (b,) = graphs.run(path, feeds), graphs.run(out, feeds)
        assert 0 < graphs.distance(a, b) < 0.9


def test_a_kept_layer_keeps_its_int8_bytes(tmp_path: Path) -> None:
    """Folding DequantizeLinear would make the file four times as large."""
    built = CASES["behind_dequantize"]()
    wide = graphs.weights(40, 400)
    built.graph.initializer.append(graphs.tensor("wide", wide))
    built.graph.node.append(onnx.helper.make_node("MatMul", ["y", "wide"], ["z"], name="second"))
    built.graph.output[0].CopyFrom(graphs.info("z", [4, 400]))
    path = graphs.save(built, tmp_path / "m.onnx")
    out = tmp_path / "out.onnx"
    compress(path, out, config=[trp_onnx.LayerRule("second", rank=(4,))], align=1)
    assert graphs.initializers(out)["w0"].dtype == np.int8
    assert "DequantizeLinear" in {node.op_type for node in graphs.nodes_of(out)}


@pytest.mark.parametrize(("asked", "spooled"), [("auto", False), ("auto", True), ("no", False), ("no", True)])
def test_weights_that_fit_one_file_go_into_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, spooled: bool
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(CASES["conv_1d"](), path, save_as_external_data=True, location="m.bin", size_threshold=0)
    out = tmp_path / "out.onnx"
    monkeypatch.setattr("trp_onnx.files.staging.SPOOLED_FROM", 1000 if spooled else 2**30)  # bytes
    report = compress(path, out, macs=0.6, align=1, external_data=asked)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bin", "m.onnx", "out.onnx"]
    assert report.to_dict()["files"] == [{"file": "out.onnx", "bytes": out.stat().st_size}]
    assert report.file_bytes.after == out.stat().st_size
    (y,) = graphs.run(out, {"x": np.ones([1, 24, 33], np.float32)})
    assert np.isfinite(y).all()


def test_weights_that_do_not_fit_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one file or memory holds go beside it, unless one file is asked for: that is refused."""
    path, out = graphs.conv_net(tmp_path / "m.onnx"), tmp_path / "out.onnx"
    monkeypatch.setattr("trp_onnx.files.staging._ONE_FILE", 1000)  # bytes, so that a small model is large
    with pytest.raises(trp_onnx.OutputError, match=r"cannot be one file.*--external-data yes"):
        compress(path, out, macs=0.6, align=1, external_data="no")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    for name, value in (("EXTERNAL_FROM", 1000), ("available", lambda: 1000)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"trp_onnx.files.staging.{name}", value)
            beside = tmp_path / f"{name}.onnx"
            assert list(compress(path, beside, macs=0.6, align=1).files) == [f"{name}.onnx", f"{name}.onnx.data"]
    with pytest.raises(trp_onnx.UsageError, match="--external-data is auto, yes or no"):
        compress(path, out, macs=0.6, external_data="perhaps")


@pytest.mark.parametrize("spooled", [False, True])
def test_weights_go_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spooled: bool) -> None:
    monkeypatch.setattr("trp_onnx.files.staging.SPOOLED_FROM", 1000 if spooled else 2**30)  # bytes
    path = tmp_path / "m.onnx"
    onnx.save(CASES["conv_1d"](), path, save_as_external_data=True, location="m.bin", size_threshold=0)
    out, data = tmp_path / "out.onnx", tmp_path / "out.onnx.data"
    report = compress(path, out, macs=0.6, align=1, external_data="yes")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bin", "m.onnx", "out.onnx", "out.onnx.data"]
    assert report.file_bytes.after == out.stat().st_size + data.stat().st_size
    assert any("out.onnx.data" in note for note in report.notes)
    assert report.files == {file.name: file.stat().st_size for file in (out, data)}
    (y,) = graphs.run(out, {"x": np.ones([1, 24, 33], np.float32)})
    assert np.isfinite(y).all()


def test_dynamic_size_is_unknown_until_it_is_given(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="layer")
    built = graphs.model(
        [node], [graphs.info("x", ["N", 24, "H", "W"])], [graphs.info("y", ["N", 32, None, None])], {"w": W4}
    )
    path = graphs.save(built, tmp_path / "m.onnx")
    assert trp_onnx.inspect(path).layers[0].macs is None
    with pytest.raises(trp_onnx.ModelError, match="--input-shape"):
        compress(path, tmp_path / "out.onnx", macs=0.6)
    shapes = {"x": (1, 24, 10, 10)}
    assert trp_onnx.inspect(path, input_shapes=shapes).layers[0].macs == 64 * W4.size
    report = compress(path, tmp_path / "out.onnx", macs=0.6, align=1, input_shapes=shapes)
    assert report.macs.ratio <= 0.6
    report = compress(path, tmp_path / "out.onnx", energy=0.3, align=1)  # needs no MACs
    assert report.layers[0].scheme
    assert "--input-shape" in report.notes[0]


def _reason(
    tmp_path: Path, nodes: list[onnx.NodeProto], arrays: dict[str, np.ndarray], inputs: list[onnx.ValueInfoProto]
) -> str:
    path = graphs.save(graphs.model(nodes, inputs, [graphs.info("y", None)], arrays), tmp_path / "m.onnx")
    reason = trp_onnx.inspect(path).layers[-1].reason
    assert reason is not None
    with pytest.raises(trp_onnx.ModelError, match="layers can be factorised"):
        compress(path, tmp_path / "out.onnx", macs=0.6)
    return reason


def test_a_weight_that_is_computed_has_a_reason(tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("Sigmoid", ["gate"], ["s"], name="gating"),
        onnx.helper.make_node("Mul", ["w0", "s"], ["w"], name="modulate"),
        onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="layer"),
    ]
    inputs = [graphs.info("x", [2, 48]), graphs.info("gate", [1])]
    assert "'w' is computed at run time by Mul 'modulate'" in _reason(
        tmp_path, nodes, {"w0": graphs.weights(48, 40)}, inputs
    )


def test_a_weight_that_is_an_input_has_a_reason(tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="layer")]
    inputs = [graphs.info("x", [1, 3, 8, 8]), graphs.info("w", [4, 3, 3, 3])]
    assert "'w' is an input of the graph" in _reason(tmp_path, nodes, {}, inputs)


def test_a_product_of_two_activations_has_a_reason(tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("MatMul", ["a", "b"], ["y"], name="attention")]
    inputs = [graphs.info("a", [2, 8]), graphs.info("b", [8, 2])]
    assert "neither operand is constant" in _reason(tmp_path, nodes, {}, inputs)


def test_a_recurrent_node_is_not_passed_over(tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("GRU", ["x", "w", "r"], ["y"], name="gru", hidden_size=5)]
    arrays = {"w": graphs.weights(1, 15, 4), "r": graphs.weights(1, 15, 5)}
    assert "GRU packs several recurrent matrices" in _reason(tmp_path, nodes, arrays, [graphs.info("x", [3, 1, 4])])


def test_a_vector_has_no_rank_to_reduce(tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("MatMul", ["x", "v"], ["y"], name="dot")]
    assert "vector" in _reason(tmp_path, nodes, {"v": graphs.weights(8, 1)[:, 0]}, [graphs.info("x", [2, 8])])
