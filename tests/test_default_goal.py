"""`trp-onnx compress model.onnx`, with no other word; limits that need no labels; warnings of what is ruined."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

import trp_onnx
from tests import graphs
from tests.easy import compress
from trp_onnx.cli.main import main
from trp_onnx.errors import TargetError


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def low_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its middle layers are of rank 8 of 144: factors keep its outputs and are several times as fast."""
    return graphs.softmax_net(tmp_path_factory.mktemp("low") / "net.onnx", rank=8)


@pytest.fixture(scope="module")
def full_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return graphs.softmax_net(tmp_path_factory.mktemp("full") / "net.onnx")


@pytest.fixture(scope="module")
def phone(full_rank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The latency table of a device that is not here, on which time goes with MACs."""
    path = tmp_path_factory.mktemp("table") / "phone.json"
    document = trp_onnx.profile(full_rank, scheme="spatial").to_dict()
    document["target"]["machine"] = "a phone"
    document["parts"] = {signature: {} for signature in document["parts"]}
    document["shares"] = {"conv0": 0.05, "conv1": 0.3, "conv2": 0.3, "conv3": 0.3, "fc": 0.0}
    path.write_text(json.dumps(document))
    return path


def samples(path: Path, count: int = 200, **more: np.ndarray) -> Path:
    np.savez(path, x=graphs.rng(3).standard_normal((count, 3, 20, 20)).astype(np.float32), **more)
    return path


def test_a_model_alone_is_enough(low_rank: Path, tmp_path: Path) -> None:
    net, out = tmp_path / "net.onnx", tmp_path / "net.lowrank.onnx"
    net.write_bytes(low_rank.read_bytes())
    result = invoke("compress", net, "--json", tmp_path / "report.json")
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    assert "net.lowrank.onnx" in shown.replace(" ", "") and "generated inputs" in shown
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["limit"]["allowed"] == 2 and report["limit"]["lost"] <= 2
    assert report["latency"]["measured"]["median"] > 1 and report["warnings"] == []
    x = {"x": graphs.rng().standard_normal((2, 3, 20, 20)).astype(np.float32)}
    assert graphs.distance(graphs.run(net, x)[0], graphs.run(out, x)[0]) < 0.05
    assert invoke("compress", net).exit_code == 0  # ours, so it is replaced


def test_a_file_that_is_not_ours_stays(low_rank: Path, tmp_path: Path) -> None:
    net, other = tmp_path / "net.onnx", tmp_path / "net.lowrank.onnx"
    for bytes_ in (low_rank.read_bytes(), b"my notes"):
        net.write_bytes(low_rank.read_bytes())
        other.write_bytes(bytes_)
        result = invoke("compress", net)
        assert result.exit_code == 2 and "trp-onnx did not write it" in " ".join(result.stderr.split())
        assert other.read_bytes() == bytes_


def test_nothing_to_win_is_said_and_nothing_written(full_rank: Path, phone: Path, tmp_path: Path) -> None:
    net = tmp_path / "net.onnx"
    net.write_bytes(full_rank.read_bytes())
    result = invoke("compress", net, "--latency-table", phone)
    assert result.exit_code == 3 and "keeps its outputs" in " ".join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_with_data_the_answers_stay(low_rank: Path, phone: Path, tmp_path: Path) -> None:
    report = compress(low_rank, tmp_path / "out.onnx", data=samples(tmp_path / "d.npz"), latency_table=phone)
    assert report.latency is not None and (report.latency.predicted or 0) > 1.2
    assert report.limit is not None and report.limit.lost <= 1 and report.limit.after.on == "100 samples of d.npz"
    assert report.score is not None and report.score.metric.name == "agreement" and report.score.after.value >= 99


def test_max_drop_without_labels_means_agreement(low_rank: Path, full_rank: Path, phone: Path, tmp_path: Path) -> None:
    data = samples(tmp_path / "d.npz")
    report = compress(low_rank, tmp_path / "out.onnx", data=data, max_drop=3, latency_table=phone)
    assert report.limit is not None and report.limit.allowed == 3 and report.limit.metric.name == "agreement"
    document = json.loads(phone.read_text())
    document["shares"] = dict.fromkeys(document["shares"], 0.004)
    (tmp_path / "idle.json").write_text(json.dumps(document))
    with pytest.raises(TargetError, match=r"--max-drop 3 is out of reach: .* nothing was written"):
        compress(full_rank, tmp_path / "none.onnx", data=data, max_drop=3, latency_table=tmp_path / "idle.json")
    assert not (tmp_path / "none.onnx").exists()


def test_a_ruined_network_is_flagged(full_rank: Path, tmp_path: Path) -> None:
    arguments = ("--macs", 0.05, "--align", 1, "--json", tmp_path / "j.json", "--report", tmp_path / "r")
    result = invoke("compress", full_rank, "-o", tmp_path / "out.onnx", *arguments)
    assert result.exit_code == 0 and "warning: the network" in " ".join(result.stdout.split())
    (warning,) = json.loads((tmp_path / "j.json").read_text())["warnings"]
    assert "ruined" in warning and warning in unescape((tmp_path / "r" / "report.html").read_text())
    mild = compress(full_rank, tmp_path / "mild.onnx", macs=0.95, align=1)
    assert mild.warnings == ()


def test_accuracy_decides_on_ruin_where_there_are_labels(full_rank: Path, tmp_path: Path) -> None:
    x = graphs.rng(3).standard_normal((200, 3, 20, 20)).astype(np.float32)
    y = graphs.run(full_rank, {"x": x})[0].argmax(axis=1)
    np.savez(tmp_path / "t.npz", x=x, y=y)
    report = compress(full_rank, tmp_path / "out.onnx", macs=0.05, align=1, test=tmp_path / "t.npz")
    assert any("top-1 falls from 100.00%" in w for w in report.warnings)


def test_a_test_without_labels_measures_agreement(full_rank: Path, tmp_path: Path) -> None:
    report = compress(full_rank, tmp_path / "out.onnx", macs=0.9, align=1, test=samples(tmp_path / "t.npz", 50))
    score = report.score
    assert score is not None and score.metric.name == "agreement" and score.after.samples == 50
    assert any("has no labels" in note for note in report.notes)
    x = {"x": np.load(tmp_path / "t.npz")["x"]}
    answers = [graphs.run(path, x)[0].argmax(axis=1) for path in (full_rank, tmp_path / "out.onnx")]
    assert score.after.value == pytest.approx(100 * np.mean(answers[0] == answers[1]))


def test_notes_reach_those_without_a_terminal(tmp_path: Path) -> None:
    net = graphs.conv_net(tmp_path / "net.onnx", channels=24)
    np.savez(tmp_path / "d.npz", x=graphs.rng().integers(0, 255, (20, 12, 12, 3), np.uint8))
    report = compress(net, tmp_path / "out.onnx", macs=0.6, align=1, data=tmp_path / "d.npz")
    assert any("0 to 255" in note for note in report.notes)


def test_what_is_written_says_who_wrote_it(full_rank: Path, tmp_path: Path) -> None:
    compress(full_rank, tmp_path / "out.onnx", macs=0.9, align=1)
    props = {p.key: p.value for p in onnx.load(tmp_path / "out.onnx").metadata_props}
    assert props["owner"] == "tests" and props["trp_onnx"] == trp_onnx.__version__


def test_results_are_short_to_look_at(full_rank: Path, tmp_path: Path) -> None:
    report = compress(full_rank, tmp_path / "out.onnx", macs=0.9, align=1)
    assert len(repr(report).splitlines()) == 5 and "as fast" in repr(report)
    assert report._repr_html_().count("<tr>") == 5
    assert "compress" in dir(trp_onnx)


def test_time_is_measured_whatever_planned_the_ranks(full_rank: Path, tmp_path: Path) -> None:
    report = compress(full_rank, tmp_path / "out.onnx", macs=0.5, align=8)
    assert report.latency is not None and report.latency.predicted is None and report.latency.measured is not None
