"""Every real model through `compress --macs 0.6`: what the table in `docs/real-models.md` shows.

Run `python benchmarks/real_models.py --models DIR`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from _results import Results, Row, markdown

import trp_onnx

TARGET = 0.6


def main() -> None:
    """Compress each model once, with alignment 1 and with that of this machine's CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    arguments = parser.parse_args()
    results = Results("real_models", key=("model", "align"))
    results.rows = []
    for path in sorted(arguments.models.glob("*.onnx")):
        for align in (1, 16):
            results.add({"model": path.stem, "align": align} | measure(path, align))
    print(table(results.rows))


def measure(path: Path, align: int) -> dict[str, object]:
    """One row; a target out of reach is a row too."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        try:
            report = trp_onnx.compress(
                path, Path(folder) / "out.onnx", trp_onnx.Goal(macs=TARGET), search=trp_onnx.SearchSpace(align=align)
            ).report
        except trp_onnx.TargetError as error:
            return {"unreachable": str(error)}
        seconds = time.perf_counter() - start
    return {
        "macs_ratio": round(report.macs.ratio, 4),
        "parameters_ratio": round(report.parameters.ratio, 4),
        "output_error": float(f"{max(output.relative_error for output in report.outputs):.3g}"),
        "layers": len(report.layers),
        "schemes": dict(Counter(layer.scheme or "kept" for layer in report.layers).most_common()),
        "seconds": round(seconds, 1),
    }


def table(measured: Sequence[Row]) -> str:
    """Models down."""
    header = ("model", "align", "MACs ratio", "parameters ratio", "output error", "layers", "schemes", "seconds")
    return markdown(header, [_row(row) for row in measured])


def _row(row: Row) -> list[object]:
    if "unreachable" in row:
        return [row["model"], row["align"], row["unreachable"], "", "", "", "", ""]
    schemes = ", ".join(f"{count} {name}" for name, count in row["schemes"].items())
    keys = ("model", "align", "macs_ratio", "parameters_ratio", "output_error", "layers")
    return [*(row[key] for key in keys), schemes, row["seconds"]]


if __name__ == "__main__":
    main()
