"""A latency ratio by the fair protocol: two sessions interleaved, order flipped every round, median of ratios."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

ROUNDS = 60
SAMPLE_SECONDS = 0.003


def latency_ratio(before: Path, after: Path, shape: tuple[int, ...], rounds: int = ROUNDS) -> float:
    """Time of `before` divided by time of `after`: batch as in `shape`, one thread, CPU provider."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    runs = [_bound(path, x) for path in (before, after)]
    for run in runs:
        for _ in range(5):
            run()
    repeats = []
    for run in runs:
        start = time.perf_counter()
        run()
        repeats.append(max(1, round(SAMPLE_SECONDS / (time.perf_counter() - start))))
    ratios = []
    for round_ in range(rounds):
        seconds = [0.0, 0.0]
        for i in (0, 1) if round_ % 2 == 0 else (1, 0):
            start = time.perf_counter()
            for _ in range(repeats[i]):
                runs[i]()
            seconds[i] = (time.perf_counter() - start) / repeats[i]
        ratios.append(seconds[0] / seconds[1])
    return float(np.median(ratios))


def _bound(path: Path, x: np.ndarray) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    output = session.run(None, {name: x})[0]
    binding = session.io_binding()
    binding.bind_input(name, "cpu", 0, x.dtype, x.shape, x.ctypes.data)
    binding.bind_output(session.get_outputs()[0].name, "cpu", 0, output.dtype, output.shape, output.ctypes.data)
    binding_holds = (x, output)

    def run() -> tuple[np.ndarray, ...]:
        session.run_with_iobinding(binding)
        return binding_holds

    return run
