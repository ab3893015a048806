"""`--recover`: a compressed network learns from the original what it lost, on samples without labels."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import trp_onnx
from tests.graphs import conv_net, info, model, rng, run, save, weights
from tests.processes import children, runs, until
from trp_onnx import Goal, LayerRule
from trp_onnx.errors import TrainingError, UsageError
from trp_onnx.training import isolated_runtime

pytestmark = pytest.mark.usefixtures("training_runtime")
QUICK = 0.02
"""Minutes."""


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conv_net(tmp_path_factory.mktemp("net") / "net.onnx")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth pictures, without labels."""
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    np.savez(path, x=pictures(96, seed=1))
    return path


def pictures(count: int, seed: int) -> np.ndarray:
    """(n, 3, 12, 12)."""
    coarse = rng(seed).standard_normal((count, 3, 3, 3)).astype(np.float32)
    return coarse.repeat(4, axis=2).repeat(4, axis=3)


def error(net: Path, other: Path, x: np.ndarray) -> float:
    expected, found = run(net, {"x": x})[0], run(other, {"x": x})[0]
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_what_compression_lost_is_learnt_back(net: Path, data: Path, tmp_path: Path) -> None:
    plain = trp_onnx.compress(net, tmp_path / "plain.onnx", Goal(macs=0.5), data=data)
    result = trp_onnx.compress(net, tmp_path / "out.onnx", plain.plan, data=data, recover=QUICK)
    recovered, unseen = result.report.recovered, pictures(64, seed=2)
    assert recovered is not None
    assert recovered.after < recovered.before
    assert error(net, tmp_path / "out.onnx", unseen) < error(net, tmp_path / "plain.onnx", unseen)
    assert result.plan.chosen == plain.plan.chosen
    assert recovered.rate in {float(rate) for rate in recovered.tried}
    assert 0 < recovered.samples < 96
    assert result.report.to_dict()["recovery"]["after"] == recovered.after
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx", "plain.onnx"]


def test_what_lost_nothing_stays_as_it_is(data: Path, tmp_path: Path) -> None:
    built = onnx.load(conv_net(tmp_path / "net.onnx"))
    low = (weights(16, 4, seed=1) @ weights(4, 144, seed=2)).reshape(16, 16, 3, 3)
    next(t for t in built.graph.initializer if t.name == "w2").CopyFrom(onnx.numpy_helper.from_array(low, "w2"))
    net = save(built, tmp_path / "net.onnx")
    goal = Goal(rules=(LayerRule("conv2", scheme="channel", rank=(4,)),))
    report = trp_onnx.compress(net, tmp_path / "out.onnx", goal, data=data, recover=QUICK).report
    assert report.recovered is not None and report.recovered.after <= report.recovered.before < 1e-6
    assert error(net, tmp_path / "out.onnx", pictures(8, seed=2)) < 1e-4


def test_samples_are_changed_only_as_the_original_allows(data: Path, tmp_path: Path) -> None:
    """One network looks at the sum of all pixels, where a mirrored picture is as good; one at each pixel by itself."""
    summed = {"w": np.ones((10, 432), np.float32) * weights(10, 1, seed=1) / 432 + 0.01 * weights(10, 432, seed=4)}
    placed = {"w": weights(10, 432, seed=2)}
    views = []
    for name, given in (("summed", summed), ("placed", placed)):
        nodes = [
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node("Gemm", ["f", "w"], ["y"], name="fc", transB=1),
        ]
        net = save(
            model(nodes, [info("x", ["N", 3, 12, 12])], [info("y", ["N", 10])], given), tmp_path / f"{name}.onnx"
        )
        goal = Goal(rules=(LayerRule("fc", rank=(2,)),))
        recovered = trp_onnx.compress(net, tmp_path / "out.onnx", goal, data=data, recover=QUICK).report.recovered
        assert recovered is not None
        views.append(recovered.views)
    assert "flip" in views[0]
    assert "flip" not in views[1]


@pytest.mark.slow
def test_a_killed_recovery_goes_on(net: Path, data: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "out.onnx", tmp_path / "out.onnx.trp-run"
    command = [sys.executable, "-m", "trp_onnx", "compress", str(net), "-o", str(out), "--data", str(data)]
    command += ["--recover", "0.1", "--macs"]
    began = subprocess.Popen([*command, "0.5"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: began.poll() is not None or (folder / "trial-1" / "result.npz").exists())
    left = children(began.pid)
    began.send_signal(signal.SIGKILL)
    began.wait()
    until(lambda: not any(map(runs, left)))
    assert not out.exists()
    first = (folder / "trial-1" / "result.npz").stat()
    other = subprocess.run([*command, "0.6"], capture_output=True, text=True)
    assert other.returncode == 1
    assert "holds the recovery of another model or for another goal" in other.stderr
    assert (folder / "trial-1" / "result.npz").stat() == first
    again = subprocess.run([*command, "0.5"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "the recovery that was interrupted goes on" in again.stdout + again.stderr
    assert out.exists() and not folder.exists()


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"recover": 1.0}, "--recover learns from the original on --data"),
        ({"recover": 0.0, "data": True}, "recover takes a number above 0"),
        ({"recover": True, "data": True}, "recover takes a number"),
    ],
)
def test_what_recovery_needs(net: Path, data: Path, tmp_path: Path, wishes: dict[str, object], said: str) -> None:
    given = dict(wishes) | ({"data": data} if wishes.get("data") else {})
    with pytest.raises(UsageError, match=said):
        trp_onnx.compress(net, tmp_path / "out.onnx", Goal(macs=0.5), **given)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_without_the_runtime_nothing_begins(
    net: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated_runtime, "PYTHONS", ((2, 7),))
    with pytest.raises(TrainingError, match=r"^training needs Python 3.11 or 3.12"):
        trp_onnx.compress(net, tmp_path / "out.onnx", Goal(macs=0.5), data=data, recover=1)
    assert list(tmp_path.iterdir()) == []
