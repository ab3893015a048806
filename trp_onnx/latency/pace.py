"""How fast a model is known to run here when nothing slows it down.

A slow spell of the machine (see `timing`) may last longer than a measurement, which then knows of no other pace. So
whoever times a model remembers its pace, in the user's cache, and the next one knows by it when to wait.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from trp_onnx.files.cache import Cache
from trp_onnx.latency.table import Target
from trp_onnx.latency.timing import APART, Timing, measure
from trp_onnx.runners import Rounds

REMEMBERED = 3600.0
"""Seconds after which it is forgotten: the machine itself may have become slower."""

_READ = 1 << 20
"""Bytes by which a model is known, beside its size."""


class Pace:
    """Of one model on one target.

    Attributes:
        seconds: Of one run; infinite where nothing is known.
    """

    def __init__(self, model: Path, feeds: Mapping[str, np.ndarray], target: Target) -> None:
        """What is remembered of a file, run on such inputs."""
        with model.open("rb") as file:
            digest = hashlib.sha256(file.read(_READ)).hexdigest()
        shapes = {name: np.shape(array) for name, array in feeds.items()}
        self._cache, self._key = Cache("pace", f"{target}"), f"{digest} {model.stat().st_size} {shapes}"
        known = self._cache.get(self._key)
        fresh = isinstance(known, list) and 0 <= time.time() - known[1] < REMEMBERED
        self.seconds = float(known[0]) if fresh else math.inf

    def learn(self, seconds: float) -> None:
        """Remember a faster one."""
        if 0 < seconds < self.seconds:
            self.seconds = seconds
            self._cache.put(self._key, [seconds, time.time()])


def measure_at(
    pace: Pace,
    turns: Callable[[int, Sequence[int], bool], Rounds],
    count: int,
    rounds: int,
    *,
    apart: float | None = None,
    limit_seconds: float = math.inf,
    on_round: Callable[[int], object] = lambda done: None,
) -> Timing:
    """`measure`, spread over some seconds, and longer while the base is slower than it is known to be.

    Args:
        pace: Of the base; it is learnt from.
        turns: See `measure`, as are the others.
        count: Contenders.
        rounds: At most so many, but for `apart`.
        apart: See `measure`; `APART` where not given.
        limit_seconds: After so much time a measurement ends.
        on_round: Called now and then with the number of rounds so far.
    """
    apart = APART if apart is None else apart
    timing = measure(
        turns, count, rounds, limit_seconds=limit_seconds, apart=apart, pace=pace.seconds, on_round=on_round
    )
    pace.learn(timing.pace)
    return timing
