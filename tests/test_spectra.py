"""Error curves for planning: shared between schemes and rounded, but right."""

import numpy as np
import pytest

from tests.graphs import rng
from trp_onnx.lowrank.schemes import SCHEMES, candidates, error_curves


def decaying(n: int, c: int, kernel: tuple[int, ...], power: float = 0.5) -> np.ndarray:
    """A weight whose spectra fall as those of trained layers do: (1, N, C, *k)."""
    mixed = rng().standard_normal((n, n)) * np.arange(1, n + 1) ** -power
    return (mixed @ rng(1).standard_normal((n, c * int(np.prod(kernel))))).reshape(1, n, c, *kernel)


@pytest.mark.parametrize(
    ("n", "c", "kernel"), [(320, 256, (3, 1)), (300, 280, (1, 1)), (256, 40, (3, 3)), (6, 5, (3, 3))]
)
def test_shared_and_rounded_curves_are_those_of_a_full_svd(n: int, c: int, kernel: tuple[int, ...]) -> None:
    weight = decaying(n, c, kernel)
    for name, claimed in error_curves(candidates("auto", kernel), weight).items():
        if name == "tucker2":  # held against its own factors in test_identity
            assert np.abs(claimed - SCHEMES[name].errors(weight)).max() < 1e-5
            continue
        energy = np.linalg.svd(SCHEMES[name].unfold(weight)[0], compute_uv=False)[0] ** 2
        tail = np.append(np.cumsum(energy[::-1])[::-1], 0.0) / energy.sum()
        assert np.abs(claimed - tail).max() < 1e-6, name


def test_a_weight_of_low_rank_is_seen_as_one() -> None:
    weight = (rng().standard_normal((300, 20)) @ rng(1).standard_normal((20, 270))).reshape(1, 300, 270, 1, 1)
    errors = error_curves(candidates("auto", (1, 1)), weight)["svd"]
    assert errors[20] < 1e-13 < errors[19]


@pytest.mark.parametrize("scale", [1e-40, 1e30])
def test_the_scale_of_a_weight_changes_nothing(scale: float) -> None:
    weight = decaying(260, 24, (3, 3))
    plain = error_curves(candidates("auto", (3, 3)), weight)
    for name, errors in error_curves(candidates("auto", (3, 3)), weight * scale).items():
        assert np.allclose(errors, plain[name], atol=1e-9), name
        rank = tuple(size // 2 for size in np.array(errors.shape) - 1)
        factors = SCHEMES[name].split(weight * scale, rank)
        near = SCHEMES[name].merge(factors) / scale
        assert np.square(near - weight).sum() / np.square(weight).sum() == pytest.approx(plain[name][rank], abs=1e-5)


@pytest.mark.parametrize("scheme", ["spatial", "spatial-mirror", "channel", "channel-mirror"])
def test_rounded_curves_of_outputs_are_what_their_factors_lose(scheme: str) -> None:
    n, c, kernel = 100, 96, (3, 3)
    weight, size = decaying(n, c, kernel), c * 9
    patches = rng(2).standard_normal((2 * size, size)) * np.arange(1, size + 1) ** -0.3
    moment = (patches.T @ patches / len(patches))[None]
    claimed = error_curves([SCHEMES[scheme]], weight, moment.astype(np.float32))[scheme]

    def energy(change: np.ndarray) -> float:
        flat = change.reshape(n, size)
        return float(((flat @ moment[0]) * flat).sum())

    for rank in (8, 70):
        factors = SCHEMES[scheme].split(weight, (rank,), moment, exact=False)
        lost = energy(SCHEMES[scheme].merge(factors) - weight) / energy(weight)
        assert claimed[rank] == pytest.approx(lost, abs=2e-5)
        fitted = SCHEMES[scheme].merge(SCHEMES[scheme].split(weight, (rank,), moment))
        assert energy(fitted - weight) / energy(weight) <= lost + 1e-6
