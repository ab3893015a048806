"""What a run reports: JSON lines, kept in the run directory and passed to whoever started the worker."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from trp_onnx.training.job import METRICS

_REPORT_SECONDS = 1.0


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
        self._images = 0

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
        self._last = time.perf_counter()

    def progress(self, images: int, **values: Any) -> None:
        """A line now and then, with the images a second since the last one.

        Args:
            images: Of this step, over all workers.
            values: What else to say.
        """
        self._images += images
        seconds = time.perf_counter() - self._last
        if self._active and seconds >= _REPORT_SECONDS:
            tell("step", images_per_second=self._images / seconds, **values)
            self._last, self._images = time.perf_counter(), 0

    def epoch(self, **values: Any) -> None:
        """A line for good."""
        if self._active:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
            tell("epoch", **values)


def read_curve(run: Path) -> tuple[dict[str, Any], ...]:
    """Epoch, loss, accuracy and part of the MACs of each epoch of a run."""
    points = []
    with contextlib.suppress(OSError):
        for line in (run / METRICS).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError, KeyError):
                point = json.loads(line)
                points.append({name: point[name] for name in ("epoch", "loss", "accuracy", "macs")})
    return tuple(points)
