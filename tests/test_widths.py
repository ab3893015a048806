"""Channels removed beside ranks: one plan over spaces and layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import trp_onnx
from tests.easy import compress
from tests.graphs import distance, info, initializers, model, rng, run, save, softmax_net, weights
from trp_onnx import Goal, LayerRule, SearchSpace, SpaceRule
from trp_onnx.errors import UsageError
from trp_onnx.graph.layers import find_layers
from trp_onnx.graph.spaces import find_spaces
from trp_onnx.latency.probe import signature
from trp_onnx.latency.table import Knots, LatencyTable, Target
from trp_onnx.passes.normalise import normalise
from trp_onnx.planning import Evidence, Planner
from trp_onnx.planning.rules import Rule
from trp_onnx.planning.spaces import survey_spaces

HIDDEN = 48


def bottleneck(path: Path, *, copies: int = 1) -> Path:
    """An inverted bottleneck as in MobileNets: expand -> relu -> depthwise -> relu -> project, pooled to ten numbers.

    Of the hidden channels, so many in turn are copies of one, times a number.
    """
    scale = (1 + 0.5 * (np.arange(HIDDEN) % copies)).astype(np.float32)

    def copied(array: np.ndarray) -> np.ndarray:
        return np.repeat(array[::copies], copies, axis=0)[:HIDDEN]

    w = {
        "we": copied(weights(HIDDEN, 8, 1, 1, seed=1)) * scale[:, None, None, None],
        "wd": copied(weights(HIDDEN, 1, 3, 3, seed=2)),
        "wp": weights(8, HIDDEN, 1, 1, seed=3),
        "bp": weights(8, 1, seed=4)[:, 0],
        "wf": weights(10, 8, seed=5),
    }
    nodes = [
        helper.make_node("Conv", ["x", "we"], ["e"], name="expand"),
        helper.make_node("Relu", ["e"], ["er"]),
        helper.make_node("Conv", ["er", "wd"], ["d"], name="depthwise", pads=[1, 1, 1, 1], group=HIDDEN),
        helper.make_node("Relu", ["d"], ["dr"]),
        helper.make_node("Conv", ["dr", "wp", "bp"], ["p"], name="project"),
        helper.make_node("Relu", ["p"], ["pr"]),
        helper.make_node("GlobalAveragePool", ["pr"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "wf"], ["y"], name="fc", transB=1),
    ]
    return save(model(nodes, [info("x", ["N", 8, 10, 10])], [info("y", ["N", 10])], w), path)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    np.savez(tmp_path / "samples.npz", x=rng(7).standard_normal((48, 8, 10, 10)).astype(np.float32))
    return tmp_path / "samples.npz"


def feeds() -> dict[str, np.ndarray]:
    return {"x": rng(8).standard_normal((4, 8, 10, 10)).astype(np.float32)}


def test_channels_that_others_can_stand_for_go_at_no_loss(tmp_path: Path, samples: Path) -> None:
    net, out = bottleneck(tmp_path / "net.onnx", copies=2), tmp_path / "out.onnx"
    report = compress(net, out, macs=0.55, align=8, data=samples)
    (space,) = [space for space in report.spaces if space.name == "expand"]
    assert (space.units, space.kept) == (HIDDEN, HIDDEN // 2) and space.relative_error < 0.02
    assert distance(run(net, feeds())[0], run(out, feeds())[0]) < 1e-3
    stored = initializers(out)
    shapes = sorted(array.shape for array in stored.values() if array.ndim == 4)
    assert shapes == sorted([(24, 8, 1, 1), (24, 1, 3, 3), (8, 24, 1, 1)])
    assert [node.op_type for node in onnx.load(out).graph.node].count("Conv") == 3
    assert compress(net, out, macs=0.9, align=4, data=samples, widths=False).outputs[0].relative_error > 0.01


def test_the_macs_of_cut_layers_are_those_of_the_file(tmp_path: Path, samples: Path) -> None:
    net, out = bottleneck(tmp_path / "net.onnx"), tmp_path / "out.onnx"
    report = compress(net, out, macs=0.6, align=8, data=samples)
    assert any(space.kept < space.units for space in report.spaces)
    written = trp_onnx.inspect(out)
    assert report.macs.after == written.macs <= 0.6 * report.macs.before
    left = {view.name: view.macs for view in written.layers}
    assert {layer.name: layer.macs_after for layer in report.layers if not layer.scheme} == {
        layer.name: left[layer.name] for layer in report.layers if not layer.scheme
    }
    entries = json.loads(report.to_json())["spaces"]
    assert [(entry["name"], entry["kept"]) for entry in entries] == [(s.name, s.kept) for s in report.spaces]


def test_a_plan_with_spaces_can_be_edited_and_given_back(tmp_path: Path, samples: Path) -> None:
    net = bottleneck(tmp_path / "net.onnx")
    first = trp_onnx.compress(
        net, tmp_path / "a.onnx", Goal(macs=0.6), data=samples, search=SearchSpace(align=8)
    )  # fmt: skip
    again = trp_onnx.compress(net, tmp_path / "b.onnx", first.plan, data=samples, search=SearchSpace(align=8))
    assert again.plan.kept == first.plan.kept != {}
    assert first.report.macs == again.report.macs
    text = first.plan.to_toml()
    (tmp_path / "plan.toml").write_text(text.replace(f"units = {first.plan.spaces[0].kept}", "units = 40"))
    edited = compress(net, tmp_path / "c.onnx", config=tmp_path / "plan.toml", data=samples)
    assert edited.spaces[0].kept == 40


def test_a_map_cuts_spaces_without_data(tmp_path: Path) -> None:
    net, out = bottleneck(tmp_path / "net.onnx", copies=2), tmp_path / "out.onnx"
    (tmp_path / "map.toml").write_text('[[space]]\nname = "expand"\nratio = 0.5\n')
    report = compress(net, out, config=tmp_path / "map.toml")
    left = {space.name: (space.kept, space.units) for space in report.spaces}
    assert left == {"expand": (24, HIDDEN), "project": (8, 8), "fc": (10, 10)}
    assert any("output 'y'" in space.reason for space in report.spaces if space.name == "fc")
    assert run(out, feeds())[0].shape == (4, 10)


def test_a_space_that_the_map_keeps_is_left(tmp_path: Path, samples: Path) -> None:
    (tmp_path / "map.toml").write_text('[[space]]\nname = "*"\nkeep = true\n')
    report = compress(
        bottleneck(tmp_path / "net.onnx"),
        tmp_path / "out.onnx",
        macs=0.9,
        data=samples,
        align=4,
        config=tmp_path / "map.toml",
    )
    assert all(space.kept == space.units for space in report.spaces)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ('name = "expand"\nunits = 99', "the space 'expand' has 48 units: it cannot keep 99"),
        ('name = "none"\nunits = 8', "matches no space"),
        ('name = "fc"\nunits = 4', "the space 'fc' cannot be cut"),
        ('name = "expand"', "either units, ratio or keep"),
        ('name = "expand"\nunits = 8\nkeep = true', "either units, ratio or keep"),
        ('name = "expand"\nrank = 8', "unknown key 'rank'"),
        ('name = "expand"\nunits = 0', "units"),
    ],
)
def test_a_wrong_entry_gets_a_sentence(tmp_path: Path, entry: str, sentence: str) -> None:
    (tmp_path / "map.toml").write_text(f"[[space]]\n{entry}\n")
    with pytest.raises(UsageError, match=sentence):
        compress(bottleneck(tmp_path / "net.onnx"), tmp_path / "out.onnx", config=tmp_path / "map.toml")
    assert not (tmp_path / "out.onnx").exists()


def test_layers_in_turn_make_up_for_what_was_cut(tmp_path: Path, samples: Path) -> None:
    net = bottleneck(tmp_path / "net.onnx")
    errors = {}
    for asymmetric in (False, True):
        out = tmp_path / f"{asymmetric}.onnx"
        report = compress(net, out, macs=0.5, align=8, data=samples, asymmetric=asymmetric)
        assert any(space.kept < space.units for space in report.spaces)
        errors[asymmetric] = distance(run(net, feeds())[0], run(out, feeds())[0])
    assert errors[True] < errors[False]


def upsampling(path: Path, group: int, outputs: int) -> Path:
    """1x1 -> ConvTranspose of so many groups -> 1x1."""
    w = {
        "wa": weights(8, 8, 1, 1, seed=1),
        "wt": weights(8, outputs // group, 2, 2, seed=2),
        "wb": weights(4, outputs, 1, 1, seed=3),
    }
    nodes = [
        helper.make_node("Conv", ["x", "wa"], ["a"], name="a"),
        helper.make_node("Relu", ["a"], ["ar"]),
        helper.make_node("ConvTranspose", ["ar", "wt"], ["t"], name="t", group=group, strides=[2, 2]),
        helper.make_node("Relu", ["t"], ["tr"]),
        helper.make_node("Conv", ["tr", "wb"], ["y"], name="b"),
    ]
    return save(model(nodes, [info("x", ["N", 8, 8, 8])], [info("y", ["N", 4, 16, 16])], w), path)


def experts(path: Path) -> Path:
    """Two batched products; all matrices of the first share their bias, and so their units."""
    w = {"wa": weights(3, 8, 16, seed=1), "bias": weights(16, 1, seed=3)[:, 0], "wb": weights(3, 16, 8, seed=2)}
    nodes = [
        helper.make_node("MatMul", ["x", "wa"], ["a"], name="a"),
        helper.make_node("Add", ["a", "bias"], ["ab"]),
        helper.make_node("Relu", ["ab"], ["ar"]),
        helper.make_node("MatMul", ["ar", "wb"], ["y"], name="b"),
    ]
    return save(model(nodes, [info("x", ["N", 3, 5, 8])], [info("y", ["N", 3, 5, 8])], w), path)


@pytest.mark.parametrize(
    ("net", "shape", "space"),
    [
        (lambda path: upsampling(path, 2, 16), (8, 8, 8), "t"),
        (lambda path: upsampling(path, 8, 16), (8, 8, 8), "a"),
        (experts, (3, 5, 8), "a"),
    ],
    ids=["one set of outputs for all groups", "two outputs of each channel", "one bias for all matrices"],
)
def test_the_macs_of_grouped_layers_are_those_of_the_file(
    tmp_path: Path, net: Callable[[Path], Path], shape: tuple[int, ...], space: str
) -> None:
    path, out = net(tmp_path / "net.onnx"), tmp_path / "out.onnx"
    np.savez(tmp_path / "samples.npz", x=rng(7).standard_normal((32, *shape)).astype(np.float32))
    report = compress(path, out, config=(SpaceRule(space, ratio=0.5),), data=tmp_path / "samples.npz")
    assert report.macs.after == trp_onnx.inspect(out).macs < report.macs.before


def test_spaces_of_the_map_are_cut_whatever_ranks_alone_would_do(tmp_path: Path, samples: Path) -> None:
    rules = [trp_onnx.SpaceRule("expand", units=8), trp_onnx.LayerRule("project", rank=(4,))]
    report = compress(bottleneck(tmp_path / "net.onnx"), tmp_path / "out.onnx", config=rules, data=samples)
    assert [(space.name, space.kept) for space in report.spaces if space.kept < space.units] == [("expand", 8)]
    assert {layer.name for layer in report.layers if layer.scheme} == {"project"}


def test_training_with_spaces_is_refused_before_any_work(tmp_path: Path, samples: Path) -> None:
    rules = [trp_onnx.SpaceRule("expand", units=8)]
    with pytest.raises(UsageError, match="training keeps all channels"):
        compress(
            bottleneck(tmp_path / "net.onnx"), tmp_path / "out.onnx", macs=0.5, config=rules, data=samples,
            train=trp_onnx.TrainingOptions(epochs=1),
        )  # fmt: skip


def pair(path: Path) -> Path:
    """Two 3x3 convolutions of 24 channels, pooled to ten numbers."""
    return softmax_net(path, channels=24, layers=1, size=8)


def test_an_energy_is_one_of_what_the_cut_spaces_leave(tmp_path: Path) -> None:
    net, out = pair(tmp_path / "net.onnx"), tmp_path / "out.onnx"
    report = compress(net, out, energy=0.3, config=(SpaceRule("conv0", units=3),))
    assert (report.spaces[0].kept, report.macs.after) == (3, trp_onnx.inspect(out).macs)
    after = sum(layer.parameters_after or 0 for layer in report.layers)
    assert after == sum(array.size for array in initializers(out).values() if array.ndim > 1)


def test_a_rank_above_what_the_cut_spaces_leave_gets_a_sentence(tmp_path: Path) -> None:
    rules = (SpaceRule("conv0", units=3), LayerRule("conv1", rank=(20,), scheme="spatial"))
    with pytest.raises(UsageError, match=r"'conv1': rank \[20\] exceeds the full rank \[9\] that its cut spaces leave"):
        compress(pair(tmp_path / "net.onnx"), tmp_path / "out.onnx", config=rules)


def test_spaces_keep_what_a_rank_of_the_map_needs(tmp_path: Path) -> None:
    net, out = pair(tmp_path / "net.onnx"), tmp_path / "out.onnx"
    np.savez(tmp_path / "samples.npz", x=rng(7).standard_normal((48, 3, 8, 8)).astype(np.float32))
    rules = (LayerRule("conv1", rank=(40,), scheme="spatial"),)
    report = compress(net, out, macs=0.7, data=tmp_path / "samples.npz", align=1, config=rules)
    kept = {space.name: space.kept for space in report.spaces}
    assert 3 * min(kept["conv0"], kept["conv1"]) >= 40
    (layer,) = [layer for layer in report.layers if layer.name == "conv1"]
    assert layer.rank == (40,)
    assert layer.parameters_after == 40 * 3 * (kept["conv0"] + kept["conv1"])
    assert report.macs.after == trp_onnx.inspect(out).macs


def planner_of(
    path: Path, rules: tuple[Rule, ...] = (), others: float = 0.0, parts: dict[str, dict[str, Knots]] | None = None
) -> Planner:
    """A planner of a network by its weights and a table where time is MACs, but for that part of Adds, and `parts`."""
    network = normalise(ir.load(path))
    layers = find_layers(network)
    spaces = find_spaces(network, layers)
    adds = [node for node in network.graph if node.op_type == "Add"]
    total = sum(layer.macs or 0 for layer in layers)
    table = LatencyTable(
        Target("a machine", "1.0", "CPUExecutionProvider", 1), 1, 1.0,
        {layer.name: signature(layer) for layer in layers},
        {layer.name: (1 - others) * (layer.macs or 0) / total for layer in layers}, parts or {},
        {node.name or node.outputs[0].name or "": others / len(adds) for node in adds},
    )  # fmt: skip
    return Planner(
        layers, rules=rules, evidence=Evidence(table=table), spaces=survey_spaces(spaces, {}, 4, rules),
        looked_at=spaces, align=4,
    )  # fmt: skip


def test_the_speed_up_of_a_plan_counts_what_other_nodes_save(tmp_path: Path) -> None:
    rules = (SpaceRule("a", ratio=0.5),)
    plan = planner_of(experts(tmp_path / "net.onnx"), rules, others=0.3).plan(Goal(rules=rules))
    assert plan.speedup == pytest.approx(2)  # half of the layers' time goes, and half of the Add's


def test_a_plan_by_a_refined_table_is_that_of_a_planner_which_had_it_from_the_start(tmp_path: Path) -> None:
    """What was looked up of layers of which both tables say the same goes along; nothing of the others does."""
    net = softmax_net(tmp_path / "net.onnx", layers=4)
    planner = planner_of(net)
    before = planner.plan(Goal(speedup=1.5))
    table = planner.evidence.table
    assert table is not None
    parts = {table.signatures["conv1"]: {"spatial": [((4,), 0.05), ((16,), 0.1)], "width": [((8, 8), 0.9)]}}
    after = planner.retimed(replace(table, parts=parts)).plan(Goal(speedup=1.5))
    assert after == planner_of(net, parts=parts).plan(Goal(speedup=1.5)) != before


def test_a_plan_that_cuts_no_space_of_its_own_cuts_those_of_the_map(tmp_path: Path) -> None:
    planner = planner_of(softmax_net(tmp_path / "net.onnx", layers=3), (SpaceRule("conv1", units=8),))
    whole = planner.whole().plan(Goal(macs=0.6))
    assert {name: len(units) for name, units in whole.kept.items()} == {"conv1": 8}
    assert planner.plan(Goal(macs=0.999)).kept.keys() >= {"conv1"}


def test_every_space_that_was_looked_at_gets_a_reason(tmp_path: Path) -> None:
    net = softmax_net(tmp_path / "net.onnx", layers=3)
    rules = (SpaceRule("conv1", keep=True), SpaceRule("conv2", units=8))
    reasons = {space.name: space.reason for space in planner_of(net, rules).plan(Goal(macs=0.99)).spaces}
    assert reasons["conv1"] == "the configuration keeps it"
    assert "the output 'probabilities'" in reasons["fc"] or "Softmax" in reasons["fc"]
    assert reasons["conv2"].startswith("the units that go take")
    assert reasons.keys() == {"conv0", "conv1", "conv2", "conv3", "fc"}
