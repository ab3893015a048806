"""Networks that are no classifiers, compressed with unlabelled samples and judged by their own tasks.

    crnn       EasyOCR's reader of text lines: lines that are read exactly, per cent
    ppocr_rec  PP-OCRv4's reader of text lines: the same
    minilm     all-MiniLM-L6-v2, two inputs: Spearman's correlation of cosines with human scores, times 100

Each is asked for speed-ups, and for what `--max-drop` allows by a metric without labels: a point of the lines that are
read as the original reads them, or 0.01 of the mean cosine; with layers that are fitted alone, and in turn
(`--asymmetric`), and with channels removed as well. The command runs as that of a user, nothing cached. The test
samples are run once, on the file that was written; `--out` keeps the files.

    python benchmarks/tasks.py --data DIR --out DIR [crnn] [ppocr_rec] [minilm]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _results import Results, Row, by_network, faster, markdown, name_of
from scipy.stats import spearmanr

import trp_onnx

HERE = Path(__file__).parent
Outputs = Mapping[str, np.ndarray]

ASKED: dict[str, tuple[str, ...]] = {
    "speedup 1.2": ("--speedup", "1.2"),
    "speedup 1.3": ("--speedup", "1.3"),
    "speedup 1.4": ("--speedup", "1.4"),
    "speedup 1.5": ("--speedup", "1.5"),
    "speedup 2": ("--speedup", "2"),
    "max-drop": (),
}
METHODS = {
    "alone": ("--no-widths",),
    "in turn": ("--no-widths", "--asymmetric"),
    "ranks and widths": ("--asymmetric",),
}
LIMIT = {
    "crnn": ("--max-drop", "1", "--metric", "tasks:read_alike"),
    "ppocr_rec": ("--max-drop", "1", "--metric", "tasks:read_alike"),
    "minilm": ("--max-drop", "0.01", "--metric", "cosine"),
}


@trp_onnx.metric(unit="%")
def read_alike(outputs: Outputs, original: Outputs) -> float:
    """Lines that both files read as the same text: outputs (n, t, classes), greedy CTC."""
    pairs = zip(*(_read(side) for side in (outputs, original)), strict=True)
    return 100 * float(np.mean([np.array_equal(*pair) for pair in pairs]))


class LinesRead:
    """Lines that are read exactly, per cent, spaces ignored."""

    unit, name = "%", "lines read exactly"

    def __init__(self, charset: np.ndarray) -> None:
        self._charset, self._right = charset, list[bool]()

    def update(self, outputs: Outputs, labels: np.ndarray) -> None:
        """A batch: labels (n,) are texts."""
        for line, text in zip(_read(outputs), labels, strict=True):
            self._right.append("".join(self._charset[line]).replace(" ", "") == str(text).replace(" ", ""))

    def result(self) -> float:
        """Of all lines."""
        return 100 * float(np.mean(self._right))


@trp_onnx.metric(unit="", name="Spearman x 100")
def spearman(outputs: Outputs, labels: np.ndarray) -> float:
    """Of pairs: sentences (2n, t, d), the first n of each pair first; labels (2n, t + 1): the mask, then the score."""
    (hidden,) = outputs.values()
    pooled = (hidden * labels[:, :-1, None]).sum(axis=1)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    one, other = np.split(pooled, 2)
    return 100 * float(spearmanr((one * other).sum(axis=1), labels[: len(one), -1]).statistic)


def _read(outputs: Outputs) -> list[np.ndarray]:
    """Classes of each line: repeats merged, class 0 is the blank."""
    (scores,) = outputs.values()
    best = scores.argmax(axis=-1)
    kept = (best != 0) & np.concatenate([np.ones_like(best[:, :1], bool), best[:, 1:] != best[:, :-1]], axis=1)
    return [line[keep] for line, keep in zip(best, kept, strict=True)]


def main() -> None:
    """Measure the rows that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--asked", action="append", choices=ASKED, help="only these; may be repeated")
    parser.add_argument("--method", action="append", choices=METHODS, help="only these; may be repeated")
    parser.add_argument("--again", action="store_true", help="measure rows that there are once more")
    parser.add_argument("nets", nargs="*", default=list(LIMIT))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = Results("tasks", key=("net", "asked", "method"))
    for net in arguments.nets:
        for asked in arguments.asked or ASKED:
            for method in arguments.method or METHODS:
                if arguments.again or not results.has(net=net, asked=asked, method=method):
                    results.add(measure(net, asked, method, arguments))
                    print(results.rows[-1], flush=True)
    print(table(results.rows))


def measure(net: str, asked: str, method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    source, data = (arguments.data / f"{net}{end}" for end in (".onnx", "_cal.npz"))
    written = arguments.out / f"{net}-{asked}-{method}.onnx".replace(" ", "-")
    row: dict[str, Any] = {"net": net, "asked": asked, "method": method}
    with tempfile.TemporaryDirectory() as folder:
        document = Path(folder) / "out.json"
        how = (*(ASKED[asked] or LIMIT[net]), *METHODS[method])
        command = ["compress", source, "-o", written, "--data", data, *how, "--json", document]
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "trp_onnx", *map(str, command), "-q"], cwd=HERE,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                   env=os.environ | {"TRP_ONNX_CACHE": folder})  # fmt: skip
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        row |= {"seconds": round(time.perf_counter() - start, 1), "memory_mb": round(usage.ru_maxrss / 1e3)}
        if status:
            return row | {"refused": said.strip().splitlines()[-1]}
        report = json.loads(document.read_text())
    latency = report["latency"]
    test, metric = task(net, arguments.data)
    scores = trp_onnx.evaluate(written, test, metric=metric, against=source)
    return row | {
        "samples": scores.after.samples, "before": round(scores.before.value, 2), "after": round(scores.after.value, 2),
        "lost": round(scores.lost, 2), "macs_ratio": round(report["macs"]["ratio"], 4),
        "predicted": round(latency["predicted"], 4), "measured": round(latency["measured"]["median"], 4),
        "low": round(latency["measured"]["low"], 4), "high": round(latency["measured"]["high"], 4),
        "phases": report["seconds"],
    }  # fmt: skip


def task(net: str, folder: Path) -> tuple[dict[str, np.ndarray], Any]:
    """Labelled test samples and the metric of a network's task."""
    with np.load(folder / f"{net}_test.npz") as arrays:
        if net != "minilm":
            return {"x": arrays["x"], "y": arrays["text"]}, LinesRead(arrays["charset"])
        names = ("input_ids", "attention_mask")
        feeds = {name: np.concatenate([arrays[f"{side}_{name}"] for side in "ab"]) for name in names}
        scores = np.tile(arrays["score"], 2)[:, None]
        return feeds | {"y": np.concatenate([feeds["attention_mask"], scores], axis=1)}, spearman


SAID = {"crnn": "at most 1 point of lines read otherwise", "minilm": "at most 0.01 of the mean cosine"}
SAID["ppocr_rec"] = SAID["crnn"]
"""`LIMIT` in words."""


def unit_of(row: Row) -> str:
    """Of a network's score."""
    return "" if row["net"] == "minilm" else "%"


def asked_for(row: Row) -> str:
    """The goal of a row in words."""
    return (
        SAID.get(row["net"], "what loses little")
        if row["asked"] == "max-drop"
        else f"{row['asked'].removeprefix('speedup ')}x"
    )


def table(measured: Sequence[Row]) -> str:
    """A line for each network, goal and method."""
    places = {name: place for place, name in enumerate((*ASKED, *METHODS))}
    ordered = sorted(measured, key=lambda row: (places[row["asked"]], places[row["method"]]))
    lines = []
    for row in by_network(ordered):
        told: list[object] = [name_of(row["net"]), asked_for(row), row["method"]]
        if "refused" in row:
            told += ["", "", row["refused"]]
        else:
            told += [f"{row['before']:.2f}{unit_of(row)}", f"{-row['lost'] + 0.0:+.2f}", faster(row)]
        lines.append([*told, f"{row['seconds']:.0f}", f"{row['memory_mb'] / 1e3:.1f} GB"])
    return markdown(
        ("network", "asked for", "layers fitted", "before", "after", "measured", "seconds", "memory"), lines
    )


if __name__ == "__main__":
    main()
