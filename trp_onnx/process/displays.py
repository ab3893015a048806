"""Where progress is shown: as bars in a terminal, as one bar in a notebook, to a function of the user's, or nowhere."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from html import escape as html
from typing import TYPE_CHECKING, Any, Protocol

from trp_onnx.printable import message, printable
from trp_onnx.process.silence import undisturbed

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger("trp_onnx.progress")

OFF = "TRP_ONNX_NO_PROGRESS"
"""Environment variable that, set to anything, has nothing shown."""

Callback = Callable[[str, int, int | None], None]
"""Takes what is being done, how far it is, and of how much (None: not known)."""

_AGAIN = 0.1  # seconds between two pictures
_one_at_a_time = threading.Lock()


class Display(Protocol):
    """What shows progress."""

    def bar(self, what: str, total: int | None, *, rated: bool = False) -> AbstractContextManager[Callback]:
        """One piece of work; the function says how far it is. `rated`: things are counted, and so many a second."""

    def say(self, line: str) -> None:
        """Show a line that stays."""


class Silent:
    """Nothing is shown."""

    @contextmanager
    def bar(self, what: str, total: int | None, *, rated: bool = False) -> Iterator[Callback]:
        """See `Display`."""
        yield lambda what, done, total: None

    def say(self, line: str) -> None:
        """See `Display`; the log has it."""
        logger.info("%s", line)


class Told(Silent):
    """A function is called at the beginning of each piece of work and after each step of it."""

    def __init__(self, callback: Callback) -> None:
        """Call this one; what it raises ends the work."""
        self._callback = callback

    @contextmanager
    def bar(self, what: str, total: int | None, *, rated: bool = False) -> Iterator[Callback]:
        """See `Display`."""
        self._callback(what, 0, total)
        yield self._callback


class Notebook(Silent):
    """The bar of what was begun last, in the output of a cell; gone when the work is done."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._open: list[str] = []
        self._handle: Any = None
        self._shown = 0.0

    @contextmanager
    def bar(self, what: str, total: int | None, *, rated: bool = False) -> Iterator[Callback]:
        """See `Display`."""
        place = len(self._open)

        def moved(what: str, done: int, total: int | None) -> None:
            size = f' value="{done}" max="{total}"' if total else ""
            count = f" {done}/{total}" if total else ""
            self._open[place] = f"{html(printable(what))} <progress{size}></progress>{count}"
            if time.monotonic() > self._shown + _AGAIN:
                self._show()

        self._open.append("")
        moved(what, 0, total)
        try:
            yield moved
        finally:
            del self._open[place:]
            self._show()

    def _show(self) -> None:
        from IPython.display import HTML, display

        picture = HTML(self._open[-1] if self._open else "")
        if self._handle is None:
            self._handle = display(picture, display_id=True)
        else:
            self._handle.update(picture)
        self._shown = time.monotonic()


class Bars(Silent):
    """Bars on a console, which vanish when they are done; a context manager."""

    def __init__(self, console: Console, *, talks: bool) -> None:
        """Draw there.

        Args:
            console: A terminal; on anything else there are no bars.
            talks: Whether lines that stay are printed too; else the log has them.
        """
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        to_terminal = sys.stdout is not None and sys.stdout.isatty()  # what is printed into a pipe stays there
        self._progress = Progress(
            *columns, console=console, transient=True, redirect_stdout=to_terminal, disable=bool(os.environ.get(OFF))
        )
        self._talks = talks

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextmanager
    def bar(self, what: str, total: int | None, *, rated: bool = False) -> Iterator[Callback]:
        """See `Display`."""
        from rich.markup import escape

        progress = self._progress
        task = progress.add_task(escape(printable(what)), total=total, rate="")
        shown = -_AGAIN

        def moved(what: str, done: int, total: int | None) -> None:
            nonlocal shown
            now = time.monotonic()
            if now < shown + _AGAIN and done != total:  # a step may be shorter than its picture
                return
            shown = now
            progress.update(task, completed=done, total=total, description=escape(printable(what)))
            speed = progress.tasks[progress.task_ids.index(task)].speed if rated else None
            progress.update(task, rate=f"{speed:.1f}/s" if speed else "")

        try:
            yield moved
        finally:
            progress.remove_task(task)

    def say(self, line: str) -> None:
        """See `Display`."""
        if self._talks:
            self._progress.console.print(message(line), highlight=False, markup=False, soft_wrap=True)
        else:
            super().say(line)


@contextmanager
def by_itself() -> Iterator[Display]:
    """What a library shows where nobody says how: a notebook's bar, bars on a terminal, else nothing.

    Only one is shown at a time; what other threads do meanwhile is not.
    """
    terminal = sys.stderr is not None and sys.stderr.isatty()
    if os.environ.get(OFF) or not (terminal or _in_notebook()) or not _one_at_a_time.acquire(blocking=False):
        yield Silent()
        return
    try:
        if _in_notebook():
            yield Notebook()
        else:
            with Bars(terminal_console(), talks=False) as bars:
                yield bars
    finally:
        _one_at_a_time.release()


def terminal_console() -> Console:
    """Standard error, also while what libraries print there is turned away."""
    from rich.console import Console

    return Console(file=undisturbed(sys.stderr))


def _in_notebook() -> bool:
    """Whether IPython runs this for a page and not for a terminal."""
    found = sys.modules.get("IPython")
    shell = found.get_ipython() if found is not None else None
    return shell is not None and hasattr(shell, "kernel")
