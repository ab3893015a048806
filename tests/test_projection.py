"""The projection step: what it does to a weight, and how each strategy moves the ranks."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import rng
from trp_onnx.errors import UsageError
from trp_onnx.graph.layers import Layout
from trp_onnx.lowrank.schemes import SCHEMES, Geometry
from trp_onnx.training.projection import project, spectra_of
from trp_onnx.training.schedules import Energy, Ranks, Ratchet, Replan, schedule_of
from trp_onnx.training.targets import Target


def conv_target(n: int, c: int, scheme: str = "spatial", rank: tuple[int, ...] = (4,), size: int = 8) -> Target:
    geometry = Geometry(1, n, c, (3, 3), (size, size), (size, size))
    return Target(f"conv{n}x{c}", f"w{n}x{c}", Layout("Conv"), scheme, (geometry,), rank)


@settings(deadline=None)  # the machine may be busy
@given(n=st.integers(2, 9), c=st.integers(2, 9), k=st.integers(1, 6), seed=st.integers(0, 99))
def test_projection_is_scipys_truncated_svd(n: int, c: int, k: int, seed: int) -> None:
    target = conv_target(n, c)
    w = rng(seed).standard_normal((n, c, 3, 3)).astype(np.float32)
    k = min(k, 3 * min(n, c))
    near, direction = project(target, w, (k,), nuclear=True)
    matrix = w.transpose(1, 2, 0, 3).reshape(c * 3, n * 3).astype(np.float64)
    u, s, vt = scipy.linalg.svd(matrix, full_matrices=False)
    back = (u[:, :k] * s[:k]) @ vt[:k]
    np.testing.assert_allclose(near, back.reshape(c, 3, n, 3).transpose(2, 0, 1, 3), atol=1e-10)
    polar = (u[:, :k] @ vt[:k]).reshape(c, 3, n, 3).transpose(2, 0, 1, 3)
    np.testing.assert_allclose(direction, polar, atol=1e-8)


@pytest.mark.parametrize("scheme", ["spatial", "spatial-mirror", "channel", "channel-mirror", "tucker2"])
def test_full_rank_changes_nothing_and_projection_is_idempotent(scheme: str) -> None:
    target = conv_target(6, 5, scheme)
    w = rng().standard_normal((6, 5, 3, 3))
    full = SCHEMES[scheme].full_rank(target.geometries[0])
    np.testing.assert_allclose(project(target, w, full)[0], w, atol=1e-12)
    low = tuple(max(1, k // 2) for k in full)
    once, _ = project(target, w, low)
    np.testing.assert_allclose(project(target, once, low)[0], once, atol=1e-12)
    for values, k in zip(spectra_of(target, once), low, strict=True):
        assert (values[..., k:] < 1e-7 * values[..., :1]).all()


def test_grouped_and_transposed_layers_project_too() -> None:
    grouped = Target("g", "g", Layout("Conv", groups=2), "channel", (Geometry(2, 4, 3, (3, 3), (8, 8), (8, 8)),), (2,))
    w = rng().standard_normal((8, 3, 3, 3))
    near, _ = project(grouped, w, (2,))
    for half in (slice(0, 4), slice(4, 8)):
        assert np.linalg.matrix_rank(near[half].reshape(4, -1)) == 2
    gemm = Target("f", "f", Layout("Gemm", transposed=True), "svd", (Geometry(1, 7, 9),), (3,))
    assert np.linalg.matrix_rank(project(gemm, rng().standard_normal((7, 9)), (3,))[0]) == 3


def test_the_papers_ratchet() -> None:
    """64 x 576, e = 0.05, no training at all: the rank falls 64 -> about 17 in 24 projections."""
    target = Target("conv", "w", Layout("Conv"), "channel", (Geometry(1, 64, 64, (3, 3), (8, 8), (8, 8)),), (64,))
    ranks = Ranks((target,), Ratchet(energy=0.05))
    w, seen = rng().standard_normal((64, 64, 3, 3)), []
    for _ in range(24):
        (k,) = ranks.update([spectra_of(target, w)], 0.0)
        w, _ = project(target, w, k)
        seen.append(k[0])
    assert seen[0] > 50 and seen == sorted(seen, reverse=True)
    assert 15 <= seen[-1] <= 19, seen


def test_energy_against_the_untruncated_matrix_does_not_ratchet() -> None:
    target = conv_target(16, 16)
    ranks = Ranks((target,), Energy(energy=0.1))
    w, seen = rng().standard_normal((16, 16, 3, 3)), set()
    for _ in range(24):
        (k,) = ranks.update([spectra_of(target, w)], 0.0)
        w, _ = project(target, w, k)
        seen.add(k)
    assert len(seen) == 1
    assert 1 < seen.pop()[0] < 48


def test_ranks_land_on_the_budget_and_stay() -> None:
    targets = tuple(conv_target(n, n) for n in (8, 16, 24))
    total = sum(target.dense_macs for target in targets) + 1000
    ranks = Ranks(targets, Ratchet(energy=0.2, budget=0.5), total, 1000)
    weights = [rng(i).standard_normal((t.geometries[0].out_channels,) * 2 + (3, 3)) for i, t in enumerate(targets)]
    for _ in range(30):
        chosen = ranks.update([spectra_of(t, w) for t, w in zip(targets, weights, strict=True)], 0.0)
        weights = [project(t, w, k)[0] for t, w, k in zip(targets, weights, chosen, strict=True)]
        if ranks.within_budget:
            break
    assert 0.45 < ranks.ratio() <= 0.5
    held = list(ranks.current)
    assert ranks.update([spectra_of(t, w) for t, w in zip(targets, weights, strict=True)], 0.5) == held


def test_replanning_brings_the_budget_down_over_the_first_half() -> None:
    targets = tuple(conv_target(n, n) for n in (8, 16))
    total = sum(target.dense_macs for target in targets)
    ranks = Ranks(targets, Replan(0.4), total)
    spectra = [spectra_of(t, rng().standard_normal((t.geometries[0].out_channels,) * 2 + (3, 3))) for t in targets]
    found = []
    for progress in (0.0, 0.1, 0.25, 0.5, 0.9):
        ranks.update(spectra, progress)
        found.append(ranks.ratio())
    assert found[0] == 1.0 and found == sorted(found, reverse=True)
    assert 0.55 < found[2] <= 0.7 and 0.35 < found[3] <= 0.4 and found[4] == found[3]


def test_state_goes_through_a_checkpoint() -> None:
    target = conv_target(16, 16)
    a, b = (Ranks((target,), Energy(energy=0.1)) for _ in range(2))
    w = rng().standard_normal((16, 16, 3, 3))
    a.update([spectra_of(target, w)], 0.0)
    b.restore(a.state())
    assert b.current == a.current and b.state() == a.state()


@pytest.mark.parametrize(
    ("strategy", "energy", "budget"),
    [("paper", None, 0.5), ("energy", None, None), ("replan", 0.1, None), ("paper", 1.5, None), ("ranks", None, 2.0)],
)
def test_a_strategy_says_what_it_lacks(strategy: str, energy: float | None, budget: float | None) -> None:
    with pytest.raises(UsageError, match=r"--energy|--macs"):
        schedule_of(strategy, energy, budget)
