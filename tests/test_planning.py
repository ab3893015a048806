"""Rank rules: what each promises, checked against brute force or the definition."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trp_onnx
from tests import easy, graphs
from trp_onnx.errors import TargetError
from trp_onnx.lowrank import linalg
from trp_onnx.lowrank.schemes import SCHEMES, Geometry
from trp_onnx.planning.allocate import allocate
from trp_onnx.planning.options import Option


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return graphs.conv_net(tmp_path / "net.onnx", channels=24)


def compress(path: Path, **options: object) -> trp_onnx.Report:
    return easy.compress(path, path.with_name("out.onnx"), **{"align": 1, **options})


def spatial_spectrum(w: np.ndarray) -> np.ndarray:
    n, c, kh, kw = w.shape
    return np.linalg.svd(w.transpose(1, 2, 0, 3).reshape(c * kh, n * kw).astype(np.float64), compute_uv=False)


@pytest.mark.parametrize("energy", [0.5, 0.3, 0.15])
def test_energy_discards_at_most_that_part_and_no_rank_is_wasted(net: Path, energy: float) -> None:
    report = compress(net, energy=energy, scheme="spatial")
    s = spatial_spectrum(graphs.initializers(net)["w2"])
    tail = np.append(np.cumsum(s[::-1] ** 2)[::-1], 0) / np.sum(s**2)
    decision = next(layer for layer in report.layers if layer.name == "conv2")
    assert decision.scheme == "spatial"
    (rank,) = decision.rank
    assert tail[rank] <= energy < tail[rank - 1]
    assert decision.relative_error**2 == pytest.approx(tail[rank], abs=1e-9)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 0.99), st.integers(0, 99))
def test_energy_rank_is_the_papers_rule(rows: int, cols: int, energy: float, seed: int) -> None:
    s = np.linalg.svd(graphs.rng(seed).standard_normal((rows, cols)), compute_uv=False)
    kept = next(k for k in range(1, len(s) + 1) if np.sum(s[k:] ** 2) <= energy * np.sum(s**2) + 1e-12)
    assert abs(linalg.energy_rank(s, energy) - kept) <= (
        1 if abs(np.sum(s[kept:] ** 2) / np.sum(s**2) - energy) < 1e-9 else 0
    )


option_lists = st.lists(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0, 1)), min_size=1, max_size=6), min_size=1, max_size=5
)


@settings(max_examples=200, deadline=None)
@given(option_lists, st.integers(1, 200))
def test_the_budget_is_spent_optimally(lists: list[list[tuple[int, float]]], budget: int) -> None:
    choices = [[Option("svd", (1,), macs, 0, error) for macs, error in options] for options in lists]
    feasible = [
        sum(o.error for o in plan) for plan in itertools.product(*choices) if sum(o.macs for o in plan) <= budget
    ]
    found = allocate(choices, budget)
    if not feasible:
        assert found is None
        return
    assert found is not None and sum(o.macs for o in found) <= budget
    assert sum(o.error for o in found) == pytest.approx(min(feasible), abs=1e-9)


def test_a_budget_is_of_the_macs_that_are_known(tmp_path: Path) -> None:
    """A convolution on images of any size has no known MACs: what the product behind it may keep is its own part."""
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w1"], ["h1"], name="conv"),
        onnx.helper.make_node("GlobalAveragePool", ["h1"], ["h2"]),
        onnx.helper.make_node("Flatten", ["h2"], ["h3"]),
        onnx.helper.make_node("MatMul", ["h3", "w2"], ["y"], name="fc"),
    ]
    constants = {"w1": graphs.weights(32, 3, 3, 3), "w2": graphs.weights(32, 40, seed=1)}
    io = [graphs.info("x", ["n", 3, None, None])], [graphs.info("y", ["n", 40])]
    report = compress(graphs.save(graphs.model(nodes, *io, constants), tmp_path / "net.onnx"), macs=0.7)
    assert report.macs.before == 32 * 40 and report.macs.after == 12 * (32 + 40)
    with pytest.raises(TargetError, match=r"at its cheapest 0\.0[0-9]+ of the MACs"):
        compress(tmp_path / "net.onnx", macs=0.01)


def test_thousands_of_layers_are_allocated_in_little_memory() -> None:
    """Of equal layers the dual settles none: dynamic programming takes coarser steps, and loses little by them."""
    ranks = np.arange(1, 6)
    choices = [[Option("svd", (int(r),), int(1_000_003 * r), 0, float(1 / r)) for r in ranks] for _ in range(500)]
    tracemalloc.start()
    found = allocate(choices, 1_250_000_000)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is not None and sum(option.macs for option in found) <= 1_250_000_000
    assert sum(option.error for option in found) <= 1.001 * 500 * (1 / 2 + 1 / 3) / 2
    assert taken < 250e6


def test_a_gap_that_is_rounding_alone_leaves_the_choice() -> None:
    """Of thousands of layers the sum of the errors may come out below its own bound."""
    errors = np.random.default_rng(0).uniform(0, 1, 3000).cumsum()
    choices = [[Option("svd", (1,), 10, 0, float(e)), Option("svd", (2,), 20, 0, float(e) / 3)] for e in errors]
    for budget in (30_000, 40_000, 45_010, 60_000):
        found = allocate(choices, budget)
        assert found is not None and sum(option.macs for option in found) <= budget
        cheap = sorted(errors)[: 3000 - (budget - 30_000) // 10]
        assert sum(option.damage for option in found) == pytest.approx(errors.sum() / 3 + sum(cheap) * 2 / 3, rel=1e-9)


@pytest.mark.slow
def test_a_large_budget_is_allocated_within_a_ten_thousandth_of_the_lp_bound() -> None:
    """Sixty layers of up to 500 ranks with coprime costs, against the linear relaxation by HiGHS."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    generator = graphs.rng(5)
    choices = []
    for _ in range(60):
        count = int(generator.integers(20, 500))
        spectrum = np.sort(generator.pareto(1.5, count) + 0.01)[::-1]
        tail = 1 - np.cumsum(spectrum) / spectrum.sum()
        unit = int(generator.integers(10_007, 500_009))
        choices.append([Option("svd", (r,), (r + 1) * unit, 0, max(0.0, float(tail[r]))) for r in range(count)])
    budget = int(0.4 * sum(options[-1].macs for options in choices))
    found = allocate(choices, budget)
    assert found is not None and sum(o.macs for o in found) <= budget
    flat = [o for options in choices for o in options]
    owner = np.repeat(np.arange(60), [len(options) for options in choices])
    one_each = csr_array((np.ones(len(flat)), (owner, np.arange(len(flat)))))
    relaxed = linprog(
        [o.error for o in flat], A_ub=[[o.macs / budget for o in flat]], b_ub=[1], A_eq=one_each, b_eq=np.ones(60)
    )
    total = sum(o.error for o in found)
    assert relaxed.fun - 1e-9 <= total <= relaxed.fun * 1.0001


@pytest.mark.parametrize("target", [0.9, 0.6, 0.35])
@pytest.mark.parametrize("scheme", ["auto", *SCHEMES])
def test_macs_target_is_met_by_the_written_file(net: Path, scheme: str, target: float) -> None:
    try:
        report = compress(net, macs=target, scheme=scheme)
    except trp_onnx.TargetError:
        assert scheme == "svd"  # it fits the classifier alone
        return
    assert report.macs.ratio <= target
    again = trp_onnx.inspect(net.with_name("out.onnx"))
    assert again.macs == report.macs.after
    assert sum(view.parameters for view in again.layers) <= report.parameters.after


@pytest.mark.parametrize("align", [4, 8, 16])
def test_ranks_are_multiples_of_the_alignment(net: Path, align: int) -> None:
    report = compress(net, macs=0.7, align=align)
    ranks = [rank for layer in report.layers if layer.scheme and layer.role != "stem" for rank in layer.rank]
    assert ranks and all(rank % align == 0 for rank in ranks)
    assert report.align == align


def test_rounding_goes_up_within_the_step(net: Path) -> None:
    exact = compress(net, energy=0.3, scheme="spatial").layers[1].rank[0]
    aligned = compress(net, energy=0.3, scheme="spatial", align=8).layers[1].rank[0]
    assert aligned == -(-exact // 8) * 8


def test_alignment_counts_the_channels_of_all_groups_together(tmp_path: Path) -> None:
    from onnx import helper

    node = helper.make_node("Conv", ["x", "w"], ["y"], name="layer", group=8)
    built = graphs.model(
        [node], [graphs.info("x", [1, 64, 9, 9])], [graphs.info("y", [1, 64, 7, 7])], {"w": graphs.weights(64, 8, 3, 3)}
    )
    path = graphs.save(built, tmp_path / "m.onnx")
    rank = compress(path, energy=0.5, scheme="spatial", align=16).layers[0].rank[0]
    assert rank % 2 == 0  # 8 groups of 2 fill a block of 16


@pytest.mark.parametrize("scheme", ["auto", *SCHEMES])
def test_no_layer_gets_dearer(net: Path, scheme: str) -> None:
    """The paper's own code replaces layers even where the factors cost more."""
    for rule in ({"energy": 0.02}, {"energy": 0.4}, {"vbmf": True}):
        try:
            report = compress(net, scheme=scheme, **rule)
        except trp_onnx.TargetError:
            continue
        for layer in report.layers:
            assert layer.macs_after < layer.macs_before if layer.scheme else layer.macs_after == layer.macs_before
            assert layer.rank is None or min(layer.rank) >= 1


def test_every_layer_has_a_reason(net: Path) -> None:
    for layer in compress(net, energy=0.3).layers:
        assert len(layer.reason) > 10


@pytest.mark.parametrize("shape,rank", [((60, 200), 7), ((120, 120), 12), ((300, 40), 5)])
def test_vbmf_finds_the_rank_of_a_signal_in_noise(shape: tuple[int, int], rank: int) -> None:
    generator = graphs.rng(rank)
    signal = generator.standard_normal((shape[0], rank)) @ generator.standard_normal((rank, shape[1]))
    noise = 0.3 * generator.standard_normal(shape)
    s = np.linalg.svd(signal + noise, compute_uv=False)
    assert linalg.vbmf_rank(s, *shape) == rank
    assert linalg.vbmf_rank(np.linalg.svd(noise, compute_uv=False), *shape) == 0


def test_vbmf_compresses_a_low_rank_layer_to_its_rank(tmp_path: Path) -> None:
    path = graphs.conv_net(tmp_path / "net.onnx", channels=32)
    import onnx

    built = onnx.load(path)
    generator = graphs.rng(9)
    matrix = generator.standard_normal((96, 6)) @ generator.standard_normal((6, 96)) + 0.05 * generator.standard_normal(
        (96, 96)
    )
    w = SCHEMES["spatial"].fold(matrix[None], (1, 32, 32, 3, 3))[0].astype(np.float32)
    next(t for t in built.graph.initializer if t.name == "w2").CopyFrom(graphs.tensor("w2", w))
    onnx.save(built, path)
    report = compress(path, vbmf=True, scheme="spatial")
    assert next(layer for layer in report.layers if layer.name == "conv2").rank == (6,)


def test_the_map_goes_before_the_rule(net: Path, tmp_path: Path) -> None:
    config = tmp_path / "map.toml"
    config.write_text(
        """
        [[layer]]
        name = "conv1"
        keep = true
        [[layer]]
        regex = "^conv[0-9]$"
        scheme = "tucker2"
        rank = [7, 9]
        [[layer]]
        name = "f*"
        ratio = 0.5
        """
    )
    first, second, third = compress(net, config=config).layers
    assert (first.scheme, first.reason) == (None, "the configuration keeps it")
    assert (second.scheme, second.rank) == ("tucker2", (7, 9))
    assert third.scheme == "svd" and third.macs_after <= 0.5 * third.macs_before
    report = compress(net, config=config, macs=0.9)
    assert report.layers[1].rank == (7, 9)


def test_a_map_that_only_names_a_scheme_restricts_the_rule(net: Path) -> None:
    rules = [trp_onnx.LayerRule("conv2", scheme="channel-mirror")]
    report = compress(net, config=rules, energy=0.5)
    assert report.layers[1].scheme == "channel-mirror"


def test_a_rank_from_the_map_is_obeyed_even_where_it_does_not_pay(net: Path) -> None:
    decision = compress(net, config=[trp_onnx.LayerRule("conv2", scheme="spatial", rank=(70,))]).layers[1]
    assert decision.macs_after > decision.macs_before
    assert "dearer" in decision.reason


def test_layers_without_a_rule_are_kept(net: Path) -> None:
    report = compress(net, config=[trp_onnx.LayerRule("conv2", rank=(4,))])
    assert [layer.scheme is None for layer in report.layers] == [True, False, True]


def test_the_ends_of_the_network_are_candidates_and_say_what_they_cost(net: Path) -> None:
    report = compress(net, energy=0.5)
    assert [layer.role for layer in report.layers] == ["stem", "", "last"]
    assert report.layers[0].scheme and report.layers[2].scheme
    assert any("first layer 'conv1'" in note for note in report.notes)
    assert any("last layer 'fc'" in note for note in report.notes)


def test_auto_picks_the_cheapest_scheme_at_equal_error(net: Path) -> None:
    best = compress(net, energy=0.3).layers[1]
    for scheme in SCHEMES:
        other = compress(net, energy=0.3, scheme=scheme).layers[1]
        assert other.scheme is None or other.macs_after >= best.macs_after


def test_costs_follow_strides() -> None:
    """3x3, stride 2, 8x8 -> 4x4: the first factor of a spatial pair halves the height only."""
    geometry = Geometry(1, 10, 6, (3, 3), (8, 8), (4, 4))
    assert geometry.macs == 16 * 10 * 6 * 9
    assert SCHEMES["spatial"].macs(geometry, (5,)) == 5 * 6 * 3 * 32 + 10 * 5 * 3 * 16
    assert SCHEMES["channel"].macs(geometry, (5,)) == 5 * 6 * 9 * 16 + 10 * 5 * 16
    assert SCHEMES["channel-mirror"].macs(geometry, (5,)) == 5 * 6 * 64 + 10 * 5 * 9 * 16
    assert SCHEMES["tucker2"].macs(geometry, (4, 5)) == 4 * 6 * 64 + 5 * 4 * 9 * 16 + 10 * 5 * 16
    up = Geometry(1, 10, 6, (3, 3), (4, 4), (8, 8), transposed=True)
    assert SCHEMES["spatial"].macs(up, (5,)) == 5 * 6 * 3 * 16 + 10 * 5 * 3 * 32
