"""Plans by time: what a table says, what a plan makes of it, and tables that are wrong."""

import itertools
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import trp_onnx
from tests.clockwork import Clockwork, runs_on
from tests.easy import compress
from tests.graphs import conv_net, info, model, rng, run, save, weights
from tests.test_command_line import run as cli
from trp_onnx.errors import DataError, ModelError, TargetError, UsageError
from trp_onnx.graph.layers import find_layers
from trp_onnx.graph.model import open_model
from trp_onnx.latency import read_table, save_table
from trp_onnx.latency.parts import Place
from trp_onnx.lowrank.schemes import SCHEMES
from trp_onnx.runners import transport
from trp_onnx.runners.worker import Worker


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conv_net(tmp_path_factory.mktemp("net") / "net.onnx", channels=64)


@pytest.fixture(scope="module")
def measured(net: Path) -> Path:
    path = net.with_name("table.json")
    with pytest.MonkeyPatch.context() as patch:
        runs_on(patch, net.parent)
        save_table(trp_onnx.profile(net), path)
    return path


def another(measured: Path, tmp_path: Path, **changes: Any) -> Path:
    """The table with some entries changed."""
    document = json.loads(measured.read_text()) | changes
    path = tmp_path / "other.json"
    path.write_text(json.dumps(document))
    return path


def on_a_phone(measured: Path, tmp_path: Path, shares: dict[str, float], dense: float = 1.0) -> Path:
    """A table with made-up times: the factors of every layer take what their rank says, in steps of 16."""
    document = json.loads(measured.read_text())
    parts = {
        key: {name: [[rank, dense * sum(rank) / 100] for rank, _ in knots] for name, knots in by.items()}
        for key, by in document["parts"].items()
    }
    target = {"machine": "a phone", "runtime": "1.0", "provider": "cpu", "threads": 1}
    return another(measured, tmp_path, shares=shares, parts=parts, paces={}, target=target, step=16)


def test_a_table_survives_its_file(measured: Path, tmp_path: Path) -> None:
    table = read_table(measured)
    save_table(table, tmp_path / "again.json")
    assert read_table(tmp_path / "again.json") == table
    assert table.step in (4, 8, 16, 32)
    assert 0.3 < sum(table.shares.values()) <= 1
    assert table.shares["conv2"] > table.shares["conv1"] > 0


def test_ranks_within_a_step_cost_the_same(net: Path, measured: Path, tmp_path: Path) -> None:
    table = read_table(on_a_phone(measured, tmp_path, {"conv1": 0.1, "conv2": 0.8, "fc": 0.05}))
    layer = next(layer for layer in find_layers(open_model(net)) if layer.name == "conv2")
    times = [table.part(layer, SCHEMES["spatial"], (rank,)) for rank in (17, 24, 32, 33)]
    assert times[0] == times[1] == times[2] < times[3]


def test_time_is_saved_where_it_is_spent(net: Path, measured: Path, tmp_path: Path) -> None:
    """On the phone the classifier takes most of the time, though it has next to no MACs."""
    table = on_a_phone(measured, tmp_path, {"conv1": 0.01, "conv2": 0.3, "fc": 0.6}, dense=0.2)
    report = compress(net, tmp_path / "out.onnx", speedup=1.8, align=1, latency_table=table)
    chosen = {layer.name: layer.scheme for layer in report.layers}
    assert chosen["fc"] is not None
    assert report.latency is not None and report.latency.predicted is not None and report.latency.predicted >= 1.8
    assert report.latency.measured is None and "a phone" in report.latency.target


def test_least_damage_within_the_time(net: Path, measured: Path, tmp_path: Path) -> None:
    """Every cheaper choice that meets the target does more damage: all pairs of options are tried."""
    table = on_a_phone(measured, tmp_path, {"conv1": 0.3, "conv2": 0.6, "fc": 0.0})
    report = compress(net, tmp_path / "out.onnx", speedup=1.5, latency_table=table, scheme="spatial")
    found = {layer.name: layer for layer in report.layers}
    layers = {layer.name: layer for layer in find_layers(open_model(net))}
    times, errors = {}, {}
    for name in ("conv1", "conv2"):
        layer, scheme = layers[name], SCHEMES["spatial"]
        spectrum = scheme.errors(layer.weight())
        ranks = [r for r in range(16, len(spectrum), 16) if scheme.macs(layer.geometry, (r,)) < layer.geometry.macs]
        share = read_table(table).shares[name]
        times[name] = [share, *(share * read_table(table).part(layer, scheme, (r,)) for r in ranks)]
        errors[name] = [0.0, *(spectrum[r] for r in ranks)]
    best = min(
        e1 + e2
        for t1, e1 in zip(times["conv1"], errors["conv1"], strict=True)
        for t2, e2 in zip(times["conv2"], errors["conv2"], strict=True)
        if 0.1 + t1 + t2 <= 1 / 1.5 + 1e-9
    )
    assert sum(found[name].relative_error ** 2 for name in times) == pytest.approx(best, abs=1e-9)


def test_out_of_reach_says_what_is_in_reach(net: Path, measured: Path, tmp_path: Path) -> None:
    table = on_a_phone(measured, tmp_path, {"conv1": 0.1, "conv2": 0.5, "fc": 0.0})
    with pytest.raises(TargetError, match=r"--speedup 9 is out of reach.*predicted to run [12]\.\d\dx") as refusal:
        compress(net, tmp_path / "out.onnx", speedup=9, latency_table=table)
    assert refusal.value.exit_code == 3
    assert not (tmp_path / "out.onnx").exists()


def test_tables_that_are_wrong(net: Path, measured: Path, tmp_path: Path) -> None:
    def refused(path: Path, kind: type[Exception], words: str, source: Path = net) -> None:
        with pytest.raises(kind, match=words):
            compress(source, tmp_path / "out.onnx", speedup=1.2, latency_table=path)
        assert not (tmp_path / "out.onnx").exists()

    refused(tmp_path / "none.json", DataError, "cannot be read")
    (tmp_path / "text.json").write_text("ms: 12")
    refused(tmp_path / "text.json", DataError, "not JSON")
    (tmp_path / "list.json").write_text("[1, 2]")
    refused(tmp_path / "list.json", DataError, "does not say its format")
    refused(another(measured, tmp_path, format="trp-onnx latency table 99"), DataError, "99")
    for damage in (
        {"shares": {"conv1": 1.5}},
        {"shares": {"conv1": "x"}},
        {"milliseconds": -1},
        {"step": 0},
        {"step": "wide"},
        {"parts": {"k": {"spatial": [[[0], 1.0]]}}},
        {"parts": {"k": {"spatial": [[[4], 0.0]]}}},
        {"parts": {"k": {"diagonal": [[[4], 1.0]]}}},
        {"parts": []},
        {"target": None},
        {"signatures": 3},
    ):
        refused(another(measured, tmp_path, **damage), DataError, "damaged")
    empty = another(measured, tmp_path, milliseconds=None)
    refused(empty, DataError, "is damaged, measure it again: milliseconds takes a number, not None")
    narrow = conv_net(tmp_path / "narrow.onnx", channels=32)
    refused(measured, UsageError, "another network", narrow)


@pytest.mark.timing
def test_a_plan_can_be_edited_and_given_back(net: Path, measured: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    first = compress(
        net, tmp_path / "a.onnx", speedup=1.2, latency_table=measured, report_dir=tmp_path / "report", save_plan=plan
    )
    assert (tmp_path / "report" / "plan.toml").read_text() == plan.read_text()
    entries = tomllib.loads(plan.read_text())["layer"]
    assert len(entries) == 3 and any("rank" in entry for entry in entries)
    again = compress(net, tmp_path / "b.onnx", config=plan)
    assert [(d.scheme, d.rank) for d in again.layers] == [(d.scheme, d.rank) for d in first.layers]
    x = {"x": rng().standard_normal((2, 3, 12, 12)).astype(np.float32)}
    np.testing.assert_array_equal(run(tmp_path / "a.onnx", x)[0], run(tmp_path / "b.onnx", x)[0])
    plan.write_text(plan.read_text().replace("conv2", "conv9"))
    with pytest.raises(UsageError, match=r"conv9.*matches no layer"):
        compress(net, tmp_path / "c.onnx", config=plan)


def test_plans_name_layers_that_names_make_hard(tmp_path: Path) -> None:
    """Quotes, brackets, newlines and globs in names survive the plan's file."""
    path = conv_net(tmp_path / "net.onnx", channels=32)
    proto = onnx.load(path)
    proto.graph.node[0].name, proto.graph.node[2].name = 'a "quoted" [x]*\\1', "line\nbreak\t\x7f#é"
    onnx.save(proto, path)
    first = compress(path, tmp_path / "a.onnx", macs=0.5, align=1, report_dir=tmp_path)
    again = compress(path, tmp_path / "b.onnx", config=tmp_path / "plan.toml")
    assert [(d.name, d.scheme, d.rank) for d in again.layers] == [(d.name, d.scheme, d.rank) for d in first.layers]


def labelled(net: Path, folder: Path, count: int = 400) -> tuple[Path, Path]:
    """The network with its scores centred, so that it takes every class, and samples labelled with what it says."""
    x = rng().standard_normal((count, 12, 12, 3)).astype(np.float32)
    scores = run(net, {"x": x.transpose(0, 3, 1, 2)})[0]
    proto = onnx.load(net)
    for tensor in proto.graph.initializer:
        if tensor.name == "bf":
            bias = onnx.numpy_helper.to_array(tensor) - scores.mean(axis=0)
            tensor.CopyFrom(onnx.numpy_helper.from_array(bias.astype(np.float32), "bf"))
    onnx.save(proto, folder / "centred.onnx")
    np.savez(folder / "d.npz", x=x, y=(scores - scores.mean(axis=0)).argmax(axis=1))
    return folder / "centred.onnx", folder / "d.npz"


def test_max_drop_is_kept_on_what_was_held_out(net: Path, measured: Path, tmp_path: Path) -> None:
    net, data = labelled(net, tmp_path)
    table = on_a_phone(measured, tmp_path, {"conv1": 0.1, "conv2": 0.8, "fc": 0.0})
    faster = []
    for drop in (15, 60):
        report = compress(net, tmp_path / "out.onnx", max_drop=drop, data=data, latency_table=table)
        assert report.latency is not None and report.latency.predicted is not None
        chosen = next(c for c in report.candidates if c.speedup == pytest.approx(report.latency.predicted))
        assert report.limit is not None and report.limit.lost == chosen.lost <= drop
        dropped = [c for c in report.candidates if c.lost > drop]
        assert all(c.speedup >= chosen.speedup for c in dropped)
        faster.append(report.latency.predicted)
    assert faster[0] < faster[1]


def test_max_drop_of_a_model_with_external_data(net: Path, measured: Path, tmp_path: Path) -> None:
    net, data = labelled(net, tmp_path)
    outside = tmp_path / "outside.onnx"
    onnx.save(onnx.load(net), outside, save_as_external_data=True, location="outside.bin", size_threshold=0)
    table = on_a_phone(measured, tmp_path, {"conv1": 0.1, "conv2": 0.8, "fc": 0.0})
    out = tmp_path / "made" / "out.onnx"
    out.parent.mkdir()
    report = compress(outside, out, max_drop=60, data=data, latency_table=table)
    assert report.candidates
    assert {path.name for path in out.parent.iterdir()} <= {"out.onnx", "out.onnx.data"}


def test_what_was_compressed_already_is_profiled_layer_by_layer(net: Path, tmp_path: Path) -> None:
    """Its layers are called as we call factors: each has its own time all the same."""
    compress(net, tmp_path / "small.onnx", macs=0.6, align=1, scheme="spatial")
    found = trp_onnx.profile(tmp_path / "small.onnx", scheme="svd").shares
    assert {"conv2/v", "conv2/h"} <= set(found) and min(found["conv2/v"], found["conv2/h"]) > 0


def test_a_product_that_the_runtime_joins_with_a_transpose_has_its_time(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], name="turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["t", "w"], ["y"], name="product"),
    ]
    tensors = [info("x", [1, 32, 40])], [info("y", [1, 40, 48])]
    save(model(nodes, *tensors, {"w": weights(32, 48)}), tmp_path / "turned.onnx")
    (contender,) = trp_onnx.bench([tmp_path / "turned.onnx"], rounds=2).contenders
    assert contender.layers["product"] > 0


def test_candidates_are_made_as_the_result_is(net: Path, measured: Path, tmp_path: Path) -> None:
    """With --asymmetric what is judged is asymmetric too: other factors, other accuracies."""
    net, data = labelled(net, tmp_path)
    table = on_a_phone(measured, tmp_path, {"conv1": 0.1, "conv2": 0.8, "fc": 0.0})
    found = []
    for asymmetric in (False, True):
        report = compress(
            net, tmp_path / f"{asymmetric}.onnx", max_drop=60, data=data, latency_table=table, asymmetric=asymmetric,
            scheme="channel",
        )  # fmt: skip
        found.append([c.lost for c in report.candidates])
    assert found[0] != found[1]


def test_max_drop_that_nothing_keeps(net: Path, measured: Path, tmp_path: Path) -> None:
    net, data = labelled(net, tmp_path)
    slow = on_a_phone(measured, tmp_path, {"conv1": 0.0, "conv2": 0.04, "fc": 0.0})
    with pytest.raises(TargetError, match=r"--max-drop 0\.5 is out of reach"):
        compress(net, tmp_path / "out.onnx", max_drop=0.5, data=data, latency_table=slow)
    np.savez(tmp_path / "few.npz", x=np.zeros((30, 12, 12, 3), np.float32), y=np.zeros(30, np.int64))
    with pytest.raises(DataError, match="30 samples"):
        compress(net, tmp_path / "out.onnx", max_drop=1, data=tmp_path / "few.npz", latency_table=slow)
    with pytest.raises(UsageError, match="need data"):
        compress(net, tmp_path / "out.onnx", max_drop=1, latency_table=slow)


@pytest.mark.parametrize(
    ("rule", "words"),
    [({"speedup": 1.0}, "above 1"), ({"speedup": float("nan")}, "above 1"), ({"speedup": float("inf")}, "above 1"),
     ({"max_drop": -1}, "from 0"), ({"speedup": 1.5, "macs": 0.5}, "only one"),
     ({"macs": 0.5, "threads": 0}, "threads")],
)  # fmt: skip
def test_rules_that_make_no_sense(net: Path, tmp_path: Path, rule: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        compress(net, tmp_path / "out.onnx", **rule)


@pytest.mark.timing
def test_profile_on_the_command_line(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_on(monkeypatch, tmp_path)
    shown = cli("profile", net, "-o", tmp_path / "t.json")
    assert "conv2" in shown and "spatial" in shown and "ranks in steps of" in shown
    text = cli("compress", net, "-o", tmp_path / "out.onnx", "--speedup", 1.2, "--latency-table", tmp_path / "t.json")
    assert "x as fast" in text and "predicted" in text


def test_what_reading_the_clock_adds_does_not_reach_a_plan(net: Path, tmp_path: Path) -> None:
    """It may be as long as a layer takes."""
    layers, tables = find_layers(open_model(net)), []
    for added in (0.0, 2e-5):
        with pytest.MonkeyPatch.context() as patch:
            runs_on(patch, tmp_path / str(added), clock=added)
            tables.append(trp_onnx.profile(net))
    exact, off = tables
    for layer in layers:
        for scheme, knots in exact.parts[exact.signatures[layer.name]].items():
            for (rank, part), (_, other) in zip(knots, off.parts[off.signatures[layer.name]][scheme], strict=True):
                saved = exact.shares[layer.name] * (1 - part), off.shares[layer.name] * (1 - other)
                assert saved[1] == pytest.approx(saved[0], abs=1e-3), (layer.name, scheme, rank)


def test_a_profile_of_many_nodes_takes_fewer_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a profile notes is bounded, whatever the network has of nodes."""
    noted = []
    machine = runs_on(monkeypatch, tmp_path)

    def profile(self: Clockwork, models: Sequence[int], rounds: int) -> dict[str, Any]:
        noted.append(rounds * sum(len(self._models[i].graph.node) for i in models))
        return Clockwork.profile(self, models, rounds)

    monkeypatch.setattr(machine, "profile", profile)
    names = ["x", *(f"v{i}" for i in range(1500)), "y"]
    nodes = [onnx.helper.make_node("Sin", [a], [b]) for a, b in itertools.pairwise(names[:-1])]
    nodes.append(onnx.helper.make_node("MatMul", [names[-2], "w"], ["y"]))
    io = [info("x", [1, 32])], [info("y", [1, 32])]
    path = save(model(nodes, *io, {"w": weights(32, 32)}), tmp_path / "long.onnx")
    assert len(trp_onnx.profile(path, simplify=False).shares) == 1
    assert sum(noted) < 100_000


def test_a_loop_of_many_runs_is_refused_in_a_sentence(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime's profile ends after a million times of nodes."""
    machine = runs_on(monkeypatch, tmp_path)

    def profile(self: Clockwork, models: Sequence[int], rounds: int) -> dict[str, Any]:
        found = Clockwork.profile(self, models, rounds)
        seconds = [[row * 40_000 for row in rows] for rows in found["seconds"]]
        return found | {"seconds": seconds, "nodes": [nodes * 40_000 for nodes in found["nodes"]]}

    monkeypatch.setattr(Place, "clock", 0.0)
    monkeypatch.setattr(machine, "profile", profile)
    with pytest.raises(ModelError, match="120000 nodes, again and again"):
        trp_onnx.profile(net)


class Once(Worker):
    """A worker that runs everything once, whatever it is asked for."""

    def run(self, rounds: int, repeats: Sequence[int], warm: bool = True) -> dict[str, Any]:
        found = super().run(1, [1] * len(repeats), False)
        return found | {name: found[name] * rounds for name in ("seconds", "disturbed")}

    def profile(self, models: Sequence[int], rounds: int) -> dict[str, Any]:
        found = super().profile(models, 1)
        return found | {
            "plain": found["plain"] * rounds,
            "seconds": [seconds * rounds for seconds in found["seconds"]],
            "lost": found["lost"] * rounds,
        }


@pytest.mark.slow
def test_layers_of_every_kind_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of layer that can be factorised can be timed: products, groups, transposed, 1-d and 3-d."""
    from tests.hard_cases import CASES

    monkeypatch.setattr(transport, "Worker", Once)
    monkeypatch.setenv("TRP_ONNX_CACHE", str(tmp_path / "cache"))
    timed = 0
    for name, build in CASES.items():
        path = tmp_path / f"{name}.onnx"
        onnx.save(build(), path)
        try:
            table = trp_onnx.profile(path)
        except ModelError:
            continue  # it does not run here at all, or not without sizes
        timed += any(part > 0 for by in table.parts.values() for knots in by.values() for _, part in knots)
    assert timed > len(CASES) / 3
