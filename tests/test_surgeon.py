"""Units that are removed, and what the readers of the others make of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import rng
from trp_onnx.lowrank.separable import Separable
from trp_onnx.lowrank.surgeon import NO_UNIT, Reader, eliminate, error_of, refit


def seen(d: int, seed: int, ridge: float = 1e-4) -> np.ndarray:
    """The second moment of correlated patches, (D, D)."""
    patches = rng(seed).standard_normal((3 * d + 5, d)) @ (np.eye(d) + 0.4 * rng(seed + 1).standard_normal((d, d)))
    moment = patches.T @ patches / len(patches)
    return moment + ridge * np.trace(moment) / d * np.eye(d)


def reader(size: int, taps: int, n: int, others: int = 0, seed: int = 0) -> Reader:
    """One that reads every unit at some taps, in no order, and others that are of no unit."""
    unit = np.append(np.repeat(np.arange(size), taps), np.full(others, NO_UNIT))
    unit = rng(seed + 2).permutation(unit)
    weight = rng(seed + 3).standard_normal((1, n, len(unit)))
    return Reader(weight, seen(len(unit), seed + 4)[None], unit[None])


@st.composite
def spaces(draw: st.DrawFn) -> tuple[list[Reader], int, int]:
    """Readers, size and groups of a space."""
    groups = draw(st.integers(1, 3))
    size = groups * draw(st.integers(1, 5))
    taps, n, others, seeds = st.integers(1, 3), st.integers(1, 8), st.integers(0, 3), st.integers(0, 99)
    count = draw(st.integers(1, 3))
    return [reader(size, draw(taps), draw(n), draw(others), draw(seeds)) for _ in range(count)], size, groups


@given(spaces())
@settings(max_examples=60, deadline=None)
def test_errors_are_those_of_the_refitted_weights(space: tuple[list[Reader], int, int]) -> None:
    readers, size, groups = space
    found = eliminate(readers, size, groups)
    for k, error in enumerate(found.errors):
        true = np.mean([error_of(each, refit(each, found.kept(k))) for each in readers])
        assert error == pytest.approx(true, rel=1e-6, abs=1e-9)
    assert (np.diff(found.errors) <= 0).all() and found.errors[-1] == 0


@given(spaces())
@settings(max_examples=30, deadline=None)
def test_groups_keep_equally_many(space: tuple[list[Reader], int, int]) -> None:
    readers, size, groups = space
    found, each = eliminate(readers, size, groups), size // groups
    for k in range(each + 1):
        kept = found.kept(k)
        assert (np.bincount(kept // each, minlength=groups) == k).all()
        assert (np.diff(kept) > 0).all()


@given(spaces())
@settings(max_examples=30, deadline=None)
def test_only_columns_of_removed_units_are_zeroed(space: tuple[list[Reader], int, int]) -> None:
    readers, size, _ = space
    for each in readers:
        assert np.array_equal(refit(each, np.arange(size)), each.weight)
        none = refit(each, np.arange(0))
        assert ((none != 0) == (each.unit == NO_UNIT)[:, None]).all()


@given(spaces())
@settings(max_examples=30, deadline=None)
def test_the_first_to_go_is_the_one_that_costs_least(space: tuple[list[Reader], int, int]) -> None:
    readers, size, _ = space
    found = eliminate(readers, size)

    def cost(unit: int) -> float:
        return float(np.mean([error_of(each, refit(each, np.delete(np.arange(size), unit))) for each in readers]))

    costs = [cost(unit) for unit in range(size)]
    assert costs[int(found.order[0, 0])] == pytest.approx(min(costs), rel=1e-6, abs=1e-9)
    assert found.errors[size - 1] == pytest.approx(min(costs), rel=1e-6, abs=1e-9)


def test_a_refit_is_the_best_there_is() -> None:
    each = reader(6, 2, 5, others=2)
    best = refit(each, np.array([0, 2, 5]))
    moved = best + 1e-3 * (best != 0) * rng(1).standard_normal(best.shape)
    assert error_of(each, best) < error_of(each, moved)


@pytest.mark.parametrize("taps", [1, 4])
def test_a_unit_that_others_make_up_for_goes_first_at_no_cost(taps: int) -> None:
    size = 12
    patches = rng(0).standard_normal((400, size, taps))
    patches[:, 7] = 0.5 * patches[:, 2] - 2 * patches[:, 10]
    flat = patches.reshape(400, -1)
    moment = flat.T @ flat / 400 + 1e-8 * np.eye(size * taps)
    each = Reader(rng(1).standard_normal((1, 9, size * taps)), moment[None], np.repeat(np.arange(size), taps)[None])
    found = eliminate([each], size)
    assert found.order[0, 0] in (2, 7, 10)
    assert found.errors[size - 1] < 1e-5 < found.errors[size - 2]


def test_a_unit_that_nobody_reads_goes_first() -> None:
    each = reader(5, 1, 4)
    found = eliminate([Reader(each.weight, each.moment, np.where(each.unit == 3, NO_UNIT, each.unit))], 5)
    assert found.order[0, 0] == 3 and found.errors[4] == 0


def test_what_is_put_off_is_exact_too() -> None:
    each = reader(150, 2, 30, others=5)
    found = eliminate([each], 150)
    for k in (0, 20, 75, 140):
        assert found.errors[k] == pytest.approx(error_of(each, refit(each, found.kept(k))), rel=1e-8)


def test_a_product_moment_is_as_good_as_its_matrix() -> None:
    n, c = 5, 6
    moment = Separable(seen(c, 1)[None], (seen(3, 2), seen(2, 3)))
    matrix = np.kron(np.kron(moment.channels[0], moment.axes[0]), moment.axes[1])[None]
    weight = rng(4).standard_normal((1, n, c * 6))
    unit = np.repeat(np.arange(c), 6)[None]
    product, whole = Reader(weight, moment, unit), Reader(weight, matrix, unit)
    found, expected = eliminate([product], c), eliminate([whole], c)
    assert np.array_equal(found.order, expected.order)
    assert found.errors == pytest.approx(expected.errors, abs=1e-9)
    kept = found.kept(3)
    assert refit(product, kept) == pytest.approx(refit(whole, kept), abs=1e-9)
    assert error_of(product, refit(product, kept)) == pytest.approx(found.errors[3])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scales_mean_nothing(scale: float) -> None:
    one, other = reader(8, 2, 5), reader(8, 1, 5, seed=7)
    plain = eliminate([one, other], 8)
    scaled = eliminate([Reader(one.weight * scale, one.moment * scale, one.unit), other], 8)
    assert np.array_equal(plain.order, scaled.order)
    assert scaled.errors == pytest.approx(plain.errors, rel=1e-9)


def test_readers_of_nothing_cost_nothing() -> None:
    each = reader(4, 1, 3)
    assert (eliminate([Reader(0 * each.weight, each.moment, each.unit)], 4).errors == 0).all()


def test_a_moment_that_rounding_left_indefinite_does() -> None:
    each = reader(6, 1, 4)
    moment = np.array(each.moment)
    values, vectors = np.linalg.eigh(moment[0])
    values[0] = -1e-7 * values.mean()
    found = eliminate([Reader(each.weight, (vectors * values @ vectors.T)[None], each.unit)], 6)
    assert np.isfinite(found.errors).all() and found.errors[-1] == 0


def test_errors_are_exact_where_samples_are_few() -> None:
    patches = np.maximum(rng(0).standard_normal((96, 700)) @ rng(1).standard_normal((700, 700)), 0)
    patches -= patches.mean(axis=0)
    moment = patches.T @ patches / 96
    moment += 1e-4 * np.trace(moment) / 700 * np.eye(700)
    found = eliminate([one := Reader(rng(2).standard_normal((1, 40, 700)), moment[None], np.arange(700)[None])], 700)
    for k in (100, 400, 650):
        assert found.errors[k] == pytest.approx(error_of(one, refit(one, found.kept(k))), rel=1e-4)
