"""Results as JSON that grows row by row, so that a stopped run goes on where it was."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


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
        """Keep a row, in place of one with the same key, and write the file."""
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


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)
