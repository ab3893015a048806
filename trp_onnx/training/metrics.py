"""What a run reports: JSON lines, kept in the run directory and passed to whoever started the worker."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from trp_onnx.training.job import METRICS


class _Sized(Protocol):
    steps: int


def tell(kind: str, **values: Any) -> None:
    """One line to the process that started this one."""
    print(json.dumps({"kind": kind} | values), flush=True)


class Metrics:
    """Lines of one run; only the first rank writes."""

    def __init__(self, run: Path, active: bool) -> None:
        """`active`: whether this process writes."""
        self._path = run / METRICS
        self._active = active
        self._last = time.perf_counter()
        self._last_step: int | None = None

    def start(self, step: int) -> None:
        """Drop the lines after a step, which will come again."""
        if not self._active:
            return
        kept = []
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
        self._path.write_text("".join(kept), encoding="utf-8")
        self._last_step = step

    def progress(
        self, step: int, total: int, loss: float | None, ratio: Callable[[], float], data: _Sized, every: float,
        seconds: float,
    ) -> None:  # fmt: skip
        """A line now and then."""
        now = time.perf_counter()
        if not self._active or now - self._last < every:
            return
        speed = (step - (self._last_step or 0)) / (now - self._last)
        self._last, self._last_step = now, step
        tell("step", step=step, total=total, epoch=step // data.steps + 1, loss=loss, macs=ratio(), speed=speed)

    def epoch(self, **values: Any) -> None:
        """A line for good."""
        if self._active:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
            tell("epoch", **values)
