"""Layers that lose columns, and what makes up for that."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper

from tests.graphs import drawn, info, model, rng, save, weights
from trp_onnx.calibration.moments import collect_moments
from trp_onnx.calibration.narrow import refit_in_turn, refit_readers
from trp_onnx.graph.layers import find_layers
from trp_onnx.graph.model import open_model, to_proto
from trp_onnx.graph.spaces import find_spaces
from trp_onnx.passes import CutChannelsPass

WIDTH = 24


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """1x1 convolutions, each behind an activation, and a classifier of pooled features."""
    w = {f"w{i}": weights(WIDTH, 6 if i == 0 else WIDTH, 1, 1, seed=i + 1) * 1.4 for i in range(4)}
    w |= {f"b{i}": weights(WIDTH, 1, seed=i + 11)[:, 0] for i in range(4)}
    w |= {"wf": weights(5, WIDTH, seed=21), "bf": weights(5, 1, seed=22)[:, 0]}
    nodes, flow = [], "x"
    for i in range(4):
        nodes.append(helper.make_node("Conv", [flow, f"w{i}", f"b{i}"], [f"c{i}"], name=f"conv{i}"))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        flow = f"r{i}"
    nodes += [
        helper.make_node("GlobalAveragePool", [flow], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "wf", "bf"], ["y"], name="fc", transB=1),
    ]
    return save(model(nodes, [info("x", ["N", 6, 6, 6])], [info("y", ["N", 5])], w), tmp_path / "net.onnx")


def inputs(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    mixed = rng(99).standard_normal((6, 6)) / 2
    return {"x": np.einsum("ij,njhw->nihw", mixed, rng(seed).standard_normal((count, 6, 6, 6))).astype(np.float32)}


def outputs(opened: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return ort.InferenceSession(to_proto(opened).SerializeToString()).run(None, feeds)[0]


def going(names: list[str], units: int) -> dict[str, np.ndarray]:
    return {name: np.arange(WIDTH)[None] >= WIDTH - units for name in names}


Gone = dict[str, np.ndarray]


def after(net: Path, gone: Gone, *, count: int = 128, in_turn: bool) -> tuple[float, list[str], ir.Model]:
    """Relative squared error of the outputs on other samples, what was improved, and the model."""
    opened, samples, improved = open_model(net), drawn(**inputs(count)), list[str]()
    layers = find_layers(opened)
    moments = collect_moments(opened, layers, samples)
    if in_turn:
        improved = refit_in_turn(opened, layers, gone, samples, moments)
    else:
        refit_readers(opened, layers, gone, moments)
    return error(net, opened), improved, opened


def error(net: Path, opened: ir.Model) -> float:
    expected, found = (outputs(each, inputs(256, 5)) for each in (open_model(net), opened))
    return float(np.square(found - expected).sum() / np.square(expected - expected.mean(axis=0)).sum())


def test_nothing_gone_changes_nothing(net: Path) -> None:
    for in_turn in (False, True):
        lost, improved, opened = after(net, going(["conv1", "conv3", "fc"], 0), in_turn=in_turn)
        assert lost == 0 and not improved
        assert [*opened.graph.initializers] == [*open_model(net).graph.initializers]


def test_columns_that_go_are_zero_and_shapes_stay(net: Path) -> None:
    gone = going(["conv1", "conv2"], 9)
    for in_turn in (False, True):
        _, _, opened = after(net, gone, in_turn=in_turn)
        for layer in find_layers(opened):
            if layer.name in gone:
                zero = (layer.weight() == 0).all(axis=1).reshape(-1)
                assert np.array_equal(zero, gone[layer.name][0])


def test_layers_make_up_for_what_was_cut_before_them(net: Path) -> None:
    gone = going(["conv1", "conv2", "conv3"], 8)
    alone, _, _ = after(net, gone, in_turn=False)
    in_turn, improved, _ = after(net, gone, in_turn=True)
    assert in_turn < 0.9 * alone
    assert set(improved) == {"conv2", "conv3"}  # nothing was cut before conv1


def test_a_refit_beats_cutting_alone(net: Path) -> None:
    gone = going(["conv2"], 8)
    opened = open_model(net)
    refit_readers(opened, find_layers(opened), gone, {})
    assert after(net, gone, in_turn=False)[0] < 0.5 * error(net, opened)


def test_a_classifier_of_few_samples_is_not_overfitted(net: Path) -> None:
    gone = going(["conv1", "conv2"], 8) | going(["fc"], 2)
    few, _, cut = after(net, gone, count=24, in_turn=True)
    alone, _, plain = after(net, gone, count=24, in_turn=False)
    assert few < 1.1 * alone
    weights_of_fc = [next(layer.weight() for layer in find_layers(each) if layer.name == "fc") for each in (cut, plain)]
    assert np.array_equal(*weights_of_fc)


def test_layers_that_share_a_weight_go_on_sharing_it(tmp_path: Path) -> None:
    w = {"a": weights(8, 12, seed=1), "b": weights(12, 12, seed=2)}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["s"], name="one"),
        helper.make_node("Relu", ["s"], ["t"]),
        helper.make_node("MatMul", ["t", "b"], ["y"], name="two"),
    ]
    path = save(model(nodes, [info("x", ["N", 8])], [info("y", ["N", 12])], w), tmp_path / "net.onnx")
    opened, samples = open_model(path), drawn(x=rng().standard_normal((200, 8)).astype(np.float32))
    layers = find_layers(opened)
    gone = {name: np.arange(12)[None] < 3 for name in ("one", "two")}
    refit_in_turn(opened, layers, gone, samples, collect_moments(opened, layers, samples))
    one, two = (layer for layer in find_layers(opened) if layer.name != "first")
    assert one.key == two.key and (one.weight()[0, :, :3] == 0).all()


def test_cutting_what_was_zeroed_changes_nothing_more(net: Path) -> None:
    opened, samples = open_model(net), drawn(**inputs(128))
    layers = find_layers(opened)
    kept = {space.name: range(5, space.size) for space in find_spaces(opened, layers) if space.closed is None}
    assert len(kept) == 4
    gone = {
        consumer.layer.name: np.asarray(consumer.unit).reshape(1, -1) < 5
        for space in find_spaces(opened, layers)
        if space.name in kept
        for consumer in space.consumers
    }
    refit_in_turn(opened, layers, gone, samples, collect_moments(opened, layers, samples))
    whole = outputs(opened, inputs(16, 5))
    CutChannelsPass(kept)(opened)
    assert outputs(opened, inputs(16, 5)) == pytest.approx(whole, abs=1e-5)
    assert {layer.shape[2] for layer in find_layers(opened)[1:] if layer.shape} == {WIDTH - 5}
