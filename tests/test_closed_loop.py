"""Asked is measured: tables that cannot lie, and plans that are made again until a file with their shapes is as fast.

On a machine of clockwork, whose times are known.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import trp_onnx
from tests.clockwork import runs_on
from tests.easy import compress
from tests.graphs import conv_net, info, model, save, weights
from trp_onnx.errors import TargetError
from trp_onnx.graph.layers import Layer, find_layers
from trp_onnx.graph.model import open_model
from trp_onnx.latency import LatencyTable, measure
from trp_onnx.lowrank.schemes import SCHEMES
from trp_onnx.runners import Rounds


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conv_net(tmp_path_factory.mktemp("net") / "net.onnx", channels=64)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough layers for plans of nearly any speed."""
    w = {f"w{i}": weights(32, 32 if i else 3, 3, 3, seed=i) for i in range(7)}
    nodes = [
        onnx.helper.make_node("Conv", [f"y{i}" if i else "x", f"w{i}"], [f"y{i + 1}"], name=f"c{i}", pads=[1, 1, 1, 1])
        for i in range(7)
    ]
    net = model(nodes, [info("x", [1, 3, 12, 12])], [info("y7", [1, 32, 12, 12])], w)
    return save(net, tmp_path_factory.mktemp("deep") / "deep.onnx")


def conv2(net: Path) -> Layer:
    return next(layer for layer in find_layers(open_model(net)) if layer.name == "conv2")


def ranks_of(model: onnx.ModelProto) -> list[int]:
    """Output channels of the probed layer's nodes."""
    sizes = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer}
    return [sizes[node.input[1]] for node in model.graph.node if node.name.startswith("layer")]


def macs_ratio(layer: Layer, scheme: str, rank: tuple[int, ...]) -> float:
    assert layer.geometry is not None
    return float(SCHEMES[scheme].macs(layer.geometry, rank)) / layer.geometry.macs


def grid(layer: Layer, scheme: str, step: int = 8) -> list[tuple[int, ...]]:
    assert layer.geometry is not None
    full = SCHEMES[scheme].full_rank(layer.geometry)
    return list(itertools.product(*(range(step, size + 1, step) for size in full)))


def parts_of(table: LatencyTable, layer: Layer, scheme: str) -> dict[tuple[int, ...], float]:
    return {rank: table.part(layer, SCHEMES[scheme], rank) for rank in grid(layer, scheme)}


def test_a_network_of_which_nothing_gets_faster(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal names the speed-up that was asked for."""
    runs_on(monkeypatch, tmp_path, slowed=lambda index, model: 100.0 if len(ranks_of(model)) > 1 else 1.0)
    with pytest.raises(TargetError, match=r"--speedup 1\.1 is out of reach"):
        compress(net, tmp_path / "out.onnx", speedup=1.1)


def test_no_entry_is_faster_than_kernels_are(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide Tucker-2 ranks, 0.9 of the MACs and more, come out at a tenth of their time, again and again."""

    def lies(index: int, model: onnx.ModelProto) -> float:
        ranks = ranks_of(model)
        return 0.1 if len(ranks) == 3 and min(ranks) >= 48 else 1.0

    runs_on(monkeypatch, tmp_path, slowed=lies)
    table, layer = trp_onnx.profile(net), conv2(net)
    for scheme in ("tucker2", "spatial", "channel"):
        for rank, part in parts_of(table, layer, scheme).items():
            assert part >= 0.98 * macs_ratio(layer, scheme, rank), (scheme, rank)
    report = compress(net, tmp_path / "out.onnx", speedup=1.4)
    assert report.latency is not None and report.latency.measured is not None
    assert report.latency.measured.median == pytest.approx(1.4, rel=0.03)


@pytest.mark.parametrize("shaken", [(0.8, 1.25), (0.5, 2.0)])
def test_no_larger_rank_is_faster(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shaken: tuple[float, float]
) -> None:
    """Rounds that are slowed down by a quarter are left out; where times vary by four, that is said as well."""
    noise = np.random.default_rng(5)
    runs_on(monkeypatch, tmp_path, slowed=lambda index, model: noise.uniform(*shaken))
    table, layer = trp_onnx.profile(net), conv2(net)
    for scheme in ("tucker2", "spatial", "channel"):
        parts = parts_of(table, layer, scheme)
        for small, large in itertools.product(parts, parts):
            if all(r <= s for r, s in zip(small, large, strict=True)):
                assert parts[small] <= parts[large] + 1e-9, (scheme, small, large)
    assert shaken == (0.8, 1.25) or any("unsteady" in note for note in table.notes)


def test_the_full_rank_is_timed_itself(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_on(monkeypatch, tmp_path)
    table, layer = trp_onnx.profile(net), conv2(net)
    assert layer.geometry is not None
    timed = table.parts[table.signatures["conv2"]]
    assert timed.keys() > SCHEMES.keys() - {"svd"}  # and widths
    for scheme, knots in ((name, timed[name]) for name in timed.keys() & SCHEMES.keys()):
        full = SCHEMES[scheme].full_rank(layer.geometry)
        assert dict(knots)[full] == pytest.approx(macs_ratio(layer, scheme, full), rel=0.02)


def dense_again(times: int, more: float) -> Callable[[int, onnx.ModelProto], float]:
    """The second of two equal contenders is slower, in so many of the measurements that hold them."""
    seen = itertools.count()

    def slowed(index: int, model: onnx.ModelProto) -> float:
        second = index > 0 and len(ranks_of(model)) == 1 and any(node.name == "before" for node in model.graph.node)
        return more if second and next(seen) < times else 1.0

    return slowed


def test_what_is_in_doubt_is_timed_again(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = runs_on(monkeypatch, tmp_path / "quiet")
    quiet, once = trp_onnx.profile(net), len(machine.prepared)
    machine = runs_on(monkeypatch, tmp_path / "busy", slowed=dense_again(7, 1.5))
    found, more = trp_onnx.profile(net), len(machine.prepared)
    assert more == once + 1  # its warm-up and its rounds were disturbed, and then it was quiet
    assert found == quiet and not found.notes
    runs_on(monkeypatch, tmp_path / "always", slowed=dense_again(10**6, 1.5))
    assert "busy" in trp_onnx.profile(net).notes[0]
    report = compress(net, tmp_path / "out.onnx", speedup=1.3)
    assert any("unsteady" in note for note in report.notes)


def test_what_was_timed_is_not_timed_again(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = runs_on(monkeypatch, tmp_path)
    first, times = trp_onnx.profile(net), len(machine.prepared)
    assert trp_onnx.profile(net) == first and len(machine.prepared) == times


@pytest.mark.parametrize("slow_factors", [1.0, 1.25, 0.8])
def test_asked_is_measured(deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_factors: float) -> None:
    """In the network factors take longer, or less long, than where they were timed alone."""
    runs_on(monkeypatch, tmp_path, slow_factors=slow_factors)
    report = compress(deep, tmp_path / "out.onnx", speedup=1.4)
    latency = report.latency
    assert latency is not None and latency.measured is not None and latency.asked == 1.4
    assert latency.measured.median == pytest.approx(1.4, rel=0.03)
    assert 1 <= len(latency.trials) <= 6
    first = latency.trials[0]
    assert first.predicted == pytest.approx(1.4, rel=0.03)
    assert (first.measured.median < 0.97 * 1.4) == (slow_factors > 1)
    assert (first.measured.median > 1.03 * 1.4) == (slow_factors < 1)
    assert {path.name for path in tmp_path.iterdir()} == {"out.onnx", "cache"}


def test_chosen_points_are_timed_themselves(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = runs_on(monkeypatch, tmp_path)
    report = compress(net, tmp_path / "out.onnx", speedup=1.4)
    decision = next(d for d in report.layers if d.name == "conv2")
    assert decision.rank is not None and decision.scheme is not None
    wanted = 3 if decision.scheme == "tucker2" else 2
    probes = [ranks_of(model) for contenders in machine.prepared for model in contenders]
    assert any(len(ranks) == wanted and ranks[0] == decision.rank[0] for ranks in probes)


def test_out_of_reach_says_what_was_measured(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predicted in reach, but not measured so."""
    runs_on(monkeypatch, tmp_path, slow_factors=20.0)
    with pytest.raises(TargetError, match=r"--speedup 3 is out of reach: .* measured \d\.\d\dx as fast") as refusal:
        compress(net, tmp_path / "out.onnx", speedup=3)
    assert refusal.value.exit_code == 3
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


def test_a_machine_on_which_nothing_can_be_measured(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = runs_on(monkeypatch, tmp_path)
    noise = np.random.default_rng(1)
    steady = machine.run

    def shaken(self: object, rounds: int, repeats: list[int], warm: bool = True) -> dict[str, object]:
        found = steady(self, rounds, repeats, warm)  # type: ignore[arg-type]
        return found | {"seconds": [[s * noise.uniform(1, 3) for s in row] for row in found["seconds"]]}

    trp_onnx.profile(net)
    monkeypatch.setattr(machine, "run", shaken)
    with pytest.raises(TargetError, match=r"cannot be measured here.*busy") as refusal:
        compress(net, tmp_path / "out.onnx", speedup=1.4)
    assert refusal.value.exit_code == 3 and not (tmp_path / "out.onnx").exists()


def test_disturbed_rounds_are_left_out() -> None:
    """Of 40 rounds another process has the core in 12, in which only the second contender is slow."""

    def turns(rounds: int, repeats: object, warm: bool) -> Rounds:
        return Rounds([[0.01, 0.05 if i == 0 else 0.005] for i in range(rounds)], [i == 0 for i in range(rounds)])

    timing = measure(turns, 2, 40)
    assert timing.ratios[1].median == timing.ratios[1].low == timing.ratios[1].high == 2.0
    assert timing.disturbed == 0.25


def test_rounds_in_which_one_is_slowed_down_are_left_out() -> None:
    """The other thread of the core is busy in half of the samples, of either contender."""
    noise = np.random.default_rng(2)

    def turns(rounds: int, repeats: object, warm: bool) -> Rounds:
        slowed = np.where(noise.random((rounds, 2)) < 0.5, 1.9, 1.0)
        return Rounds((slowed * [0.01, 0.008] * noise.normal(1, 0.002, (rounds, 2))).tolist(), [False] * rounds)

    ratio = measure(turns, 2, 100).ratios[1]
    assert ratio.median == pytest.approx(1.25, rel=0.005) and ratio.width < 0.01


def test_a_slow_spell_is_waited_out(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole machine slows down for a while, and small nodes suffer more: the ratio is another then."""
    runs_on(monkeypatch, tmp_path)
    found = [trp_onnx.bench([net, net]).contenders[1].ratio.median]
    assert found == [1.0]
    spell = itertools.chain([(1.25, 1.5)] * 8, itertools.repeat((1.0, 1.0)))

    def slowed(index: int, model: onnx.ModelProto) -> float:
        if index == 0:
            state.append(next(spell))
        return state[-1][index]

    state: list[tuple[float, float]] = []
    runs_on(monkeypatch, tmp_path, slowed=slowed)
    bench = trp_onnx.bench([net, net])
    assert bench.contenders[1].ratio.median == 1.0 and not bench.notes
    spell = itertools.repeat((1.25, 1.5))
    bench = trp_onnx.bench([net, net])
    assert bench.contenders[1].ratio.median == pytest.approx(1.25 / 1.5)
    assert any("slower than before" in note for note in bench.notes)


def test_what_others_do_meanwhile_is_told(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = runs_on(monkeypatch, tmp_path)
    alone = machine.run
    monkeypatch.setattr(machine, "run", lambda self, *a, **more: alone(self, *a, **more) | {"others": 0.5})
    notes = trp_onnx.bench([net, net], rounds=8).notes
    assert any("other processes kept 50% of this machine busy" in note for note in notes)
    report = compress(net, tmp_path / "out.onnx", speedup=1.4)
    assert any("other processes kept 50% of this machine busy" in note for note in report.notes)
    report = compress(net, tmp_path / "out.onnx", macs=0.6, align=1)  # nobody asked for time
    assert report.latency is not None and "50%" in report.latency.doubts[0]
    assert not any("busy" in note for note in report.notes)


def test_by_a_table_of_another_machine_it_is_predicted(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_on(monkeypatch, tmp_path)
    from trp_onnx.latency import save_table

    save_table(trp_onnx.profile(net), tmp_path / "table.json")
    text = (tmp_path / "table.json").read_text()
    (tmp_path / "table.json").write_text(text.replace('"machine": "clockwork"', '"machine": "a phone"'))
    report = compress(net, tmp_path / "out.onnx", speedup=1.4, latency_table=tmp_path / "table.json")
    assert report.latency is not None and report.latency.measured is None and report.latency.trials == ()
    assert any("predicted, not measured" in note for note in report.notes)


def test_next_to_nothing_is_no_option(net: Path, tmp_path: Path) -> None:
    """No layer is factorised for less than 2 % of its MACs or 0.1 % of the network's."""
    for macs in (0.99, 0.9, 0.6):
        report = compress(net, tmp_path / "out.onnx", macs=macs, align=1)
        for d in report.layers:
            if d.scheme is not None and d.macs_before and d.macs_after:
                assert d.macs_after <= 0.98 * d.macs_before
                assert d.macs_before - d.macs_after >= 0.001 * report.macs.before
