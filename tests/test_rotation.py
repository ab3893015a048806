"""Components of linear spaces, which are removed as units are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import rng
from tests.test_surgeon import reader, seen
from trp_onnx.lowrank.rotation import can_rotate, rotate
from trp_onnx.lowrank.separable import Separable
from trp_onnx.lowrank.surgeon import Reader, eliminate, error_of, refit


@given(st.integers(1, 3), st.integers(2, 6), st.integers(1, 3), st.integers(0, 2), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_rotation_alone_changes_nothing(groups: int, each: int, taps: int, others: int, seed: int) -> None:
    size = groups * each
    readers = [reader(size, taps, 5, others, seed), reader(size, 1, 3, 0, seed + 50)]
    rotation = rotate(readers, size, groups)
    units = rng(seed).standard_normal((size, 4))  # of each tap the same, which tells most
    for before in readers:
        after = rotation.of(before)
        x = np.where(before.unit[0, :, None] >= 0, units[before.unit[0]], 1.0)
        z = np.where(before.unit[0, :, None] >= 0, rotation.of_outputs(units, np.arange(size))[before.unit[0]], 1.0)
        assert after.weight[0] @ z == pytest.approx(before.weight[0] @ x, abs=1e-8)
        energies = [np.trace(r.weight[0] @ np.asarray(r.moment)[0] @ r.weight[0].T) for r in (before, after)]
        assert energies[0] == pytest.approx(energies[1], rel=1e-8)


def test_one_reader_loses_the_tail_of_its_spectrum() -> None:
    each = reader(10, 1, 7)
    values, vectors = np.linalg.eigh(np.asarray(each.moment)[0])
    energy = np.linalg.svd(each.weight[0] @ (vectors * np.sqrt(values)) @ vectors.T, compute_uv=False) ** 2
    tail = np.append(np.cumsum(energy[::-1])[::-1], np.zeros(4)) / energy.sum()
    found = eliminate([rotate([each], 10).of(each)], 10)
    assert found.errors == pytest.approx(tail, abs=1e-9)


@given(st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_components_lose_no_more_than_units(seed: int) -> None:
    each = reader(6, 1, 4, 0, seed)
    units, components = eliminate([each], 6), eliminate([rotate([each], 6).of(each)], 6)
    assert (components.errors <= units.errors + 1e-9).all()


@given(st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_components_are_removed_as_units_are(groups: int, seed: int) -> None:
    each = reader(groups * 6, 2, 4, 1, seed)
    turned = rotate([each], groups * 6, groups).of(each)
    found = eliminate([turned], groups * 6, groups)
    assert found.errors[3] == pytest.approx(error_of(turned, refit(turned, found.kept(3))), rel=1e-6)


def test_a_product_moment_is_rotated_as_its_matrix() -> None:
    moment = Separable(seen(5, 1)[None], (seen(3, 2),))
    weight, unit = rng(4).standard_normal((1, 4, 15)), np.repeat(np.arange(5), 3)[None]
    product = Reader(weight, moment, unit)
    rotation = rotate([product], 5)
    turned = rotation.of(product)
    matrix = rotation.of(Reader(weight, np.kron(moment.channels[0], moment.axes[0])[None], unit))
    assert turned.weight == pytest.approx(matrix.weight, abs=1e-9)
    assert eliminate([turned], 5).errors == pytest.approx(eliminate([matrix], 5).errors, abs=1e-9)


def test_units_that_are_read_unequally_cannot_be_rotated() -> None:
    each = reader(6, 2, 3)
    assert can_rotate(each, 6) and can_rotate(each, 6, 2)
    unit = each.unit.copy()
    unit[0, 0] = -1
    assert not can_rotate(Reader(each.weight, each.moment, unit), 6)
