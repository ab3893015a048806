"""Planning by what the outputs feel."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from tests.easy import compress
from tests.graphs import conv_net, drawn, info, model, rng, run, save, weights
from trp_onnx.errors import UsageError
from trp_onnx.evaluation.divergence import divergence
from trp_onnx.graph.layers import Layer, find_layers
from trp_onnx.graph.model import open_model, to_proto
from trp_onnx.passes import ReplaceWeightsPass
from trp_onnx.planning import Cuts, LayerRule, Level, Move, left_by_budgets, measure_space_damage
from trp_onnx.planning.curve import DamageCurve


@pytest.fixture
def loud_and_quiet(tmp_path: Path) -> Path:
    """y = loud(x) + quiet(x) / 1000: the second layer hardly matters."""
    w = {"a": weights(32, 32, seed=1), "b": weights(32, 32, seed=2), "k": np.float32(1e-3)}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"], name="loud"),
        helper.make_node("MatMul", ["x", "b"], ["q"], name="quiet"),
        helper.make_node("Mul", ["q", "k"], ["r"]),
        helper.make_node("Add", ["p", "r"], ["y"]),
    ]
    return save(model(nodes, [info("x", ["N", 4, 32])], [info("y", ["N", 4, 32])], w), tmp_path / "net.onnx")


def test_ranks_go_where_the_outputs_feel_them(loud_and_quiet: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=rng().standard_normal((64, 4, 32)).astype(np.float32))
    ranks, errors = {}, {}
    for how in ("weights", "outputs"):
        out = tmp_path / f"{how}.onnx"
        report = compress(loud_and_quiet, out, macs=0.6, align=1, plan_by=how, data=tmp_path / "x.npz", inputs=None)
        ranks[how] = {layer.name: layer.rank for layer in report.layers}
        x = {"x": rng(1).standard_normal((64, 4, 32)).astype(np.float32)}
        errors[how] = np.linalg.norm(run(out, x)[0] - run(loud_and_quiet, x)[0])
    assert ranks["outputs"]["loud"] is None and ranks["weights"]["loud"] is not None
    assert errors["outputs"] < 0.2 * errors["weights"]


def test_data_that_plans_does_not_measure(tmp_path: Path) -> None:
    net, data = conv_net(tmp_path / "net.onnx"), tmp_path / "x.npz"
    np.savez(data, x=rng().standard_normal((40, 12, 12, 3)).astype(np.float32), y=np.arange(40) % 10)
    planned = compress(net, tmp_path / "a.onnx", macs=0.6, align=1, plan_by="outputs", data=data)
    assert planned.score is not None and planned.score.metric.name == "agreement"
    both = compress(net, tmp_path / "a.onnx", macs=0.6, align=1, plan_by="outputs", data=data, test=data)
    assert both.score is not None and both.score.metric.name == "top-1"
    assert any("damage" in decision.reason for decision in (*planned.layers, *planned.spaces))


def test_planning_by_outputs_needs_data(tmp_path: Path) -> None:
    net = conv_net(tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="need data"):
        compress(net, tmp_path / "a.onnx", macs=0.6, plan_by="outputs")
    with pytest.raises(UsageError, match="auto, weights or outputs"):
        compress(net, tmp_path / "a.onnx", macs=0.6, plan_by="feeling")


def test_curves_interpolate_and_go_on_in_proportion() -> None:
    curve = DamageCurve(np.array([0.0, 0.1, 0.2]), np.array([0.0, 1.0, 4.0]))
    assert [curve(e) for e in (0.0, 0.05, 0.2, 0.4)] == [0.0, 0.5, 4.0, 8.0]


@pytest.fixture
def large_and_tiny(tmp_path: Path) -> Path:
    """Of the MACs of a large product and a tiny one, the second has one in a thousand."""
    w = {"a": weights(128, 128, seed=1), "b": weights(128, 4, seed=2), "c": weights(4, 4, seed=3)}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"], name="large"),
        helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("MatMul", ["q", "b"], ["r"], name="narrow"),
        helper.make_node("MatMul", ["r", "c"], ["y"], name="tiny"),
    ]
    return save(model(nodes, [info("x", ["N", 40, 128])], [info("y", ["N", 40, 4])], w), tmp_path / "net.onnx")


def test_layers_that_no_budget_changes_are_not_measured(large_and_tiny: Path, tmp_path: Path) -> None:
    found = find_layers(open_model(large_and_tiny))
    assert left_by_budgets(found) == {"tiny"}
    assert left_by_budgets(found, rules=[LayerRule("large", keep=True)]) == {"large", "tiny"}
    assert left_by_budgets(found, rules=[LayerRule("tiny", rank=(1,))]) == set()
    np.savez(tmp_path / "x.npz", x=rng().standard_normal((64, 40, 128)).astype(np.float32))
    options = {"align": 1, "data": tmp_path / "x.npz", "widths": False}
    planned = compress(large_and_tiny, tmp_path / "a.onnx", macs=0.6, **options)
    (tiny,) = [layer for layer in planned.layers if layer.name == "tiny"]
    assert tiny.scheme is None and "next to nothing of the network" in tiny.reason
    rules = [LayerRule("tiny", rank=(2,))]
    alone = compress(large_and_tiny, tmp_path / "a.onnx", config=rules, **options)
    within = compress(large_and_tiny, tmp_path / "a.onnx", config=rules, macs=0.6, **options)
    errors = [layer.relative_error for report in (alone, within) for layer in report.layers if layer.name == "tiny"]
    assert errors[0] == errors[1] > 0  # of its outputs, in both


@pytest.fixture
def hidden(tmp_path: Path) -> Path:
    """x -> 24 hidden units -> y, and a second reader of the hidden units that hardly matters."""
    w = {"a": weights(8, 24, seed=1), "b": weights(24, 6, seed=2), "c": weights(24, 6, seed=3), "k": np.float32(1e-3)}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"], name="producer"),
        helper.make_node("Relu", ["p"], ["h"]),
        helper.make_node("MatMul", ["h", "b"], ["q"], name="loud"),
        helper.make_node("MatMul", ["h", "c"], ["r"], name="quiet"),
        helper.make_node("Mul", ["r", "k"], ["s"]),
        helper.make_node("Add", ["q", "s"], ["y"]),
    ]
    return save(model(nodes, [info("x", ["N", 5, 8])], [info("y", ["N", 5, 6])], w), tmp_path / "net.onnx")


def cut(layer: Layer, units: int, shift: np.ndarray | None = None) -> Move:
    """Its first columns become zero."""
    step = -layer.weight()
    step[:, :, units:] = 0
    return Move((layer,), step, shift)


def cuts(*levels: Level) -> Cuts:
    layers = dict.fromkeys(layer for level in levels for move in level.moves for layer in move.layers)
    return Cuts(tuple(layers), "", lambda: levels)


def test_a_space_is_cut_in_all_its_readers_at_every_width(hidden: Path) -> None:
    opened = open_model(hidden)
    loud, quiet = (layer for layer in find_layers(opened) if layer.name != "producer")
    samples = drawn(x=rng().standard_normal((16, 5, 8)).astype(np.float32))
    levels = [Level(0.1, (cut(loud, 2), cut(quiet, 2))), Level(0.5, (cut(loud, 12), cut(quiet, 12)))]
    curve = measure_space_damage(opened, {"producer": cuts(*levels)}, samples)["producer"]
    before = run(hidden, samples.runs[0].feeds)[0]
    for level, damage in zip(levels, curve.damages[1:], strict=True):
        changed = {move.layers[0].name: (move.layers[0].weight() + move.step, None) for move in level.moves}
        after = open_model(hidden)
        ReplaceWeightsPass(changed)(after)
        session = ort.InferenceSession(to_proto(after).SerializeToString())
        expected = divergence({"y": before}, {"y": session.run(None, samples.runs[0].feeds)[0]})
        assert damage == pytest.approx(expected, rel=0.02)


def test_spaces_are_measured_in_any_order_and_alone(hidden: Path) -> None:
    opened = open_model(hidden)
    producer, loud, quiet = find_layers(opened)
    samples = drawn(x=rng().standard_normal((16, 5, 8)).astype(np.float32))
    levels = {name: cuts(Level(0.3, (cut(layer, 4),))) for name, layer in (("q", quiet), ("l", loud), ("p", producer))}
    together = measure_space_damage(opened, levels, samples)
    assert together["q"](0.3) < 1e-3 * together["l"](0.3)
    for name in levels:
        assert measure_space_damage(opened, {name: levels[name]}, samples)[name](0.3) == together[name](0.3)
    assert measure_space_damage(opened, {}, samples) == {}


def test_biases_take_up_their_part_of_a_move(tmp_path: Path) -> None:
    net = conv_net(tmp_path / "net.onnx")
    opened = open_model(net)
    fc = find_layers(opened)[-1]
    samples = drawn(x=rng().standard_normal((16, 3, 12, 12)).astype(np.float32))
    still = Move((fc,), np.zeros(fc.shape or ()), np.zeros(10))
    lifted = Move((fc,), np.zeros(fc.shape or ()), np.arange(10.0))
    curves = measure_space_damage(opened, {"a": cuts(Level(0.1, (still,))), "b": cuts(Level(0.1, (lifted,)))}, samples)
    assert curves["a"](0.1) == pytest.approx(0, abs=1e-9) and curves["b"](0.1) > 0.1
