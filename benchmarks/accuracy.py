"""The floor: accuracy after direct factorisation, with no data and no training.

Four real networks, three MACs targets, spatial, channel and auto schemes, rank 1 apart (no alignment, so
that the schemes are compared and not the rounding). Accuracy is measured on the written file.

    python benchmarks/accuracy.py --models DIR --cifar cifar10_test.npz --imagenet imagenet_sample.npz
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from _results import Results, Row, markdown

import trp_onnx

CIFAR = trp_onnx.Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
NETWORKS = {
    "resnet20_cifar10": ("cifar", CIFAR),
    "resnet56_cifar10": ("cifar", CIFAR),
    "squeezenet1.1_imagenet": ("imagenet", trp_onnx.Preprocessing(mean=(104, 117, 123), color="bgr", crop=227)),
    "mobilenet_v2_1.0_224_imagenet_a": (
        "imagenet",
        trp_onnx.Preprocessing(scale=1 / 127.5, mean=(1.0,), crop=224, label_offset=1),
    ),
}
TARGETS = (0.8, 0.65, 0.5)
SCHEMES = ("spatial", "channel", "auto")


def main() -> None:
    """Measure the rows that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("models", "cifar", "imagenet"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = vars(parser.parse_args())
    results = Results("accuracy", key=("model", "scheme", "target"))
    for name, (kind, preprocessing) in NETWORKS.items():
        model = arguments["models"] / f"{name}.onnx"
        dataset = trp_onnx.open_data(arguments[kind], preprocessing)
        baseline = None
        for scheme in SCHEMES:
            for target in TARGETS:
                if results.has(model=name, scheme=scheme, target=target):
                    continue
                baseline = baseline or trp_onnx.evaluate(model, dataset)
                results.add(measure(model, name, scheme, target, dataset, baseline))
                print(results.rows[-1], flush=True)
    print(table(results.rows))


def measure(
    model: Path, name: str, scheme: str, target: float, dataset: trp_onnx.Dataset, baseline: trp_onnx.Score
) -> dict[str, object]:
    """One row."""
    row: dict[str, object] = {"model": name, "scheme": scheme, "target": target}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        start = time.perf_counter()
        try:
            search = trp_onnx.SearchSpace(scheme=scheme, align=1)
            report = trp_onnx.compress(model, out, trp_onnx.Goal(macs=target), search=search).report
        except trp_onnx.TargetError as error:
            return row | {"unreachable": str(error)}
        seconds = time.perf_counter() - start
        accuracy = trp_onnx.evaluate(out, dataset)
    return row | {
        "macs_ratio": round(report.macs.ratio, 4),
        "parameters_ratio": round(report.parameters.ratio, 4),
        "output_error": report.outputs[0].relative_error,
        "accuracy_before": baseline.value / 100,
        "accuracy_after": accuracy.value / 100,
        "samples": accuracy.samples,
        "compress_seconds": round(seconds, 2),
    }


def table(measured: Sequence[Row]) -> str:
    """Networks and schemes down, targets across."""
    cells = {(row["model"], row["scheme"], row["target"]): row for row in measured}
    rows = []
    for name in NETWORKS:
        for scheme in SCHEMES:
            found = [cells.get((name, scheme, target)) for target in TARGETS]
            before = next((f"{row['accuracy_before']:.2%}" for row in found if row and "accuracy_before" in row), "")
            rows.append([name, scheme, before, *(_cell(row) for row in found)])
    return markdown(["network", "scheme", "dense", *(f"MACs {target:g}" for target in TARGETS)], rows)


def _cell(row: dict[str, object] | None) -> str:
    if row is None:
        return ""
    return "out of reach" if "unreachable" in row else f"{row['accuracy_after']:.2%}"


if __name__ == "__main__":
    main()
