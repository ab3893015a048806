"""Results as JSON that grows row by row, so that a stopped run goes on where it was."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

NAMES = {
    "resnet20": "ResNet-20", "resnet56": "ResNet-56", "squeezenet": "SqueezeNet 1.1", "mobilenet_v2": "MobileNetV2",
    "resnet18": "ResNet-18-shaped", "crnn": "CRNN", "ppocr_rec": "PP-OCR", "minilm": "MiniLM",
    "squeezenet1.1_imagenet": "SqueezeNet 1.1", "mobilenet_v2_1.0_224_imagenet_a": "MobileNetV2",
    "conv1d": "1-d convolutions", "matmul": "MatMul with LayerNormalization",
    "oww_embedding_model": "speech embedding (openWakeWord)",
}  # fmt: skip
"""What tables call a network."""

Row = dict[str, Any]


def rows_of(name: str) -> list[Row]:
    """The committed rows of one benchmark."""
    rows: list[Row] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    return rows


def name_of(net: str) -> str:
    """What tables call a network; one that is not in `NAMES` what the results call it."""
    return NAMES.get(net, net)


def by_network(rows: Iterable[Row]) -> list[Row]:
    """Rows in the order of `NAMES`, those of one network in that of the file."""
    places = {name: place for place, name in enumerate(dict.fromkeys(NAMES.values()))}
    return sorted(rows, key=lambda row: places.get(name_of(row["net"]), len(places)))


def faster(row: Row, key: str = "measured") -> str:
    """A measured speed-up, with its interval where there is one."""
    interval = f" ({row['low']:.2f}-{row['high']:.2f})" if "low" in row else ""
    return f"{row[key]:.2f}x{interval}"


def commit() -> str:
    """Of this checkout; what is not committed, other than results, shows as "-dirty"."""
    here = str(RESULTS.parent.parent)

    def git(*arguments: str) -> str:
        command = ["git", "-C", here, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return git("rev-parse", "--short", "HEAD") + "-dirty" * bool(changed)


class Results:
    """Rows of one benchmark, written after each; `key` names the columns that identify a row."""

    def __init__(self, name: str, key: Sequence[str]) -> None:
        self.path = RESULTS / f"{name}.json"
        self.key = tuple(key)
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            self.rows = json.loads(self.path.read_text())["rows"]

    def has(self, **key: Any) -> bool:
        """Whether the row was measured before."""
        return any(all(row[k] == key[k] for k in self.key) for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, with commit and hardware, in place of one with the same key, and write the file."""
        row = {"commit": commit(), "hardware": hardware()} | row
        if self.path.exists():  # another process may have added rows
            self.rows = json.loads(self.path.read_text())["rows"]
        self.rows = [old for old in self.rows if any(old[k] != row[k] for k in self.key)] + [row]
        packages = ("trp-onnx", "onnx", "onnxruntime", "numpy", "scipy")
        document = {
            "machine": f"{platform.system()} {platform.machine()}",
            "versions": {"python": platform.python_version()} | {p: metadata.version(p) for p in packages},
            "rows": self.rows,
        }
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text(json.dumps(document, indent=1) + "\n")


def hardware() -> str:
    """The processor and its cores."""
    from trp_onnx.runners import open_runner

    return f"{open_runner().describe().machine}, {os.cpu_count()} cores"


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)
