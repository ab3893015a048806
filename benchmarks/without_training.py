"""Accuracy without training at a speed-up, by ways to plan: by weights, by data, by damage, in turn, with widths.

Ranks are planned by time on one thread. Factors and ranks are fitted to 512 training images (of the ImageNet sample:
512 of its 1000, and the other 488 are the test); accuracy is that of the written file. Times come second, for a
machine that does nothing else:

    python benchmarks/without_training.py --models DIR --data DIR --out DIR
    python benchmarks/without_training.py --models DIR --data DIR --out DIR --time

DIR of --data holds cifar10_train.npz, cifar10_test.npz and imagenet_sample.npz.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _results import NAMES, Results, Row, markdown

import trp_onnx
from trp_onnx import SearchSpace

CIFAR = trp_onnx.Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
FITTED = 512


@dataclass(frozen=True)
class Net:
    """A network, its data, and the speed-ups to reach."""

    file: str
    data: str
    preprocessing: trp_onnx.Preprocessing
    speedups: tuple[float, ...] = (1.2, 1.5, 2.0)


NETS = {
    "resnet56": Net("resnet56_cifar10.onnx", "cifar10", CIFAR),
    "squeezenet": Net(
        "squeezenet1.1_imagenet.onnx", "imagenet", trp_onnx.Preprocessing(mean=(104, 117, 123), color="bgr", crop=227),
        (1.2, 1.25, 1.3, 1.5, 2.0),
    ),
    "mobilenet_v2": Net(
        "mobilenet_v2_1.0_224_imagenet_a.onnx", "imagenet",
        trp_onnx.Preprocessing(scale=1 / 127.5, mean=(1.0,), crop=224, label_offset=1), (1.15, 1.2, 1.3, 1.5, 2.0),
    ),
    "resnet20": Net("resnet20_cifar10.onnx", "cifar10", CIFAR),
}  # fmt: skip
METHODS = {
    "weights": SearchSpace(),
    "data": SearchSpace(plan_by="weights", widths=False),
    "data + planner": SearchSpace(plan_by="outputs", widths=False),
    "in turn": SearchSpace(plan_by="outputs", asymmetric=True, widths=False),
    "ranks and widths": SearchSpace(plan_by="outputs", asymmetric=True),
}


def main() -> None:
    """Measure the rows that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("models", "data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--time", action="store_true", help="time the files that are there")
    parser.add_argument("--method", action="append", choices=METHODS, help="only these; may be repeated")
    parser.add_argument("--speedup", action="append", type=float, help="only these; may be repeated")
    parser.add_argument("nets", nargs="*", default=list(NETS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = Results("without_training", key=("net", "method", "speedup"))
    if arguments.time:
        put_times(results, arguments)
    else:
        for name in arguments.nets:
            for speedup in arguments.speedup or NETS[name].speedups:
                for method in arguments.method or METHODS:
                    if not results.has(net=name, method=method, speedup=speedup):
                        results.add(measure(name, method, speedup, arguments))
                        print(results.rows[-1], flush=True)
    print(table(results.rows))


def split(net: Net, folder: Path) -> tuple[trp_onnx.Dataset, trp_onnx.Dataset]:
    """What is fitted to, and the test."""
    if net.data == "cifar10":
        train, test = (
            trp_onnx.open_data(folder / f"cifar10_{part}.npz", net.preprocessing) for part in ("train", "test")
        )
        return train.subset(np.random.default_rng(0).permutation(len(train))[:FITTED]), test
    sample = trp_onnx.open_data(folder / "imagenet_sample.npz", net.preprocessing)
    order = np.random.default_rng(0).permutation(len(sample))
    return sample.subset(order[:FITTED]), sample.subset(order[FITTED:])


def _file(name: str, method: str, speedup: float, out: Path) -> Path:
    return out / f"{name}-{method.replace(' + ', '-')}-{speedup:g}.onnx"


def measure(name: str, method: str, speedup: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    net = NETS[name]
    fitted, test = split(net, arguments.data)
    written = _file(name, method, speedup, arguments.out)
    row: dict[str, Any] = {"net": name, "method": method, "speedup": speedup}
    start = time.perf_counter()
    try:
        report = trp_onnx.compress(
            arguments.models / net.file, written, trp_onnx.Goal(speedup=speedup), test=test,
            data=None if method == "weights" else fitted, search=METHODS[method],
        ).report  # fmt: skip
    except trp_onnx.TargetError as error:
        return row | {"unreachable": str(error)}
    seconds = time.perf_counter() - start
    assert report.score is not None
    return row | {
        "before": report.score.before.value / 100, "after": report.score.after.value / 100,
        "points": round(-report.score.lost, 2),
        "samples": len(test), "macs_ratio": round(report.macs.ratio, 4),
        "predicted": round(report.latency.predicted or 0, 4) if report.latency else None,
        "measured": round(report.latency.measured.median, 4) if report.latency and report.latency.measured else None,
        "spaces_cut": sum(space.kept < space.units for space in report.spaces), "seconds": round(seconds, 1),
    }  # fmt: skip


def put_times(results: Results, arguments: argparse.Namespace) -> None:
    """The files of one speed-up against the original, in one interleaved run: more would take each other's caches."""
    for name, speedup in dict.fromkeys((row["net"], row["speedup"]) for row in results.rows):
        net = NETS[name]
        rows = [row for row in results.rows if (row["net"], row["speedup"]) == (name, speedup) and "after" in row]
        rows = [row for row in rows if _file(name, row["method"], row["speedup"], arguments.out).exists()]
        if not rows:
            continue
        files = [_file(name, row["method"], row["speedup"], arguments.out) for row in rows]
        found = trp_onnx.bench([arguments.models / net.file, *files]).contenders[1:]
        for row, contender in zip(rows, found, strict=True):
            row["measured"] = round(contender.ratio.median, 3)
    document = json.loads(results.path.read_text())
    document["rows"] = results.rows
    results.path.write_text(json.dumps(document, indent=1) + "\n")


COLUMNS = {
    "weights": "by weights", "data": "with data", "data + planner": "with data, ranks by damage",
    "in turn": "the same, `--asymmetric`", "ranks and widths": "the same, channels too",
}  # fmt: skip


def table(measured: Sequence[Row]) -> str:
    """Networks and speed-ups down, methods across."""
    lines = []
    methods = [method for method in METHODS if any(row["method"] == method for row in measured)]
    for name in (name for name in NAMES if name in NETS):
        for speedup in NETS[name].speedups:
            found = {r["method"]: r for r in measured if r["net"] == name and r["speedup"] == speedup}
            if not found:
                continue
            dense = next((f"{row['before']:.2%}" for row in found.values() if "before" in row), "")
            lines.append((NAMES[name], f"{speedup:g}x", dense, *(_cell(found.get(method)) for method in methods)))
    return markdown(("network", "asked for", "dense", *(COLUMNS[method] for method in methods)), lines)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if "unreachable" in row:
        return "out of reach"
    return f"{row['points']:+.2f} at {row['measured'] or row['predicted']:.2f}x"


if __name__ == "__main__":
    main()
