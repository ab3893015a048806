"""What a layer's weight error does to the network's outputs, as a curve; `damage` measures it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DamageCurve:
    """Damage to the outputs at a relative squared weight error.

    Attributes:
        errors: Ascending, from 0.
        damages: At those errors.
    """

    errors: NDArray[np.float64]
    damages: NDArray[np.float64]

    def __call__(self, error: float) -> float:
        """Interpolated; beyond the last point in proportion to it."""
        last = float(self.errors[-1])
        if error > last > 0:
            return float(self.damages[-1]) * error / last
        return float(np.interp(error, self.errors, self.damages))
