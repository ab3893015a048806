"""Hook of mkdocs: pages that stand elsewhere in the repository, and pages that are made from the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = {
    "architecture.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "benchmarks.md": "benchmarks/README.md",
}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    from mkdocs.structure.files import File

    pages = {name: _within_docs((ROOT / path).read_text(encoding="utf-8")) for name, path in ELSEWHERE.items()}
    pages |= {"reference/python.md": _python(), "reference/json.md": _json()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """An option without a default has none."""
    return html.replace("<code>Sentinel.UNSET</code>", "")


def _within_docs(text: str) -> str:
    """Links to `docs/` become links between pages."""
    return re.sub(r"\]\(docs/", "](", text)


def _python() -> str:
    """Every public name with its docstring: commands first, then types, then errors."""
    import trp_onnx

    values = {name: getattr(trp_onnx, name) for name in trp_onnx.__all__ if name != "__version__"}
    errors = [n for n, v in values.items() if isinstance(v, type) and issubclass(v, Exception)]
    types = [n for n, v in values.items() if isinstance(v, type) and n not in errors]
    functions = [n for n in values if n not in errors and n not in types]
    lines = ["# Python", "", "Made from the docstrings of `import trp_onnx`.", ""]
    for title, names in (("Functions", functions), ("Types", types), ("Errors", errors)):
        lines += [f"## {title}", ""]
        for name in sorted(names):
            value = values[name]
            lines += [f"::: {value.__module__}.{value.__qualname__}", ""]
    return "\n".join(lines)


def _json() -> str:
    """Schemas of the files that are read, and of what `--json` writes as far as it is one dataclass."""
    import json

    import msgspec

    import trp_onnx

    pages = {
        "--training FILE": trp_onnx.TrainingOptions,
        "--preprocess FILE": trp_onnx.Preprocessing,
        "--latency-table FILE": trp_onnx.LatencyTable,
        "inspect --json": trp_onnx.Inspection,
        "bench --json": trp_onnx.Bench,
        "doctor --json": trp_onnx.Diagnosis,
        "compress --json: an entry of layers": trp_onnx.Decision,
    }
    lines = ["# JSON and TOML documents", "", "JSON Schemas, made from the types that the files are held to.", ""]
    for title, kind in pages.items():
        schema = json.dumps(msgspec.json.schema(kind), indent=2)
        lines += [f"## `{title}`", "", f'??? note "Schema of {kind.__name__}"', ""]
        lines += ["    ```json", *(f"    {line}" for line in schema.splitlines()), "    ```", ""]
    return "\n".join(lines)
