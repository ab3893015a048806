"""Weights that stay in their file while samples are run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import trp_onnx
from tests.easy import compress
from tests.graphs import drawn, info, initializers, model, rng, save, tensor, weights
from trp_onnx.calibration.moments import Moments, collect_moments
from trp_onnx.graph.layers import find_layers
from trp_onnx.graph.model import open_model
from trp_onnx.planning import Evidence, measure_damage
from trp_onnx.planning.curve import DamageCurve
from trp_onnx.runners import Runner


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A convolution with a BatchNormalization that cannot be folded, a convolution and two products."""
    w = {f"bn{i}": np.abs(weights(12, 1, seed=i)[:, 0]) + 0.5 for i in range(4)}
    w |= {"a": weights(12, 3, 3, 3), "b": weights(12, 12, 3, 3, seed=1)}
    w |= {"c": weights(24, 12, seed=2).T.copy(), "d": weights(10, 24, seed=3).T.copy()}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"], name="a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("BatchNormalization", ["q", "bn0", "bn1", "bn2", "bn3"], ["n"]),
        helper.make_node("Conv", ["n", "b"], ["r"], name="b", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["r"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["m"]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("MatMul", ["f", "c"], ["g"], name="c"),
        helper.make_node("Relu", ["g"], ["h"]),
        helper.make_node("MatMul", ["h", "d"], ["y"], name="d"),
    ]
    built = model(nodes, [info("x", ["N", 3, 8, 8])], [info("y", ["N", 10])], w)
    path = tmp_path / "net.onnx"
    onnx.save(built, path, save_as_external_data=True, location="net.bin", size_threshold=0)
    return path


def known(path: Path, **feeds: np.ndarray) -> tuple[dict[str, Moments], dict[str, DamageCurve]]:
    """Moments and damages."""
    opened = open_model(path)
    layers, samples = find_layers(opened), drawn(**feeds)
    moments = collect_moments(opened, layers, samples)
    return moments, measure_damage(opened, layers, samples, evidence=Evidence(moments))


def test_weights_in_their_file_tell_the_same(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments and damages are those of a model that is read, and so are those that stay in temporary files."""
    x = rng().standard_normal((48, 3, 8, 8)).astype(np.float32)
    moments, damages = known(net, x=x)
    monkeypatch.setattr("trp_onnx.graph.model.APART_FROM", 0)
    monkeypatch.setattr("trp_onnx.calibration.moments.ALL_BYTES", 0)
    monkeypatch.setenv("TRP_ONNX_CACHE", str(tmp_path / "another"))
    apart, apart_damages = known(net, x=x)
    assert moments.keys() == apart.keys() == damages.keys() == apart_damages.keys() == {"a", "b", "c", "d"}
    for name in moments:
        np.testing.assert_allclose(apart[name].covariance, moments[name].covariance, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(apart_damages[name].damages, damages[name].damages, rtol=1e-3)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_weights_in_their_file_give_the_same_file(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asymmetric: bool
) -> None:
    """Through the plan, the factors and the statistics of the BatchNormalization."""
    np.savez(tmp_path / "x.npz", x=rng().standard_normal((96, 3, 8, 8)).astype(np.float32))
    results = []
    for name, apart_from in (("read", 1 << 40), ("apart", 0)):
        monkeypatch.setattr("trp_onnx.graph.model.APART_FROM", apart_from)
        monkeypatch.setattr("trp_onnx.files.staging.SPOOLED_FROM", apart_from)  # factors have a file then
        monkeypatch.setenv("TRP_ONNX_CACHE", str(tmp_path / name))
        out = tmp_path / f"{name}.onnx"
        compress(net, out, macs=0.6, align=1, data=tmp_path / "x.npz", asymmetric=asymmetric)
        results.append(initializers(out))
    read, apart = results
    assert read.keys() == apart.keys() != initializers(net).keys()
    for name, array in read.items():
        np.testing.assert_allclose(apart[name], array, rtol=1e-2, atol=1e-3, err_msg=name)


def test_a_curve_is_not_taken_for_that_of_other_weights(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cached belongs to what is in the file, not to its name."""
    monkeypatch.setattr("trp_onnx.graph.model.APART_FROM", 0)
    x = rng().standard_normal((32, 3, 8, 8)).astype(np.float32)
    _, before = known(net, x=x)
    data = net.with_name("net.bin")
    array = np.fromfile(data, np.float32)
    data.write_bytes((array * np.linspace(1, 2, array.size, dtype=np.float32)).tobytes())
    _, after = known(net, x=x)
    assert any(not np.array_equal(before[name].damages, after[name].damages) for name in before)


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every limit of a model that is taken in one piece at a few bytes."""
    for name in ("model.APART_FROM", "model.ONE_FILE", "lent.MOST"):
        monkeypatch.setattr(f"trp_onnx.graph.{name}", 0)


def test_no_protobuf_holds_the_weights_that_are_timed(net: Path, monkeypatch: pytest.MonkeyPatch, tight: None) -> None:
    """The network runs from a file; probes of single layers are as large as these."""
    data, sizes = net.with_name("net.bin"), []
    data.write_bytes(
        (np.fromfile(data, np.float32) * np.random.default_rng().uniform(1, 2)).astype(np.float32).tobytes()
    )
    prepare = Runner.prepare

    def noted(self: Runner, models: Sequence[Path | bytes], *rest: Any) -> None:
        sizes.extend(model.stat().st_size for model in models if isinstance(model, Path))
        prepare(self, models, *rest)

    monkeypatch.setattr(Runner, "prepare", noted)
    table = trp_onnx.profile(net, simplify=False)
    assert table.shares.keys() == {"a", "b", "c", "d"} and sum(table.shares.values()) > 0
    assert len(sizes) == 1 and sizes[0] < data.stat().st_size


def test_int8_of_weights_in_no_protobuf(net: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Ranges, layers in float and weights are those of a model in one piece."""
    np.savez(tmp_path / "x.npz", x=rng().standard_normal((64, 3, 8, 8)).astype(np.float32))
    found = []
    for name in ("whole", "apart"):
        if name == "apart":
            request.getfixturevalue("tight")
        quantized = trp_onnx.quantize(net, tmp_path / f"{name}.onnx", tmp_path / "x.npz", max_drop=0.0)
        found.append((quantized.layers, quantized.in_float, initializers(tmp_path / f"{name}.onnx")))
    (layers, in_float, whole), (same_layers, same_in_float, apart) = found
    assert layers == same_layers and in_float == same_in_float and whole.keys() == apart.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(apart[name], array, err_msg=name)


@pytest.mark.slow
def test_more_than_protobuf_holds(tmp_path: Path) -> None:
    """A table of 2.3 GB, which is a hole in a file, under two layers."""
    rows, width = 550_000, 1024
    with (tmp_path / "table.bin").open("wb") as file:
        file.truncate(4 * rows * width)
    table = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=(rows, width))
    table.data_location = TensorProto.EXTERNAL
    table.external_data.add(key="location", value="table.bin")
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Add", ["e", "x"], ["f"]),
        helper.make_node("MatMul", ["f", "a"], ["g"], name="a"),
        helper.make_node("Relu", ["g"], ["h"]),
        helper.make_node("MatMul", ["h", "b"], ["y"], name="b"),
    ]
    given = [info("ids", ["N"], TensorProto.INT64), info("x", ["N", width])]
    built = model(nodes, given, [info("y", ["N", 8])])
    built.graph.initializer.extend([table, tensor("a", weights(width, 16)), tensor("b", weights(16, 8))])
    ids, x = np.arange(32), rng().standard_normal((32, width)).astype(np.float32)
    moments, damages = known(save(built, tmp_path / "net.onnx"), ids=ids, x=x)
    assert moments.keys() == damages.keys() == {"a", "b"}
    np.testing.assert_allclose(moments["a"].mean[0], x.mean(axis=0), atol=1e-5)
