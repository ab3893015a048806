"""What Python users rely on: models of every kind in, results that compose, goals that are objects."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import trp_onnx
from tests.graphs import conv_net
from trp_onnx import Device, Goal, LayerRule, ModelError, NetworkOptions, SearchSpace, TargetError, UsageError
from trp_onnx.graph.session import open_session, run_model

HALF, EVERY_RANK = Goal(macs=0.6), SearchSpace(align=1)
X = np.random.default_rng(0).standard_normal((300, 3, 12, 12)).astype(np.float32)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return conv_net(tmp_path / "net.onnx")


@pytest.mark.parametrize("kind", ["path", "string", "bytes", "proto", "ir"])
def test_a_model_of_every_kind_is_compressed_in_memory(net: Path, kind: str) -> None:
    before = net.read_bytes()
    model = {
        "path": net,
        "string": str(net),
        "bytes": before,
        "proto": onnx.load(net),
        "ir": ir.load(net),
    }[kind]
    result = trp_onnx.compress(model, goal=HALF, search=EVERY_RANK)
    assert result.path is None and result.report.macs.remaining <= 0.6
    assert isinstance(result.model, ir.Model) and result.plan.chosen
    assert sorted(path.name for path in net.parent.iterdir()) == ["net.onnx"] and net.read_bytes() == before
    saved = result.save(net.parent / "small.onnx")
    feeds = {"x": X[:1]}
    written, kept = run_model(saved, feeds), run_model(ir.to_proto(result.model), feeds)
    for name, value in written.items():
        np.testing.assert_array_equal(value, kept[name])


def test_every_command_takes_models_in_memory(net: Path, tmp_path: Path) -> None:
    """In memory from one command to the next; what each says of the network is what it says of its file."""
    model, y = ir.load(net), run_model(net, {"x": X})["logits"].argmax(axis=1)
    inspection = trp_onnx.inspect(model)
    assert inspection.layers == trp_onnx.inspect(net).layers and inspection.model == "a model in memory"
    quantised = trp_onnx.quantize(net.read_bytes(), data=X, max_drop=99, original=model)
    assert quantised.path is None and quantised.variants[0].name == "original"
    assert trp_onnx.evaluate(model, (X, y)).value == 100
    scores = trp_onnx.evaluate(quantised.model, (X, y), against=onnx.load(net))
    assert scores == trp_onnx.evaluate(quantised.save(tmp_path / "int8.onnx"), (X, y), against=net)
    timed = trp_onnx.bench([model, quantised.model, net], rounds=3)
    assert [contender.model for contender in timed.contenders] == ["a model in memory"] * 2 + [str(net)]
    shipped = trp_onnx.export(quantised.model, tmp_path / "app")
    assert shipped.manifest["source"]["file"] == "model.onnx" and (tmp_path / "app" / "model.ort").is_file()
    assert trp_onnx.profile(model).shares.keys() == {"conv1", "conv2", "fc"}


def test_results_show_themselves(net: Path, tmp_path: Path) -> None:
    """In five lines at a prompt, as a table in a notebook."""
    y = run_model(net, {"x": X})["logits"].argmax(axis=1)
    results = (
        (trp_onnx.inspect(net), "conv2"),
        (trp_onnx.quantize(net, data=X, max_drop=99, original=net), "original, int8"),
        (trp_onnx.evaluate(net, (X, y)), "100.00%"),
        (trp_onnx.evaluate(net, (X, y), against=net), "+0.00 points"),
        (trp_onnx.bench([net] * 6, rounds=2), "and 3 more"),
        (trp_onnx.export(net, tmp_path / "app"), "net.ort"),
        (trp_onnx.profile(net), "conv2"),
        (trp_onnx.compress(net, goal=HALF, search=EVERY_RANK), "MACs"),
    )
    for result, told in results:
        text, page = repr(result), result._repr_html_()
        assert len(text.splitlines()) <= 5 and max(map(len, text.splitlines())) <= 100
        assert told in text and told in page and page.startswith("<table>")


def test_what_is_noted_on_the_way_is_in_the_result(net: Path, tmp_path: Path) -> None:
    stored = np.random.default_rng(1).integers(0, 256, (64, 12, 12, 3)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", x=stored, y=np.zeros(64, np.int64))
    note = "go in as they are stored"
    assert any(note in line for line in trp_onnx.evaluate(net, tmp_path / "images.npz").notes)
    assert any(note in line for line in trp_onnx.quantize(net, data=tmp_path / "images.npz", max_drop=99).notes)


def test_what_is_no_model_is_refused(net: Path) -> None:
    with pytest.raises(ModelError, match="a model is a path, bytes"):
        trp_onnx.compress(5, goal=HALF)  # type: ignore[arg-type]
    with pytest.raises(ModelError):
        trp_onnx.compress(b"no model", goal=HALF)
    with pytest.raises(ModelError, match="a model is a path, bytes"):
        trp_onnx.bench([5])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="give --data"):
        trp_onnx.quantize(net)


def test_the_result_of_a_file_is_open(net: Path, tmp_path: Path) -> None:
    result = trp_onnx.compress(net, tmp_path / "out.onnx", HALF, search=EVERY_RANK)
    assert result.path == tmp_path / "out.onnx"
    assert {node.op_type for node in result.model.graph} >= {"Conv"}
    with pytest.raises(UsageError, match="is an input"):
        result.save(tmp_path / "out.onnx")
    lines = repr(result).splitlines()
    assert len(lines) == 5 and lines[1].startswith("MACs")
    assert "<table>" in result._repr_html_()


def test_everything_composes(net: Path, tmp_path: Path) -> None:
    """profile -> compress -> plan edited -> compress -> quantize -> export, as objects and by files."""
    table = trp_onnx.profile(net)
    first = trp_onnx.compress(net, goal=Goal(macs=0.7), search=EVERY_RANK, device=Device(latency_table=table))
    rules = [dataclasses.replace(r, rank=(3,)) if r.matches("conv2") else r for r in first.plan.rules()]
    second = trp_onnx.compress(net, tmp_path / "out.onnx", Goal(rules=rules), search=EVERY_RANK)
    chosen = first.plan.chosen | {"conv2": (first.plan.chosen["conv2"][0], (3,))}
    assert second.plan.chosen == chosen != first.plan.chosen

    before = net.read_bytes()
    with pytest.raises(UsageError, match="is no TOML file"):
        second.plan.save(net)
    assert net.read_bytes() == before
    second.plan.save(tmp_path / "plan.toml")
    again = trp_onnx.compress(net, goal=Goal(rules=trp_onnx.read_rules(tmp_path / "plan.toml")), search=EVERY_RANK)
    assert again.plan.chosen == trp_onnx.compress(net, goal=second.plan, search=EVERY_RANK).plan.chosen == chosen

    np.savez(tmp_path / "d.npz", x=X)
    quantised = trp_onnx.quantize(tmp_path / "out.onnx", tmp_path / "int8.onnx", tmp_path / "d.npz", max_drop=99)
    shipped = trp_onnx.export(tmp_path / "int8.onnx", tmp_path / "app")
    assert trp_onnx.quantize(again.model, data=X, max_drop=99).layers == quantised.layers
    assert quantised.layers and (tmp_path / "app" / "int8.ort").exists() and shipped.notes is not None
    second.report.save(tmp_path / "report")
    second.report.save(tmp_path / "report")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["plan.toml", "report.html", "report.json"]
    with pytest.raises(UsageError, match="is no part of a report"):
        second.report.save(tmp_path)  # where plan.toml is


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"macs": 1.5}, "--macs is the part"),
        ({"speedup": 1.0}, "--speedup is how many times"),
        ({"energy": -0.1}, "--energy is the part"),
        ({"max_drop": 100}, "--max-drop is what may be lost"),
        ({"macs": 0.5, "speedup": 2.0}, "give only one"),
        ({"vbmf": True, "energy": 0.1}, "give only one"),
    ],
)
def test_a_goal_refuses_itself(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Goal(**wrong)  # type: ignore[arg-type]


def test_types_refuse_what_they_do_not_know() -> None:
    for wrong in ({"scheme": "cp"}, {"align": 0}, {"align": "many"}, {"plan_by": "feeling"}):
        with pytest.raises(UsageError):
            SearchSpace(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--threads"):
        Device(threads=0)


def test_a_target_and_a_limit_go_together(net: Path, tmp_path: Path) -> None:
    """At most that part of the MACs, and at most so much lost: both hold, or nothing is written."""
    out, made = tmp_path / "out.onnx", tmp_path / "none.onnx"
    result = trp_onnx.compress(net, out, Goal(macs=0.7, max_drop=99), data=_data(tmp_path), search=EVERY_RANK)
    assert result.report.macs.remaining <= 0.7
    assert result.report.limit is not None and result.report.limit.lost <= 99
    with pytest.raises(TargetError, match=r"--macs 0\.2 and --max-drop 0 are out of reach together"):
        trp_onnx.compress(net, made, Goal(macs=0.2, max_drop=0), data=_data(tmp_path), search=EVERY_RANK)
    assert not made.exists()


def test_what_contradicts_itself_is_refused_before_any_work(net: Path, tmp_path: Path) -> None:
    training = trp_onnx.Training(trp_onnx.TrainingOptions(strategy="replan"))
    for goal, options, said in (
        (Goal(speedup=1.5), {"training": training, "data": _data(tmp_path)}, "goes with --macs or --energy"),
        (Goal(), {"training": training, "data": _data(tmp_path)}, "needs --macs"),
        (Goal(max_drop=1), {}, "need data"),
        (HALF, {"search": SearchSpace(asymmetric=True)}, "--asymmetric fits factors to --data"),
        (Goal(macs=0.5, energy=0.1), {}, "give only one"),
    ):
        with pytest.raises(UsageError, match=said):
            trp_onnx.compress(net, tmp_path / "out.onnx", goal, **options)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.npz", "net.onnx"]


def test_the_map_goes_before_the_goal(net: Path) -> None:
    rules = [LayerRule("conv2", scheme="channel", rank=(2,))]
    plan = trp_onnx.compress(net, goal=Goal(macs=0.8, rules=rules), search=EVERY_RANK).plan
    assert plan.chosen["conv2"] == ("channel", (2,))


def test_networks_open_as_they_are_told(tmp_path: Path) -> None:
    net = conv_net(tmp_path / "net.onnx")
    report = trp_onnx.compress(net, goal=HALF, search=EVERY_RANK, network=NetworkOptions(simplify=False)).report
    assert report.output == "in memory" and report.model == str(net)
    assert trp_onnx.compress(net.read_bytes(), goal=HALF, search=EVERY_RANK).report.model == "a model in memory"


def _data(folder: Path) -> Path:
    path = folder / "d.npz"
    if not path.exists():
        np.savez(path, x=X)
    return path


@pytest.mark.parametrize(("said", "threads"), [("3", 3), ("2,4", 2), ("", 0), ("many", 0), ("-1", 0)])
def test_omp_num_threads_holds_for_onnxruntime(
    net: Path, monkeypatch: pytest.MonkeyPatch, said: str, threads: int
) -> None:
    """0 is as many as the runtime likes."""
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert open_session(net).get_session_options().intra_op_num_threads == threads
