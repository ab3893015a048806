"""What CONTRIBUTING.md holds us to and no linter checks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO

MOST_LINES = 60
FILES = sorted([*(REPO / "trp_onnx").rglob("*.py"), *(REPO / "passes").rglob("*.py")])


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and lines of each function, those of its docstring not counted."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            first = node.body[0]
            if ast.get_docstring(node) is not None and first.end_lineno is not None:
                lines -= first.end_lineno - first.lineno + 1
            yield node.name, lines


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPO)))
def test_functions_are_short(path: Path) -> None:
    assert [(name, lines) for name, lines in functions(path) if lines > MOST_LINES] == []
