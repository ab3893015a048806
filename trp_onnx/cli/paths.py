"""What the command line writes, held against what it reads."""

from __future__ import annotations

from pathlib import Path

import click


def guard_paths() -> None:
    """Before the work: hold all that the command line writes against all that it reads; `paths` says what for."""
    from trp_onnx.files.paths import REPORT_FILES, default_output, guard

    context = click.get_current_context()
    given = dict(context.params)
    writes = [given.pop(name, None) for name in ("json_to", "save_plan", "card", "out")]
    report, *others = (given.pop(name, None) for name in ("report_dir", "folder", "run"))
    if context.command.name == "compress":
        out = writes[-1] = writes[-1] or default_output(given["model"])
        writes += [f"{out}.data", f"{out}.1.data"]
    reads = [entry for value in given.values() for entry in (value if isinstance(value, tuple) else [value])]
    guard(
        writes=[path for path in writes if path != "-"],
        folders=[(report, REPORT_FILES), *((folder, ()) for folder in others)],
        reads=[path for path in reads if isinstance(path, Path)],
    )
