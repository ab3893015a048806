"""Verdicts of `inspect`, by weights and with data, beside what came true in `without_training` and `tasks`.

    python benchmarks/verdicts.py --models DIR --data DIR --tasks DIR [NET ...]

A latency table is that of the cache, where there is one (`TRP_ONNX_CACHE`). DIR of --tasks is `tasks.py`'s --data.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _results import NAMES, Results, Row, markdown, rows_of
from without_training import NETS, split

import trp_onnx

READERS = ("crnn", "ppocr_rec", "minilm")


def main() -> None:
    """Ask for the verdicts that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("models", "data", "tasks"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("nets", nargs="*", default=[*NETS, *READERS])
    arguments = parser.parse_args()
    results = Results("verdicts", key=("net", "errors_of"))
    for net in arguments.nets:
        for errors_of in ("weights", "outputs"):
            if not results.has(net=net, errors_of=errors_of):
                results.add(measure(net, errors_of, arguments))
                print(results.rows[-1], flush=True)
    print(table(results.rows))


def measure(net: str, errors_of: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One verdict."""
    shapes = None
    if net in NETS:
        model, data = arguments.models / NETS[net].file, split(NETS[net], arguments.data)[0]
    else:
        model, data = arguments.tasks / f"{net}.onnx", arguments.tasks / f"{net}_cal.npz"
        with np.load(data) as arrays:
            shapes = {name: (1, *arrays[name].shape[1:]) for name in arrays}
    start = time.process_time()
    if errors_of == "outputs":
        found = trp_onnx.inspect(model, data=data)
    else:
        found = trp_onnx.inspect(model, input_shapes=shapes)
    assert found.outlook is not None
    fields = found.outlook
    return {
        "net": net, "errors_of": fields.errors_of, "judged_by": fields.judged_by, "means": list(fields.means),
        "fastest": fields.fastest, "by_rank": fields.by_rank, "at_a_loss": fields.at_a_loss,
        "by_training": fields.by_training, "cpu_seconds": round(time.process_time() - start, 1),
    }  # fmt: skip


def table(measured: Sequence[Row]) -> str:
    """Networks down: verdicts, then what came true of `--asymmetric --no-widths`."""
    found = {(row["net"], row["errors_of"]): row for row in measured}
    lines = []
    for net in (net for net in NAMES if (net, "weights") in found):
        lines.append((NAMES[net], *(_told(found.get((net, of))) for of in ("weights", "outputs")), _came_true(net)))
    return markdown(("network", "verdict by weights", "verdict with `--data`", "what came true of ranks alone"), lines)


def _told(row: Row | None) -> str:
    """What is expected of ranks alone."""
    if row is None:
        return ""
    of = "x" if row["judged_by"] == "time" else "x fewer MACs"
    levels = {"a point at most": row["by_rank"], "a few points": row["at_a_loss"]}
    said = [f"{words}: {speedup:.2f}{of}" for words, speedup in levels.items() if speedup is not None]
    return "; ".join(said) or "ranks alone do not help"


def _came_true(net: str) -> str:
    """Points of the task's score, at what speed-up and how many times fewer MACs."""
    rows = [row for name in ("without_training", "tasks") for row in rows_of(name) if row["net"] == net]
    rows = sorted((r for r in rows if r["method"] == "in turn" and "macs_ratio" in r), key=lambda r: r["measured"])
    change = {id(row): row["points"] if "points" in row else -row["lost"] for row in rows}
    return ", ".join(
        f"{change[id(row)]:+.2f} at {row['measured']:.2f}x ({1 / row['macs_ratio']:.2f}x fewer MACs)" for row in rows
    )


if __name__ == "__main__":
    main()
