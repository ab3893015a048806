"""Times of layers with fewer channels, on a machine of clockwork, whose times are known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import pytest
from onnx import helper

import trp_onnx
from tests.clockwork import runs_on
from tests.graphs import info, model, save, weights
from trp_onnx.errors import DataError
from trp_onnx.graph.layers import Layer
from trp_onnx.latency import LatencyTable, read_table, save_table
from trp_onnx.latency.profiling import measure_points, measure_table
from trp_onnx.latency.trial import Trials
from trp_onnx.passes.network import Network


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """An inverted residual block whose activation no kernel takes along, and a classifier."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="expand"),
        helper.make_node("Sin", ["a"], ["s"], name="bend"),
        helper.make_node("Conv", ["s", "w2"], ["b"], name="depthwise", group=64, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b", "w3"], ["c"], name="project"),
        helper.make_node("Conv", ["c", "w4"], ["d"], name="grouped", group=2),
        helper.make_node("GlobalAveragePool", ["d"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w5"], ["y"], name="fc"),
    ]
    held = {
        "w1": weights(64, 16, 1, 1), "w2": weights(64, 1, 3, 3), "w3": weights(32, 64, 1, 1),
        "w4": weights(32, 16, 3, 3), "w5": weights(32, 640),
    }  # fmt: skip
    net = model(nodes, [info("x", [1, 16, 10, 10])], [info("y", [1, 640])], held)
    return Network.open(save(net, tmp_path_factory.mktemp("net") / "net.onnx"), simplify=False)


@pytest.fixture(scope="module")
def table(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LatencyTable]:
    with pytest.MonkeyPatch.context() as patch:
        runs_on(patch, tmp_path_factory.mktemp("clockwork"))
        yield measure_table(
            network.normal, network.layers, network.feeds(), scheme="svd", widths=network.layers
        )  # fmt: skip


def layer(network: Network, name: str) -> Layer:
    return next(layer for layer in network.layers if layer.name == name)


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "left"),
    [("expand", 16, 32, 1 / 2), ("expand", 8, 64, 1 / 2), ("expand", 8, 16, 1 / 8), ("depthwise", 16, 16, 1 / 4),
     ("depthwise", 56, 56, 7 / 8), ("project", 40, 16, 5 / 16), ("grouped", 16, 16, 1 / 4), ("fc", 16, 640, 1 / 2)],
)  # fmt: skip
def test_a_layer_takes_what_is_left_of_it(
    network: Network, table: LatencyTable, name: str, inputs: int, outputs: int, left: float
) -> None:
    found = table.width_part(layer(network, name), inputs, outputs)
    assert found == pytest.approx(left, abs=0.03)


def test_the_whole_layer_takes_all_its_time(network: Network, table: LatencyTable) -> None:
    for one in network.layers:
        geometry = one.geometry
        assert geometry is not None
        whole = geometry.groups * geometry.in_channels, geometry.groups * geometry.out_channels
        assert table.width_part(one, *whole) == 1.0, one.name


def test_channels_within_a_step_cost_the_same(network: Network, table: LatencyTable) -> None:
    for name in ("expand", "depthwise"):
        parts = [table.width_part(layer(network, name), 64, 64 - table.step + more) for more in (-1, 0, 1)]
        assert parts[0] == parts[1] < parts[2] == 1.0


def test_no_more_channels_are_faster(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though a layer of three quarters of its inputs and outputs is timed at a hundredth of what it takes."""
    machine = runs_on(monkeypatch, tmp_path)
    honest = machine.profile

    def lies(self: object, models: list[int], rounds: int) -> dict[str, object]:
        found = honest(self, models, rounds)
        for i in models[1:] if len(models) > 2 else ():
            sizes = {tensor.name: list(tensor.dims) for tensor in self._models[i].graph.initializer}
            if sizes.get("w") == [48, 12, 1, 1]:
                found["seconds"][i] = [[s / 100 for s in nodes] for nodes in found["seconds"][i]]
        return found

    monkeypatch.setattr(machine, "profile", lies)
    found = measure_table(network.normal, network.layers, network.feeds(), scheme="svd", widths=network.layers)
    expand = layer(network, "expand")
    widths = [(i, o) for i in (4, 8, 12, 16) for o in (16, 32, 48, 64)]
    for few in widths:
        for more in widths:
            if few[0] <= more[0] and few[1] <= more[1]:
                assert found.width_part(expand, *few) <= found.width_part(expand, *more) + 1e-9, (few, more)
    assert found.width_part(expand, 12, 48) > 0.1


def test_a_width_that_is_timed_itself_has_its_time(
    network: Network, table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_on(monkeypatch, tmp_path)
    widths = {"expand": (16, 40), "depthwise": (40, 40), "project": (40, 32)}
    found = measure_points(table, network.layers, {}, widths=widths)
    assert found.width_part(layer(network, "depthwise"), 40, 40) == pytest.approx(5 / 8, abs=0.01)
    assert measure_points(found, network.layers, {}, widths=widths) is found


def test_a_plan_of_widths_is_timed_against_the_original(
    network: Network, table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with its shapes, whatever units stay."""
    machine = runs_on(monkeypatch, tmp_path)
    trials = Trials(network.source, network.normal, network.feeds(), tmp_path, network.input_shapes)
    kept = {"expand": range(3, 43), "project": [*range(2, 14), *range(18, 30)]}
    widths = {"expand": (16, 40), "depthwise": (40, 40), "project": (40, 24), "grouped": (24, 32)}
    found = trials.refined(table, network.layers, {}, widths)
    parts = {name: found.width_part(layer(network, name), *left) for name, left in widths.items()}
    saved = sum(found.share(layer(network, name)) * (1 - part) for name, part in parts.items())
    assert parts["project"] == pytest.approx(40 * 24 / 64 / 32, abs=0.01)
    trial = trials.time(found, 1 / (1 - saved), {}, kept)
    assert trial.measured.median == pytest.approx(trial.predicted, rel=0.02)
    cut = {tensor.name: list(tensor.dims) for tensor in machine.prepared[-1][1].graph.initializer}
    assert cut["w3"] == [24, 40, 1, 1] and cut["w4"] == [32, 12, 3, 3]
    assert trials.time(found, 1.0, {"grouped": ("channel", (4,))}, kept).measured.median > trial.measured.median
    assert not list(tmp_path.glob("*.onnx"))


def test_the_layers_at_open_spaces_are_profiled(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_on(monkeypatch, tmp_path)
    found = trp_onnx.profile(network.source, scheme="svd", simplify=False)
    timed = {name for name, key in found.signatures.items() if {"width", "depthwise"} & found.parts.get(key, {}).keys()}
    assert timed == {"expand", "depthwise", "project", "grouped", "fc"}


def test_nodes_that_are_no_layers_have_their_share(network: Network, table: LatencyTable) -> None:
    nodes = {node.name: node for node in network.normal.graph}
    assert 0 < table.node_share(nodes["bend"]) < 0.1
    assert table.node_share(nodes["expand"]) == 0.0
    assert table.node_share(ir.node("Sin", [ir.val("v")])) == 0.0
    assert sum(table.shares.values()) + sum(table.others.values()) == pytest.approx(1, abs=0.02)


def test_where_no_width_was_timed_mac_counts_stand_in(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_on(monkeypatch, tmp_path)
    found = measure_table(network.normal, network.layers, network.feeds(), scheme="svd")
    assert found.width_part(layer(network, "expand"), 8, 32) == pytest.approx(1 / 4)


def test_cut_times_survive_their_file(table: LatencyTable, tmp_path: Path) -> None:
    save_table(table, tmp_path / "table.json")
    assert read_table(tmp_path / "table.json") == table
    document = json.loads((tmp_path / "table.json").read_text())
    for wrong in ({"width": [[[4], 1.0]]}, {"depthwise": [[[4, 4], 1.0]]}):
        (tmp_path / "wrong.json").write_text(json.dumps(document | {"parts": {"k": wrong}}))
        with pytest.raises(DataError, match="damaged"):
            read_table(tmp_path / "wrong.json")
    (tmp_path / "wrong.json").write_text(json.dumps(document | {"others": {"bend": 0.9}}))
    with pytest.raises(DataError, match="shares add up"):
        read_table(tmp_path / "wrong.json")
