"""What a run reports: JSON lines, kept in the run directory and passed to whoever started the worker."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from trp_onnx.files.staging import write_text
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
        kept = [point for point in _points(self._path) if point["step"] <= step]
        write_text(self._path, "".join(json.dumps(point) + "\n" for point in kept))
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
    wanted = ("epoch", "loss", "accuracy", "macs")
    return tuple({name: point[name] for name in wanted} for point in _points(run / METRICS))


def _points(path: Path) -> list[dict[str, Any]]:
    """The lines that can be read; one that a killed worker left half is none."""
    points = []
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                point = json.loads(line)
                if isinstance(point, dict) and _is_whole(point):
                    points.append(point)
    return points


def _is_whole(point: dict[str, Any]) -> bool:
    values = [point.get(name) for name in ("step", "epoch", "loss", "macs")]
    if point.get("accuracy", "missing") is not None:  # without labels there is none
        values.append(point.get("accuracy"))
    return all(isinstance(value, (int, float)) for value in values)
