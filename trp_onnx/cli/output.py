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
from typing import TYPE_CHECKING, Any

import click

from trp_onnx.cli.help import GroupedCommand, GroupedOption
from trp_onnx.cli.options import OUTPUT

if TYPE_CHECKING:
    from rich.console import Console

_NO_ROOM = (errno.ENOSPC, errno.EIO, errno.EDQUOT)


def consoles() -> tuple[Console, Console]:
    """Results go to stdout, everything else to stderr."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140
    return Console(width=width), Console(stderr=True)


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
                setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  until the end
            elif isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except OSError as error:
            if error.filename is not None or error.errno not in _NO_ROOM:
                raise
            click.echo(f"trp-onnx: error: cannot print the result: {error.strerror}", err=True)
            with Path(os.devnull).open("w") as nowhere:
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


def show(tables: Sequence[Any], notes: Sequence[str]) -> None:
    """Print tables and what a reader should know."""
    from trp_onnx.printable import message

    console = consoles()[0]
    for table in tables:
        console.print(table)
    for note in notes:
        console.print(f"note: {message(note)}", style="yellow", highlight=False, markup=False)


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
