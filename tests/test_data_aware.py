"""Factors that keep outputs: what moments are, what they are good for, and what damage means."""

from functools import reduce
from pathlib import Path

import numpy as np
import onnx
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from tests.easy import compress
from tests.graphs import conv_net, distance, drawn, info, initializers, model, rng, run, save, weights
from trp_onnx.calibration.moments import collect_moments
from trp_onnx.errors import DataError, UsageError
from trp_onnx.graph.inputs import InputSpec, Run, Samples
from trp_onnx.graph.layers import find_layers
from trp_onnx.graph.model import open_model
from trp_onnx.lowrank.schemes import SCHEMES, Geometry
from trp_onnx.lowrank.separable import Separable
from trp_onnx.planning import Evidence, measure_damage


def correlated(groups: int, size: int, seed: int) -> np.ndarray:
    """A second moment whose directions differ a thousandfold."""
    mixing = rng(seed).standard_normal((groups, size, size)) * np.geomspace(1, 0.03, size)
    return mixing @ mixing.transpose(0, 2, 1) / size


def output_error(weight: np.ndarray, near: np.ndarray, moment: np.ndarray) -> float:
    def energy(w: np.ndarray) -> float:
        flat = w.reshape(*w.shape[:2], -1)
        return float(((flat @ moment) * flat).sum())

    return energy(weight - near) / energy(weight)


shapes = st.tuples(
    st.integers(1, 2), st.integers(2, 7), st.integers(2, 7), st.lists(st.integers(1, 3), min_size=0, max_size=2)
)


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(0, 99))
def test_full_rank_is_the_identity_and_less_beats_the_weights_own(
    shape: tuple[int, int, int, list[int]], seed: int
) -> None:
    groups, n, c, kernel = shape
    weight = rng(seed).standard_normal((groups, n, c, *kernel))
    moment = correlated(groups, c * int(np.prod(kernel)), seed)
    for scheme in SCHEMES.values():
        if not scheme.fits(kernel):
            continue
        full = scheme.full_rank(Geometry(groups, n, c, tuple(kernel)))
        exact = scheme.merge(scheme.split(weight, full, moment))
        assert output_error(weight, exact, moment) < 1e-10  # squared
        half = tuple(max(1, size // 2) for size in full)
        errors = scheme.errors(weight, moment)
        by_data = output_error(weight, scheme.merge(scheme.split(weight, half, moment)), moment)
        by_weight = output_error(weight, scheme.merge(scheme.split(weight, half)), moment)
        assert by_data <= by_weight * (1 + 1e-6) + 1e-12
        if scheme.name != "tucker2":  # whose estimate is one
            assert by_data <= errors[half] * (1 + 1e-6) + 1e-9
        assert errors[full] < 1e-9 and errors[(0,) * len(full)] == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 3), st.integers(0, 99))
def test_one_tap_reaches_the_spectrums_tail(n: int, c: int, k: int, seed: int) -> None:
    """kxk -> 1x1: no other factors of that rank do better, which the whitened SVD of scipy says."""
    weight, moment = rng(seed).standard_normal((1, n, c, k, 3)), correlated(1, c * k * 3, seed)
    root = scipy.linalg.sqrtm(moment[0]).real
    spectrum = scipy.linalg.svdvals(weight.reshape(n, -1) @ root) ** 2
    for rank in range(1, min(n, c * k * 3)):
        near = SCHEMES["channel"].merge(SCHEMES["channel"].split(weight, (rank,), moment))
        tail = spectrum[rank:].sum() / spectrum.sum()
        assert output_error(weight, near, moment) == pytest.approx(tail, rel=1e-5, abs=1e-9)


CONVOLUTIONS = {
    "plain": {"pads": [1, 1, 1, 1]},
    "strided": {"strides": [2, 1], "pads": [0, 1, 2, 1]},
    "dilated": {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
    "same": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "same below": {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    "valid": {"auto_pad": "VALID"},
    "grouped": {"group": 2, "pads": [1, 1, 1, 1]},
}


@pytest.mark.parametrize("how", CONVOLUTIONS)
def test_moments_are_those_of_the_patches(how: str, tmp_path: Path) -> None:
    """Against patches that the runtime itself cuts: a convolution with the identity for a weight."""
    attributes = CONVOLUTIONS[how]
    groups = attributes.get("group", 1)
    c, size = 4 // groups, 4 // groups * 9
    net = conv(tmp_path / "net.onnx", weights(6, c, 3, 3), attributes)
    cut = conv(tmp_path / "cut.onnx", np.tile(np.eye(size, dtype=np.float32).reshape(size, c, 3, 3), (groups, 1, 1, 1)),
               attributes)  # fmt: skip
    x = (rng().standard_normal((5, 4, 9, 8)) + 3).astype(np.float32)
    opened = open_model(net)
    (found,) = collect_moments(opened, find_layers(opened), drawn(x=x)).values()
    patches = run(cut, {"x": x})[0]
    patches = patches.reshape(5, groups, size, -1).transpose(1, 0, 3, 2).reshape(groups, -1, size)
    np.testing.assert_allclose(found.mean, patches.mean(axis=1), rtol=1e-4, atol=1e-5)
    for group in range(groups):
        np.testing.assert_allclose(found.covariance[group], np.cov(patches[group].T, bias=True), rtol=1e-3, atol=1e-4)


def conv(path: Path, weight: np.ndarray, attributes: dict[str, object]) -> Path:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", **attributes)
    return save(model([node], [info("x", ["N", 4, 9, 8])], [info("y", None)], {"w": weight}), path)


def samples(path: Path, count: int = 96, seed: int = 0) -> Path:
    """Smooth images of few colours: what a network sees is far from white."""
    r = rng(seed)
    shades = r.standard_normal((count, 1, 1, 3)) + 0.5
    smooth = np.cumsum(r.standard_normal((count, 12, 12, 1)), axis=1) / 4
    x = shades * smooth + 0.05 * r.standard_normal((count, 12, 12, 3)) + 1
    np.savez(path, x=x.astype(np.float32), y=np.arange(count) % 10)
    return path


@pytest.mark.parametrize("scheme", ["spatial", "channel", "tucker2", "auto"])
def test_outputs_survive_better_with_data(scheme: str, tmp_path: Path) -> None:
    net = conv_net(tmp_path / "net.onnx", channels=24)
    seen, unseen = samples(tmp_path / "a.npz"), samples(tmp_path / "b.npz", seed=1)
    x = np.load(unseen)["x"].transpose(0, 3, 1, 2)
    errors = {}
    for name, data in (("weights", None), ("data", seen)):
        out = tmp_path / f"{name}.onnx"
        report = compress(net, out, macs=0.4, align=1, scheme=scheme, data=data)
        assert report.macs.ratio <= 0.4
        errors[name] = distance(run(net, {"x": x})[0], run(out, {"x": x})[0])
    assert errors["data"] < 0.7 * errors["weights"]


def test_the_bias_takes_up_the_mean(tmp_path: Path) -> None:
    """A convolution without a bias gets one, and the mean of its outputs stays."""
    attributes = {"pads": [0, 0, 0, 0]}
    net = conv(tmp_path / "net.onnx", weights(8, 4, 3, 3), attributes)
    x = (rng().standard_normal((40, 4, 9, 8)) + 2).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x.transpose(0, 2, 3, 1))
    out = tmp_path / "out.onnx"
    compress(net, out, macs=0.5, align=1, scheme="channel", data=tmp_path / "x.npz", plan_by="weights")
    before, after = run(net, {"x": x})[0], run(out, {"x": x})[0]
    means = before.mean(axis=(0, 2, 3)), after.mean(axis=(0, 2, 3))
    np.testing.assert_allclose(*means, atol=1e-3 * np.abs(before).max())
    assert any(name.endswith("/bias") for name in initializers(out))


def test_damage_of_the_last_layer_is_in_proportion_to_its_error(tmp_path: Path) -> None:
    """Behind the last MatMul nothing bends errors: each is as much of the damage as of the outputs' energy."""
    w = {"a": weights(16, 16, seed=1), "b": weights(16, 16, seed=2)}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"], name="first"),
        helper.make_node("Relu", ["p"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"], name="last"),
    ]
    net = save(model(nodes, [info("x", ["N", 4, 16])], [info("y", ["N", 4, 16])], w), tmp_path / "net.onnx")
    x = rng().standard_normal((64, 4, 16)).astype(np.float32)
    opened = open_model(net)
    layers = find_layers(opened)
    curves = measure_damage(opened, layers, drawn(x=x), evidence=Evidence(collect_moments(opened, layers, drawn(x=x))))
    for error in (0.01, 0.1, 0.5):
        assert curves["last"](error) == pytest.approx(curves["last"](0.1) * error / 0.1, rel=0.02)
        assert error < curves["last"](error) < 3 * error  # of each channel's spread, which is less than its energy
        assert 0.1 * error < curves["first"](error) < 3 * error
    again = measure_damage(opened, layers, drawn(x=x), evidence=Evidence(collect_moments(opened, layers, drawn(x=x))))
    assert again["first"](0.1) == curves["first"](0.1)  # from the cache


def test_damage_is_the_same_from_a_cut_as_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through one value or a few, and where what flows is too much to be kept."""
    w = {"a": weights(8, 8, 3, 3, seed=1), "b": weights(8, 8, 3, 3, seed=2), "c": weights(8, 8, 3, 3, seed=3)}
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"], name="one", **pads),
        helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("Conv", ["q", "b"], ["r"], name="two", **pads),
        helper.make_node("Add", ["r", "q"], ["s"]),
        helper.make_node("Conv", ["s", "c"], ["y"], name="three", **pads),
    ]
    sizes = ["N", 8, 6, 6]
    gated = model(nodes, [info("x", sizes)], [info("y", sizes)], w)
    twin = onnx.ModelProto()
    twin.CopyFrom(gated)
    twin.graph.node.append(helper.make_node("Mul", ["y", "zero"], ["none"]))
    twin.graph.node.append(helper.make_node("Mul", ["x", "none"], ["also"]))  # x lives to the end
    twin.graph.node.append(helper.make_node("Add", ["y", "also"], ["z"]))
    twin.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0), "zero"))
    twin.graph.output[0].name = "z"
    x = rng().standard_normal((32, 8, 6, 6)).astype(np.float32)
    found = []
    for name, proto, live in (("gated", gated, 8), ("twin", twin, 8), ("twin", twin, 0)):
        monkeypatch.setattr("trp_onnx.graph.partial_run.LIVE", live)
        monkeypatch.setenv("TRP_ONNX_CACHE", str(tmp_path / f"cache{live}"))
        opened = open_model(save(proto, tmp_path / f"{name}.onnx"))
        layers = find_layers(opened)
        moments = collect_moments(opened, layers, drawn(x=x))
        found.append(measure_damage(opened, layers, drawn(x=x), "spatial", Evidence(moments)))
    for layer in ("one", "two", "three"):
        for other in found[1:]:
            np.testing.assert_allclose(found[0][layer].damages, other[layer].damages, rtol=1e-3)


def test_what_is_not_observed_is_said(tmp_path: Path) -> None:
    """A layer in a loop goes by its weights."""
    body = helper.make_graph(
        [
            helper.make_node("Conv", ["s", "w"], ["t"], name="turn", pads=[1, 1, 1, 1]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [info("i", [], onnx.TensorProto.INT64), info("go", [], onnx.TensorProto.BOOL), info("s", ["N", 8, 6, 6])],
        [info("on", [], onnx.TensorProto.BOOL), info("t", ["N", 8, 6, 6])],
    )
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["p"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Loop", ["count", "", "p"], ["y"], name="loop", body=body),
    ]
    w = {"w": weights(8, 8, 3, 3), "v": weights(8, 8, 3, 3, seed=1), "count": np.array(2)}
    sizes = ["N", 8, 6, 6]
    net = save(model(nodes, [info("x", sizes)], [info("y", sizes)], w), tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=rng().standard_normal((8, 6, 6, 8)).astype(np.float32))
    report = compress(net, tmp_path / "out.onnx", macs=0.6, align=1, data=tmp_path / "x.npz", simplify=False)
    assert any("'turn'" in note and "not by the data" in note for note in report.notes)


TRANSPOSED = {
    "plain": {},
    "strided": {"strides": [2, 1], "pads": [1, 0, 2, 1], "output_padding": [1, 0]},
    "dilated": {"dilations": [2, 1], "strides": [2, 3]},
    "same": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "same below": {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    "sized": {"output_shape": [9, 7], "strides": [2, 2]},
    "grouped": {"group": 2, "strides": [2, 2]},
}


@pytest.mark.parametrize("how", TRANSPOSED)
def test_a_transposed_convolution_is_a_product_with_its_patches(how: str, tmp_path: Path) -> None:
    """Mean and covariance of its outputs are what the moments of its patches say."""
    attributes = TRANSPOSED[how]
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", **attributes)
    groups = attributes.get("group", 1)
    built = model([node], [info("x", ["N", 4, 5, 4])], [info("y", None)], {"w": weights(4, 3, 3, 3)})
    net = save(built, tmp_path / "net.onnx")
    x = (rng().standard_normal((5, 4, 5, 4)) + 3).astype(np.float32)
    opened = open_model(net)
    (layer,) = find_layers(opened, {"x": (5, 4, 5, 4)})
    (found,) = collect_moments(opened, [layer], drawn(x=x)).values()
    outputs = run(net, {"x": x})[0]
    outputs = outputs.reshape(5, groups, 3, -1).transpose(1, 2, 0, 3).reshape(groups, 3, -1)
    flat = layer.weight().reshape(groups, 3, -1)
    np.testing.assert_allclose((flat @ found.mean[:, :, None])[..., 0], outputs.mean(axis=2), rtol=1e-3, atol=1e-4)
    for group in range(groups):
        spread = flat[group] @ found.covariance[group] @ flat[group].T
        np.testing.assert_allclose(spread, np.cov(outputs[group], bias=True), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch", [(2,), (3, 1), (1, 2), (3, 2)])
def test_moments_of_a_batch_of_products(batch: tuple[int, ...], tmp_path: Path) -> None:
    """Each matrix has those of the rows that it is multiplied with."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="m")
    w = rng().standard_normal((*batch, 5, 4)).astype(np.float32)
    net = save(model([node], [info("x", ["N", 3, 2, 6, 5])], [info("y", None)], {"w": w}), tmp_path / "net.onnx")
    x = rng(1).standard_normal((8, 3, 2, 6, 5)).astype(np.float32)
    opened = open_model(net)
    (layer,) = find_layers(opened)
    (found,) = collect_moments(opened, [layer], drawn(x=x)).values()
    for group, place in enumerate(np.ndindex(batch)):
        inner = (..., *(index if size > 1 else slice(None) for index, size in zip(place, batch, strict=True)))
        rows = x[(*inner, slice(None), slice(None))].reshape(-1, 5)
        np.testing.assert_allclose(found.mean[group], rows.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(found.covariance[group], np.cov(rows.T, bias=True), atol=1e-4)


def branching(path: Path) -> Path:
    """Two branches, as voice detectors have for two rates, each with a branch of its own in it."""

    def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(list(nodes), name, [], [info(nodes[-1].output[0], None)])

    def inner(name: str) -> onnx.NodeProto:
        return helper.make_node(
            "If", ["loud"], [f"{name}/y"], name=f"{name}/if",
            then_branch=branch("in", helper.make_node("Conv", [f"{name}/r", "v"], [f"{name}/z"], name=f"{name}/last")),
            else_branch=branch("out", helper.make_node("Identity", [f"{name}/r"], [f"{name}/same"])),
        )  # fmt: skip

    def outer(name: str) -> onnx.GraphProto:
        conv = helper.make_node("Conv", ["x", f"w{name}"], [f"{name}/c"], name=f"{name}/conv", pads=[1, 1])
        return branch(name, conv, helper.make_node("Relu", [f"{name}/c"], [f"{name}/r"]), inner(name))

    nodes = [
        helper.make_node("Equal", ["rate", "high"], ["choice"]),
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "limit"], ["loud"]),
        helper.make_node("If", ["choice"], ["y"], name="if", then_branch=outer("a"), else_branch=outer("b")),
    ]
    w = {"wa": weights(6, 4, 3), "wb": weights(6, 4, 3, seed=1), "v": weights(6, 6, 1, seed=2)}
    w |= {"high": np.array(16000), "limit": np.float32(-1e9)}
    given = [info("x", ["N", 4, 10]), info("rate", [], onnx.TensorProto.INT64)]
    return save(model(nodes, given, [info("y", None)], w), path)


def test_layers_in_branches_see_what_flows_into_them(tmp_path: Path) -> None:
    """In branches of branches; those of a branch that no sample takes go by their weights, which a note says."""
    net = branching(tmp_path / "net.onnx")
    x = (rng().standard_normal((16, 4, 10)) + 1).astype(np.float32)
    opened = open_model(net)
    layers = find_layers(opened)
    inputs = {
        "x": InputSpec("x", None, (None, 4, 10), 0),
        "rate": InputSpec("rate", None, (), None),
    }  # fmt: skip
    high = Samples(inputs, [Run({"x": x, "rate": np.array(16000)}, len(x))])
    found = collect_moments(opened, layers, high)
    assert found.keys() == {"a/conv", "a/last", "b/last"}  # the last two share their weight
    alone = {"w": initializers(net)["wa"]}
    plain = helper.make_node("Conv", ["x", "w"], ["y"], name="a/conv", pads=[1, 1])
    apart = open_model(save(model([plain], [info("x", ["N", 4, 10])], [info("y", None)], alone), tmp_path / "a.onnx"))
    expected = collect_moments(apart, find_layers(apart), drawn(x=x))["a/conv"]
    np.testing.assert_allclose(found["a/conv"].covariance, expected.covariance, rtol=1e-4, atol=1e-5)
    read = np.maximum(run(tmp_path / "a.onnx", {"x": x})[0], 0).transpose(0, 2, 1).reshape(-1, 6)
    np.testing.assert_allclose(found["a/last"].covariance[0], np.cov(read.T, bias=True), rtol=1e-3, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(0, 99))
def test_a_product_is_the_moment_that_it_stands_for(shape: tuple[int, int, int, list[int]], seed: int) -> None:
    """Errors and factors are those of its Kronecker product, and of pairs with one tap the best there are."""
    groups, n, c, kernel = shape
    weight = rng(seed).standard_normal((groups, n, c, *kernel))
    axes = [correlated(1, k, seed + i)[0] for i, k in enumerate(kernel)]
    product = Separable(correlated(groups, c, seed), tuple(axes))
    whole = np.stack([reduce(np.kron, [of_channels, *axes]) for of_channels in product.channels])
    for scheme in SCHEMES.values():
        if not scheme.fits(kernel):
            continue
        full = scheme.full_rank(Geometry(groups, n, c, tuple(kernel)))
        exact = scheme.merge(scheme.split_by(weight, full, product))
        assert output_error(weight, exact, whole) < 1e-8
        half = tuple(max(1, size // 2) for size in full)
        found = output_error(weight, scheme.merge(scheme.split_by(weight, half, product)), whole)
        assert found == pytest.approx(scheme.errors_by(weight, product)[half], abs=1e-6)
        if scheme.name == "channel":
            best = output_error(weight, scheme.merge(scheme.split(weight, half, whole)), whole)
            assert found == pytest.approx(best, rel=1e-4, abs=1e-8)


def wide(path: Path) -> Path:
    w = {"w": weights(10, 12, 5, 5), "v": weights(8, 10, 1, 1, seed=1)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["p"], name="wide", pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("Conv", ["q", "v"], ["y"], name="narrow"),
    ]
    return save(model(nodes, [info("x", ["N", 12, 12, 12])], [info("y", None)], w), path)


def smooth(count: int, seed: int) -> np.ndarray:
    """Images of channels that go together and neighbours that do: (n, 12, 12, 12)."""
    r = rng(seed)
    shades = rng(9).standard_normal((12, 12)) * np.geomspace(1, 0.05, 12)
    x = np.cumsum(np.cumsum(r.standard_normal((count, 12, 14, 14)), axis=2), axis=3)[:, :, 2:, 2:]
    return np.einsum("cd,ndhw->nchw", shades, x).astype(np.float32)


def test_kernels_whose_moments_do_not_fit_are_fitted_to_a_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, unseen = wide(tmp_path / "net.onnx"), smooth(16, 1)
    np.savez(tmp_path / "x.npz", x=smooth(64, 0))
    monkeypatch.setattr("trp_onnx.calibration.moments.LAYER_BYTES", 4 * 100**2)
    errors, notes = {}, {}
    for name, trusted in (("product", 0.5), ("weights", -1.0)):
        monkeypatch.setattr("trp_onnx.calibration.moments.TRUSTED", trusted)
        out = tmp_path / f"{name}.onnx"
        report = compress(net, out, macs=0.4, align=1, data=tmp_path / "x.npz")
        errors[name] = distance(run(net, {"x": unseen})[0], run(out, {"x": unseen})[0])
        (notes[name],) = (note for note in report.notes if "product of moments over channels and kernel axes" in note)
    assert errors["product"] < 0.7 * errors["weights"]
    assert "'wide'" in notes["product"] and "% off" in notes["product"]
    assert notes["weights"].endswith("that is too far, so the layer is judged by its weights")


def test_data_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    net = conv_net(tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=np.zeros((8, 20, 20, 3), np.uint8))
    with pytest.raises(DataError, match=r"the shape \(8,20,20,3\).*input is 'x' \(N,3,12,12\).*--crop"):
        compress(net, tmp_path / "out.onnx", macs=0.6, data=tmp_path / "x.npz")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".partial"] == []


def deep_net(path: Path, layers: int = 6) -> Path:
    """Convolutions with shortcuts, every third one without a bias."""
    w, nodes, x = {}, [], "x"
    for i in range(layers):
        w[f"w{i}"] = weights(12, 12 if i else 3, 3, 3, seed=i)
        if i % 3:
            w[f"b{i}"] = 0.3 * weights(12, 1, seed=90 + i)[:, 0]
        inputs = [x, f"w{i}", *([f"b{i}"] if i % 3 else [])]
        nodes.append(helper.make_node("Conv", inputs, [f"c{i}"], name=f"conv{i}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        if i % 2:
            nodes.append(helper.make_node("Add", [f"r{i}", f"r{i - 1}"], [f"s{i}"]))
        x = f"s{i}" if i % 2 else f"r{i}"
    return save(model(nodes, [info("x", ["N", 3, 12, 12])], [info(x, None)], w), path)


def test_layers_make_up_for_those_before_them(tmp_path: Path) -> None:
    net = deep_net(tmp_path / "net.onnx")
    seen, unseen = samples(tmp_path / "a.npz", 256), samples(tmp_path / "b.npz", seed=1)
    x = {"x": np.load(unseen)["x"].transpose(0, 3, 1, 2)}
    errors = {}
    for asymmetric in (False, True):
        out = tmp_path / f"{asymmetric}.onnx"
        compress(net, out, macs=0.35, align=1, scheme="channel", data=seen, asymmetric=asymmetric, plan_by="weights")
        errors[asymmetric] = distance(run(net, x)[0], run(out, x)[0])
    assert errors[True] < 0.95 * errors[False]


def test_in_turn_full_rank_is_the_identity(tmp_path: Path) -> None:
    net, data = deep_net(tmp_path / "net.onnx"), samples(tmp_path / "a.npz", 64)
    config = tmp_path / "full.toml"
    config.write_text('[[layer]]\nname = "conv0"\nkeep = true\n[[layer]]\nname = "*"\nscheme = "channel"\nrank = 12\n')
    compress(net, tmp_path / "out.onnx", config=config, data=data, asymmetric=True)
    x = {"x": np.load(data)["x"].transpose(0, 3, 1, 2)}
    assert distance(run(net, x)[0], run(tmp_path / "out.onnx", x)[0]) < 1e-4


def test_dense_layers_make_up_for_those_before_them(tmp_path: Path) -> None:
    """One layer is factorised; the ones behind it take up its error, but for those that the map keeps."""
    net = deep_net(tmp_path / "net.onnx")
    seen, unseen = samples(tmp_path / "a.npz", 256), samples(tmp_path / "b.npz", seed=1)
    x = {"x": np.load(unseen)["x"].transpose(0, 3, 1, 2)}
    config = tmp_path / "one.toml"
    config.write_text(
        '[[layer]]\nname = "conv1"\nscheme = "channel"\nrank = 4\n[[layer]]\nname = "conv4"\nkeep = true\n'
    )
    errors = {}
    for asymmetric in (False, True):
        out = tmp_path / f"{asymmetric}.onnx"
        report = compress(net, out, config=config, data=seen, asymmetric=asymmetric)
        assert any("'conv2'" in note and "new weights" in note for note in report.notes) == asymmetric
        errors[asymmetric] = distance(run(net, x)[0], run(out, x)[0])
    assert errors[True] < 0.9 * errors[False]
    before, after = initializers(net), initializers(tmp_path / "True.onnx")
    np.testing.assert_array_equal(after["w0"], before["w0"])
    np.testing.assert_array_equal(after["w4"], before["w4"])
    assert "w3" not in after and after["conv3/refitted.weight"].shape == before["w3"].shape


def test_few_samples_refit_no_dense_layer(tmp_path: Path) -> None:
    net = conv_net(tmp_path / "net.onnx")
    data = samples(tmp_path / "a.npz", 24)
    config = tmp_path / "one.toml"
    config.write_text('[[layer]]\nname = "conv2"\nscheme = "channel"\nrank = 4\n')
    compress(net, tmp_path / "out.onnx", config=config, data=data, asymmetric=True)
    np.testing.assert_array_equal(initializers(tmp_path / "out.onnx")["wf"], initializers(net)["wf"])


def test_shared_weights_stay_shared_in_turn(tmp_path: Path) -> None:
    w = {"w": weights(8, 8, 3, 3, seed=1), "v": weights(8, 8, 3, 3, seed=2)}
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["p"], name="one", **pads),
        helper.make_node("Conv", ["p", "w"], ["q"], name="two", **pads),
        helper.make_node("Conv", ["q", "v"], ["y"], name="three", **pads),
    ]
    sizes = ["N", 8, 6, 6]
    net = save(model(nodes, [info("x", sizes)], [info("y", sizes)], w), tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=rng().standard_normal((64, 6, 6, 8)).astype(np.float32))
    compress(net, tmp_path / "out.onnx", macs=0.7, align=1, scheme="spatial", data=tmp_path / "x.npz", asymmetric=True)
    stored = [name for name in initializers(tmp_path / "out.onnx") if name.endswith(".weight")]
    assert len([name for name in stored if name.startswith("one/")]) in (0, 2)
    assert not any(name.startswith("two/") for name in stored)


def test_asymmetric_needs_data(tmp_path: Path) -> None:
    net = conv_net(tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=r"--asymmetric fits factors to --data"):
        compress(net, tmp_path / "out.onnx", macs=0.6, asymmetric=True)


def pre_activation_net(path: Path) -> Path:
    """A shortcut before each BatchNormalization, as in DenseNet: none of them can be folded."""
    w, nodes, x = {"w": weights(12, 3, 3, 3)}, [helper.make_node("Conv", ["x", "w"], ["s0"], name="stem")], "s0"
    outputs = []
    for i in range(3):
        for part, low, high in (("g", 0.5, 1.5), ("b", -0.5, 0.5), ("m", -0.3, 0.3), ("v", 0.5, 2.0)):
            w[f"{part}{i}"] = rng(10 * i + ord(part)).uniform(low, high, 12).astype(np.float32)
        w[f"w{i}"] = weights(12, 12, 3, 3, seed=i + 1)
        inputs = [x, *(f"{part}{i}" for part in "gbmv")]
        nodes.append(helper.make_node("BatchNormalization", inputs, [f"n{i}"], name=f"norm{i}"))
        nodes.append(helper.make_node("Relu", [f"n{i}"], [f"r{i}"]))
        nodes.append(helper.make_node("Conv", [f"r{i}", f"w{i}"], [f"c{i}"], name=f"conv{i}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Add", [f"c{i}", x], [f"s{i + 1}"]))
        x = f"s{i + 1}"
        outputs.append(info(f"n{i}", None))
    return save(model(nodes, [info("x", ["N", 3, 12, 12])], [info(x, None), *outputs], w), path)


def test_batch_norm_that_stays_sees_what_it_was_trained_on(tmp_path: Path) -> None:
    net = pre_activation_net(tmp_path / "net.onnx")
    data = samples(tmp_path / "a.npz", 128)
    x = {"x": np.load(data)["x"].transpose(0, 3, 1, 2)}

    def statistics(path: Path) -> np.ndarray:
        values = run(path, x)[1:]
        return np.stack([(n.mean(axis=(0, 2, 3)), n.std(axis=(0, 2, 3))) for n in values])

    before = statistics(net)
    options = {"macs": 0.4, "align": 1, "scheme": "channel"}
    compress(net, tmp_path / "blind.onnx", **options)
    assert np.abs(statistics(tmp_path / "blind.onnx") - before).max() > 0.02
    report = compress(net, tmp_path / "out.onnx", data=data, **options)
    assert any("BatchNormalizations that cannot be folded" in note for note in report.notes)
    np.testing.assert_allclose(statistics(tmp_path / "out.onnx"), before, atol=1e-3)


def test_batch_norm_behind_nothing_new_stays_as_it_is(tmp_path: Path) -> None:
    net, data = pre_activation_net(tmp_path / "net.onnx"), samples(tmp_path / "a.npz", 64)
    config = tmp_path / "last.toml"
    config.write_text('[[layer]]\nname = "conv2"\nscheme = "channel"\nrank = 4\n')
    compress(net, tmp_path / "out.onnx", config=config, data=data)
    x = {"x": np.load(data)["x"].transpose(0, 3, 1, 2)}
    for before, after in zip(run(net, x)[1:], run(tmp_path / "out.onnx", x)[1:], strict=True):
        assert distance(before, after) < 1e-5
