"""Plans for int8: by the times of what `quantize` makes of a network, on a machine of clockwork."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import trp_onnx
from tests.clockwork import runs_on
from tests.easy import compress
from tests.graphs import conv_net
from tests.test_command_line import run as cli
from trp_onnx.errors import TargetError, UsageError
from trp_onnx.latency import LatencyTable, save_table


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conv_net(tmp_path_factory.mktemp("net") / "net.onnx", channels=16)


@pytest.fixture(scope="module")
def table(net: Path) -> LatencyTable:
    with pytest.MonkeyPatch.context() as patch:
        runs_on(patch, net.parent)
        return trp_onnx.profile(net, scheme="spatial", precision="int8")


def in_int8(model: onnx.ModelProto) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def split(model: onnx.ModelProto) -> bool:
    return any("/" in node.name for node in model.graph.node if node.op_type == "Conv")


def test_int8_has_a_table_of_its_own(net: Path, table: LatencyTable, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        machine = runs_on(patch, net.parent)  # the cache of the other one
        floats = trp_onnx.profile(net, scheme="spatial")
        assert floats.target != table.target and "int8" in str(table.target)
        assert floats.signatures == table.signatures and not any(
            in_int8(model) for models in machine.prepared for model in models
        )
        seen = len(machine.prepared)
        assert trp_onnx.profile(net, scheme="spatial", precision="int8") == table
        assert len(machine.prepared) == seen
    assert 0.3 < sum(table.shares.values()) <= 1 and table.shares.keys() == {"conv1", "conv2", "fc"}


@pytest.mark.parametrize("name", ["out.onnx", "net.onnx"])  # the original's own, elsewhere
def test_a_speed_up_is_that_of_int8_against_int8(
    net: Path, table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    machine = runs_on(monkeypatch, tmp_path)
    report = compress(net, tmp_path / name, speedup=1.3, latency_table=table, scheme="spatial", int8=True)
    assert report.latency is not None and report.latency.measured is not None
    assert report.latency.measured.median >= 1.3 and "int8" in report.latency.target
    assert report.latency.measured.median == pytest.approx(report.latency.predicted, rel=0.03)
    assert all(in_int8(model) for models in machine.prepared for model in models)
    assert split(machine.prepared[-1][1]) and not split(machine.prepared[-1][0])
    assert not in_int8(onnx.load(tmp_path / name))
    assert any("int8" in note for note in report.notes)
    assert {path.name for path in tmp_path.iterdir()} == {name, "cache"}


def test_no_plan_that_makes_int8_slower(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where kernels of int8 are so fast that a second one costs more than it saves."""
    runs_on(
        monkeypatch, tmp_path, slowed=lambda index, model: 20.0 if in_int8(model) and split(model) else 1.0
    )  # fmt: skip
    assert compress(net, tmp_path / "float.onnx", macs=0.6, scheme="spatial").layers
    for goal in ({"macs": 0.6}, {"speedup": 1.2}, {"energy": 0.3}, {}):
        with pytest.raises(TargetError):
            compress(net, tmp_path / "out.onnx", scheme="spatial", int8=True, **goal)
        assert not (tmp_path / "out.onnx").exists()


def test_a_result_that_is_slower_in_int8_is_refused(
    net: Path, table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its table says otherwise."""
    runs_on(
        monkeypatch, tmp_path, slowed=lambda index, model: 20.0 if in_int8(model) and split(model) else 1.0
    )  # fmt: skip
    with pytest.raises(TargetError, match=r"in int8 the result runs 0\.\d+x as fast"):
        compress(net, tmp_path / "out.onnx", scheme="spatial", latency_table=table, int8=True, macs=0.6)
    assert not (tmp_path / "out.onnx").exists()


def test_a_table_of_the_other_kernels_is_refused(
    net: Path, table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_on(monkeypatch, net.parent)
    floats = trp_onnx.profile(net, scheme="spatial")
    with pytest.raises(
        UsageError, match="the latency table has the times of float, and the plan is to be one for int8"
    ):
        compress(net, tmp_path / "out.onnx", speedup=1.2, latency_table=floats, int8=True)
    with pytest.raises(UsageError, match="compress --for-int8, or"):
        compress(net, tmp_path / "out.onnx", speedup=1.2, latency_table=table)
    with pytest.raises(
        UsageError,
        match="one for int8-signed: compress without --target arm, or measure with trp-onnx profile "
        "--precision int8-signed",
    ):
        compress(net, tmp_path / "out.onnx", speedup=1.2, latency_table=table, int8=True, target="arm")


def test_for_int8_on_the_command_line(
    net: Path, table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_on(monkeypatch, net.parent)
    shown = cli("profile", net, "-o", tmp_path / "t.json", "--precision", "int8", "--scheme", "spatial")
    assert "int8" in shown
    save_table(table, tmp_path / "t.json")
    text = cli(
        "compress", net, "-o", tmp_path / "out.onnx", "--speedup", 1.2, "--latency-table", tmp_path / "t.json",
        "--for-int8", "--scheme", "spatial",
    )  # fmt: skip
    assert "int8" in text
