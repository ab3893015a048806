"""Fair timing: what the protocol promises, and what `bench` says about models."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import trp_onnx
from tests.easy import compress
from tests.graphs import conv_net, model, save, weights
from trp_onnx.errors import DataError, ModelError, UsageError
from trp_onnx.latency import compare


def work(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.mark.timing
def test_a_known_ratio_is_found() -> None:
    timing = compare([lambda: work(0.004), lambda: work(0.002)], rounds=20)
    assert timing.ratios[0].median == 1.0
    assert timing.ratios[1].median == pytest.approx(2.0, rel=0.1)
    assert timing.ratios[1].low <= timing.ratios[1].median <= timing.ratios[1].high


@pytest.mark.timing
def test_a_drifting_machine_does_not_show_in_the_ratio() -> None:
    """Both contenders slow down threefold in the middle of the run."""
    calls = 0

    def drifting(seconds: float) -> None:
        nonlocal calls
        calls += 1
        work(seconds * (1 if calls < 60 else 3))

    timing = compare([lambda: drifting(0.003), lambda: drifting(0.003)], rounds=40)
    assert timing.ratios[1].median == pytest.approx(1.0, rel=0.1)


@pytest.mark.timing
def test_a_contender_that_is_its_own_neighbour_gains_nothing() -> None:
    """Each is faster when it ran before; of three, the first and the last do at every flip."""
    last = -1

    def contender(index: int) -> Callable[[], None]:
        def call() -> None:
            nonlocal last
            work(0.002 if last == index else 0.003)
            last = index

        return call

    timing = compare([contender(i) for i in range(3)], rounds=20)
    assert [ratio.median for ratio in timing.ratios] == pytest.approx([1.0, 1.0, 1.0], rel=0.05)


def test_it_stops_when_it_knows_enough() -> None:
    assert compare([lambda: work(0.003), lambda: work(0.003)], rounds=5).rounds == 5
    assert compare([lambda: work(0.003)], rounds=500).rounds < 500  # its own ratio is exact


def big_and_small(folder: Path) -> tuple[Path, Path]:
    big = conv_net(folder / "big.onnx", channels=64)
    compress(big, folder / "small.onnx", macs=0.3, align=1, scheme="spatial")
    return big, folder / "small.onnx"


@pytest.mark.timing
def test_bench_tells_models_and_layers_apart(tmp_path: Path) -> None:
    big, small = big_and_small(tmp_path)
    result = trp_onnx.bench([big, small, big], rounds=60)
    assert result.contenders[1].ratio.median > 1.1
    assert result.contenders[2].ratio.median == pytest.approx(1.0, abs=0.25)
    dense, factored = result.contenders[0].layers, result.contenders[1].layers
    assert {"conv1", "conv2", "fc"} <= set(dense) and "conv2" in factored and "conv2/v" not in factored
    assert factored["conv2"] < dense["conv2"]
    assert set(result.contenders[0].providers) == {"CPUExecutionProvider"}


def test_bench_on_the_command_line(tmp_path: Path) -> None:
    big, small = big_and_small(tmp_path)
    command = [sys.executable, "-m", "trp_onnx", "bench", str(big), str(small), "--rounds", "5"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "speed-up" in shown.stdout and "conv2" in shown.stdout
    done = subprocess.run([*command, "--threads", "2", "--json", "-"], capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert document["threads"] == 2 and len(document["contenders"]) == 2
    assert document["contenders"][0]["ratio"]["median"] == 1.0


def test_inputs_that_are_given(tmp_path: Path) -> None:
    net = conv_net(tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 3, 12, 12), np.float32))
    assert trp_onnx.bench([net], rounds=2, inputs=tmp_path / "x.npz").shapes == {"x": (3, 3, 12, 12)}
    np.savez(tmp_path / "y.npz", y=np.zeros(3))
    with pytest.raises(DataError, match="no array for input 'x'"):
        trp_onnx.bench([net], rounds=2, inputs=tmp_path / "y.npz")


def test_a_provider_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    net = conv_net(tmp_path / "net.onnx")
    for name in ("nnapi", "coreml", "qnn"):
        with pytest.raises(UsageError, match=f"{name} is not in this onnxruntime"):
            trp_onnx.bench([net], provider=name)
    with pytest.raises(UsageError, match="unknown execution provider 'gpu'"):
        trp_onnx.bench([net], provider="gpu")


def test_models_that_do_not_fit_together(tmp_path: Path) -> None:
    net = conv_net(tmp_path / "net.onnx")
    other = model(
        [onnx.helper.make_node("MatMul", ["z", "w"], ["y"])],
        [onnx.helper.make_tensor_value_info("z", 1, ["N", 4])],
        [onnx.helper.make_tensor_value_info("y", 1, ["N", 2])], {"w": weights(4, 2)},
    )  # fmt: skip
    with pytest.raises(ModelError, match="no value for input 'z'"):
        trp_onnx.bench([net, save(other, tmp_path / "other.onnx")], rounds=2)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match="cannot load"):
        trp_onnx.bench([net, tmp_path / "broken.onnx"], rounds=2)
    with pytest.raises(UsageError, match="at least one"):
        trp_onnx.bench([])
