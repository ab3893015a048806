"""Progress on anything that may take over two seconds, shown by the CLI and silent in a library.

The API wraps its loops in `track`; the CLI sets a rich `Progress` for the time of a command.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from trp_onnx.printable import message, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

T = TypeVar("T")

logger = logging.getLogger(__name__)

_current: ContextVar[Progress | None] = ContextVar("progress", default=None)
_notes: ContextVar[list[str] | None] = ContextVar("notes", default=None)


@contextmanager
def shown_on(console: Console) -> Iterator[None]:
    """Show the progress of everything inside on a console; bars vanish when they are done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        token = _current.set(progress)
        try:
            yield
        finally:
            _current.reset(token)


def say(line: str) -> None:
    """A line that stays, above the bars."""
    progress = _current.get()
    if progress is not None:
        progress.console.print(message(line), highlight=False, markup=False, soft_wrap=True)


@contextmanager
def collected_notes() -> Iterator[list[str]]:
    """Collect what `note` says inside, for a result to carry: a library user has no terminal to read."""
    notes: list[str] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def note(text: str) -> None:
    """Tell the user something, once and at once, and in the result where notes are collected; else the log has it."""
    notes = _notes.get()
    if notes is not None and text in notes:
        return
    say(f"note: {text}")
    if notes is not None:
        notes.append(text)
    elif _current.get() is None:
        logger.warning(text)


def track(items: Iterable[T], description: str, total: int | None = None, *, weight: int = 1) -> Iterator[T]:
    """Iterate, and show how far it is, the rate and the time left.

    Args:
        items: What to iterate over.
        description: What is being done.
        total: Number of items; `len(items)` where it has one.
        weight: How much each item counts (images in a batch).
    """
    progress = _current.get()
    if progress is None:
        yield from items
        return
    if total is None and isinstance(items, Sequence):
        total = len(items)
    task = progress.add_task(description, total=total, rate="")
    try:
        for item in items:
            yield item
            progress.advance(task, weight)
            speed = progress.tasks[progress.task_ids.index(task)].speed
            progress.update(task, rate=f"{speed:.1f}/s" if speed else "")
    finally:
        progress.remove_task(task)


@contextmanager
def watch(description: str) -> Iterator[Callable[[int | None, int | None, str], None]]:
    """Show the progress of work that is done elsewhere.

    Yields:
        A function of how far it is, of how much (None: as before), and a line; a line without a place is
        printed above the bar and stays.
    """
    progress = _current.get()
    if progress is None:
        yield lambda done, total, line: None
        return
    from rich.markup import escape

    task = progress.add_task(description, total=None, rate="")

    def show(done: int | None, total: int | None, line: str) -> None:
        if done is None:
            say(line)
            return
        progress.update(task, completed=done, total=total, description=escape(printable(line)))

    try:
        yield show
    finally:
        progress.remove_task(task)
