"""Where results, progress and log lines go, and how they look there."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from trp_onnx.cli.help import GroupedCommand, GroupedOption
from trp_onnx.cli.options import OUTPUT

_NO_ROOM = (errno.ENOSPC, errno.EIO, errno.EDQUOT)


class _Lines(logging.Formatter):
    """Log lines for a terminal: names in them may be anything."""

    def format(self, record: logging.LogRecord) -> str:
        from trp_onnx.printable import printable

        return "\n".join(printable(line) for line in super().format(record).splitlines())


def log_to_stderr(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """What `--verbose` does: steps of ours, and lines that libraries print."""
    if not wanted:
        return
    from trp_onnx.process.silence import undisturbed

    logger, handler = logging.getLogger("trp_onnx"), logging.StreamHandler(undisturbed(sys.stderr))
    handler.setFormatter(_Lines("%(name)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)

    def undo() -> None:
        logger.removeHandler(handler)
        logger.setLevel(before)

    ctx.call_on_close(undo)


class Commands(click.Group):
    """Commands whose results may go anywhere: a closed stream, a full disk, a terminal of few characters."""

    command_class = GroupedCommand

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Every command has `--verbose`."""
        cmd.params.append(
            GroupedOption(
                ["-v", "--verbose"],
                group=OUTPUT,
                is_flag=True,
                expose_value=False,
                callback=log_to_stderr,
                help="Say on stderr what is done, and what libraries print.",
            )
        )
        super().add_command(cmd, name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command whatever stdout and stderr are."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:  # closed by the caller, who wants nothing of it
                setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  until the end
            elif isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except OSError as error:
            if error.filename is not None or error.errno not in _NO_ROOM:
                raise
            click.echo(f"trp-onnx: error: cannot print the result: {error.strerror}", err=True)
            with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())  # for what is left in the buffer
            sys.exit(1)
        return result


@contextmanager
def beside(out: Path) -> Iterator[None]:
    """While what belongs to a written result is written: if that fails, the result is there all the same, and said so.

    Raises:
        OutputError: It failed.
    """
    from trp_onnx.errors import OutputError

    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(f"'{out}' was written, its report was not")
        raise
    except OutputError as error:
        raise OutputError(f"'{out}' was written, its report was not: {str(error).partition(';')[0]}") from error


def show(parts: Sequence[Any], notes: Sequence[str] = (), warnings: Sequence[str] = ()) -> None:
    """Print a result to stdout: its tables, and what a reader should know.

    They are as wide as the terminal, or as COLUMNS says; where neither is known, in a pipe, 80 columns.
    """
    from rich.console import Console

    from trp_onnx.printable import message

    console = Console()
    for part in parts:
        console.print(part)
    for kind, lines, style in (("warning", warnings, "bold red"), ("note", notes, "yellow")):
        for line in lines:
            console.print(f"{kind}: {message(line)}", style=style, highlight=False, markup=False)


def write_json(document: dict[str, Any], target: str | None) -> None:
    """Write a result to a file, to stdout for "-", or nowhere."""
    if target is None:
        return
    text = json.dumps(document, indent=2) + "\n"
    if target == "-":
        click.echo(text, nl=False)
        return
    from trp_onnx.files.staging import write_text

    write_text(Path(target), text)
