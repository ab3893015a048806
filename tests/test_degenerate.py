"""Weights and data that leave nothing to divide by: the outputs stay, and nothing ends in a traceback."""

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

import trp_onnx
from tests.easy import compress
from tests.graphs import distance, drawn, info, initializers, model, rng, run, save, weights
from trp_onnx.calibration.moments import collect_moments, moment_bytes
from trp_onnx.errors import ModelError
from trp_onnx.graph.layers import find_layers
from trp_onnx.graph.model import open_model

CHANNELS = 16


def net(path: Path, w: np.ndarray, last: np.ndarray | None = None) -> Path:
    """conv1 -> relu -> conv2 -> pool -> fc, the first with the weight in question."""
    group = CHANNELS // w.shape[1]
    arrays = {
        "w": w.astype(np.float32),
        "b": weights(CHANNELS, 1, seed=2)[:, 0],
        "w2": weights(CHANNELS, CHANNELS, 3, 3, seed=3) if last is None else last,
        "wf": weights(10, CHANNELS, seed=4) / max(1, np.abs(w).max()),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c1"], name="conv1", pads=[1] * 4, group=group),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "wf"], ["y"], name="fc", transB=1),
    ]
    return save(model(nodes, [info("x", ["N", CHANNELS, 8, 8])], [info("y", ["N", 10])], arrays), path)


def degenerate(how: str) -> np.ndarray:
    w = weights(CHANNELS, 8 if how == "zero group" else CHANNELS, 3, 3, seed=1)
    if how == "zero":
        w[:] = 0
    elif how == "one entry":
        w[:], w[3, 4, 1, 1] = 0, 2
    elif how == "zero inputs":
        w[:, 8:] = 0
    elif how in ("zero outputs", "zero group"):
        w[8:] = 0
    return w * {"denormal": 1e-40, "huge": 1e25}.get(how, 1)


WAYS = ("zero", "one entry", "zero inputs", "zero outputs", "zero group", "denormal", "huge")
CASES = [(how, {"macs": 0.6, "asymmetric": True}) for how in WAYS]
CASES += [(how, options) for how in ("zero", "zero group") for options in ({"macs": 0.6}, {"vbmf": True})]


@pytest.mark.parametrize(("how", "options"), CASES)
def test_weights_of_little_rank_are_compressed(tmp_path: Path, how: str, options: dict[str, object]) -> None:
    source = net(tmp_path / "net.onnx", degenerate(how))
    np.savez(tmp_path / "x.npz", x=rng().standard_normal((48, 8, 8, CHANNELS)).astype(np.float32))
    out = tmp_path / "out.onnx"
    report = compress(source, out, align=1, data=tmp_path / "x.npz", **options)
    assert np.isfinite(report.outputs[0].relative_error) and report.outputs[0].relative_error < 0.6
    assert all(np.isfinite(array).all() for array in initializers(out).values())


@pytest.mark.parametrize("asymmetric", [False, True])
def test_a_layer_of_zeros_is_its_bias(tmp_path: Path, asymmetric: bool) -> None:
    source = net(tmp_path / "net.onnx", degenerate("zero"))
    np.savez(tmp_path / "x.npz", x=rng().standard_normal((48, 8, 8, CHANNELS)).astype(np.float32))
    (tmp_path / "keep.toml").write_text('[[layer]]\nname = "conv2"\nkeep = true\n')
    out = tmp_path / "out.onnx"
    compress(
        source, out, energy=0.1, align=1, data=tmp_path / "x.npz", asymmetric=asymmetric, config=tmp_path / "keep.toml"
    )
    x = {"x": rng(1).standard_normal((3, CHANNELS, 8, 8)).astype(np.float32)}
    assert distance(run(source, x)[0], run(out, x)[0]) < 1e-5


@pytest.mark.parametrize("data", ["constant", "zeros", "one sample", "dead channels"])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_data_that_says_little_leaves_the_weights_own_factors(tmp_path: Path, data: str, asymmetric: bool) -> None:
    source = net(tmp_path / "net.onnx", degenerate("plain"))
    x = rng().standard_normal((1 if data == "one sample" else 48, 8, 8, CHANNELS)).astype(np.float32)
    x = np.full_like(x, data == "constant") if data in ("constant", "zeros") else x
    if data == "dead channels":
        x[..., 5:] = 0
    np.savez(tmp_path / "x.npz", x=x)
    report = compress(source, tmp_path / "out.onnx", macs=0.6, align=1, data=tmp_path / "x.npz", asymmetric=asymmetric)
    assert np.isfinite(report.outputs[0].relative_error) and report.macs.after < report.macs.before


def test_activations_that_overflow_are_said(tmp_path: Path) -> None:
    source = net(tmp_path / "net.onnx", degenerate("huge") * 1e10, weights(CHANNELS, CHANNELS, 3, 3, seed=3) * 1e5)
    np.savez(tmp_path / "x.npz", x=1e8 * rng().standard_normal((8, 8, 8, CHANNELS)).astype(np.float32))
    with pytest.raises(ModelError, match="NaN or infinit"):
        compress(source, tmp_path / "out.onnx", macs=0.6, align=1, data=tmp_path / "x.npz")


def test_moments_that_would_not_fit_are_known_by_their_marginals(tmp_path: Path) -> None:
    """The last of these convolutions, as in pitch trackers, sees patches of 65,536 entries: 17 GB in float32."""
    arrays = {"w1": weights(1024, 4, 8, 1, seed=1), "w2": weights(16, 1024, 64, 1, seed=2)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], name="narrow", pads=[4, 0, 3, 0]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["y"], name="wide", pads=[32, 0, 31, 0]),
    ]
    net = save(model(nodes, [info("x", ["N", 4, 16, 1])], [info("y", ["N", 16, 16, 1])], arrays), tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=rng().standard_normal((8, 16, 1, 4)).astype(np.float32))
    opened = open_model(net)
    layers = find_layers(opened)
    assert [moment_bytes(layer) for layer in layers] == [4 * 32**2, 4 * 65536**2]
    report = compress(net, tmp_path / "out.onnx", macs=0.6, align=1, data=tmp_path / "x.npz", scheme="channel-mirror")
    (said,) = [note for note in report.notes if "the moment of what flows into 'wide'" in note]
    assert "16.0 GB" in said and "on held-out patches" in said
    assert np.isfinite(report.outputs[0].relative_error)


def test_moments_that_do_not_fit_together_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"], name="first"),
        helper.make_node("MatMul", ["p", "b"], ["y"], name="second"),
    ]
    arrays = {"a": weights(8, 16, seed=1), "b": weights(16, 12, seed=2)}
    net = save(model(nodes, [info("x", ["N", 8])], [info("y", ["N", 12])], arrays), tmp_path / "net.onnx")
    opened = open_model(net)
    layers = find_layers(opened)
    x = rng().standard_normal((64, 8)).astype(np.float32)
    kept = collect_moments(opened, layers, drawn(x=x))
    assert set(kept) == {"first", "second"}
    monkeypatch.setattr(trp_onnx.calibration.moments, "ALL_BYTES", 4 * (8**2 + 16**2) - 1)
    for name, found in collect_moments(opened, layers, drawn(x=x)).items():  # the larger one from a temporary file
        np.testing.assert_array_equal(found.covariance, kept.pop(name).covariance)
    assert not kept
