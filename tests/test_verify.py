"""`trp-onnx verify`: a written file carries what was measured of it, and says whether that still holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import trp_onnx
from tests import graphs
from trp_onnx import Goal, ModelError
from trp_onnx.cli.main import main

RECORD = "trp_onnx.record"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with net.onnx, labelled.npz and small.onnx, which was made of them."""
    folder = tmp_path_factory.mktemp("made")
    net = graphs.conv_net(folder / "net.onnx", channels=24)
    x = graphs.rng(3).standard_normal((96, 3, 12, 12)).astype(np.float32)
    y = graphs.run(net, {"x": x})[0].argmax(axis=1)
    np.savez(folder / "labelled.npz", x=x, y=y)
    trp_onnx.compress(
        net, folder / "small.onnx", Goal(macs=0.6), data=folder / "labelled.npz", test=folder / "labelled.npz"
    )
    return folder


def edit(path: Path, out: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    proto = onnx.load(path)
    change(proto)
    onnx.save(proto, out)
    return out


def entry(proto: onnx.ModelProto) -> onnx.StringStringEntryProto:
    return next(entry for entry in proto.metadata_props if entry.key == RECORD)


def claims(verified: trp_onnx.Verified) -> dict[str, bool | None]:
    return {check.what: check.holds for check in verified.checks}


def test_a_written_file_holds_its_plan_and_what_was_measured(made: Path) -> None:
    found = json.loads(entry(onnx.load(made / "small.onnx")).value)
    assert {"plan", "source_sha256", "versions", "outputs", "score", "speed", "verified_on", "date"} <= set(found)
    assert "[[layer]]" in found["plan"] and found["source"] == "net.onnx"
    onnx.checker.check_model(str(made / "small.onnx"))


def test_alone_a_file_shows_that_it_is_unchanged_and_runs(made: Path) -> None:
    found = trp_onnx.verify(made / "small.onnx")
    assert found.holds and claims(found)["the network"] and claims(found)["it runs"]
    assert claims(found)["outputs"] is None and claims(found)["speed"] is None


def test_with_the_original_and_data_everything_is_measured_again(made: Path) -> None:
    found = trp_onnx.verify(made / "small.onnx", original=made / "net.onnx", data=made / "labelled.npz")
    holds = {what: held for what, held in claims(found).items() if what != "speed"}  # the machine may be busy
    assert all(holds.values()) and {"the original", "output 'logits'", "top-1"} <= set(holds)
    assert "speed" in claims(found)


def test_a_file_that_was_saved_again_still_holds(made: Path, tmp_path: Path) -> None:
    again = edit(made / "small.onnx", tmp_path / "again.onnx", lambda proto: None)
    assert trp_onnx.verify(again).holds
    trp_onnx.compress(made / "net.onnx", goal=Goal(macs=0.6)).save(tmp_path / "memory.onnx")
    assert trp_onnx.verify(tmp_path / "memory.onnx").holds


def test_changed_weights_do_not_hold(made: Path, tmp_path: Path) -> None:
    def change(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        tensor.CopyFrom(onnx.numpy_helper.from_array(1 - 3 * onnx.numpy_helper.to_array(tensor), tensor.name))

    changed = edit(made / "small.onnx", tmp_path / "changed.onnx", change)
    result = CliRunner().invoke(main, ["verify", str(changed)])
    assert result.exit_code == 1 and "does not hold" in result.stdout and "Traceback" not in result.output
    found = trp_onnx.verify(changed, original=made / "net.onnx", data=made / "labelled.npz")
    assert claims(found)["the network"] is False and claims(found)["output 'logits'"] is False


def test_another_original_does_not_hold(made: Path, tmp_path: Path) -> None:
    other = graphs.conv_net(tmp_path / "other.onnx", channels=16)
    assert claims(trp_onnx.verify(made / "small.onnx", original=other))["the original"] is False


def test_a_score_that_was_made_up_does_not_hold(made: Path, tmp_path: Path) -> None:
    def lie(proto: onnx.ModelProto) -> None:
        said = entry(proto)
        said.value = json.dumps(json.loads(said.value) | {"score": {"name": "top-1", "after": 250.0, "unit": "%"}})

    lied = edit(made / "small.onnx", tmp_path / "lied.onnx", lie)
    assert claims(trp_onnx.verify(lied, data=made / "labelled.npz"))["top-1"] is False


@pytest.mark.parametrize("value", [None, "{", "[]", '{"date": 1}'])
def test_a_file_without_a_record_is_one_sentence(made: Path, tmp_path: Path, value: str | None) -> None:
    def change(proto: onnx.ModelProto) -> None:
        del proto.metadata_props[:]
        if value is not None:
            proto.metadata_props.add(key=RECORD, value=value)

    with pytest.raises(ModelError, match="record"):
        trp_onnx.verify(edit(made / "small.onnx", tmp_path / "bare.onnx", change))


def test_the_card_has_a_head_that_hugging_face_reads(made: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    shutil.copy(made / "small.onnx", tmp_path)
    result = CliRunner().invoke(main, ["verify", str(tmp_path / "small.onnx"), "--card", str(tmp_path / "README.md")])
    assert result.exit_code == 0, result.output
    _, head, body = (tmp_path / "README.md").read_text().split("---\n", 2)
    [index] = yaml.safe_load(head)["model-index"]
    [metric] = index["results"][0]["metrics"]
    assert index["name"] == "small" and metric["type"] == "accuracy" and metric["value"] > 50
    assert "| MACs |" in body and "[[layer]]" in body
