"""Progress on anything that may take over two seconds, and notes that a user should know.

The API wraps its loops in `track`. What shows them is a `Display`: that of the command line, a function of the user's
(`on_progress`), else whatever fits: bars in a terminal and in a notebook, nothing elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from trp_onnx.process.displays import Bars, Callback, Display, Silent, Told, by_itself

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

logger = logging.getLogger(__name__)

_UNASKED = Silent()
_display: ContextVar[Display] = ContextVar("display", default=_UNASKED)
_notes: ContextVar[list[str] | None] = ContextVar("notes", default=None)


@contextmanager
def on_progress(callback: Callback | None) -> Iterator[None]:
    """Tell a function of yours how far the work inside is, instead of showing bars.

        with trp_onnx.on_progress(lambda what, done, total: print(what, done, total)):
            trp_onnx.compress("model.onnx", "small.onnx")

    Args:
        callback: Called with what is being done, how far it is, and of how much (None where that is not known): at the
            beginning of each piece of work and after each step. What it raises ends the work, and nothing is
            written. None shows nothing, as the environment variable TRP_ONNX_NO_PROGRESS does everywhere.
    """
    with _shown_by(Silent() if callback is None else Told(callback)):
        yield


@contextmanager
def shown_on(console: Console) -> Iterator[None]:
    """Show the progress of everything inside on a console, and what is said."""
    with Bars(console, talks=True) as bars, _shown_by(bars):
        yield


@contextmanager
def at_work() -> Iterator[list[str]]:
    """One command of a user's: its progress is shown where nobody said how, its notes are collected for the result."""
    with ExitStack() as stack:
        if _display.get() is _UNASKED:
            stack.enter_context(_shown_by(stack.enter_context(by_itself())))
        notes: list[str] = []
        token = _notes.set(notes)
        stack.callback(_notes.reset, token)
        yield notes


@contextmanager
def _shown_by(display: Display) -> Iterator[None]:
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)


def say(line: str) -> None:
    """A line that stays, above the bars of the command line."""
    _display.get().say(line)


def note(text: str) -> None:
    """Tell the user something, once and at once, and in the result where notes are collected; else the log has it."""
    notes = _notes.get()
    if notes is None and not isinstance(_display.get(), Bars):
        logger.warning(text)
    elif notes is None or text not in notes:
        say(f"note: {text}")
        if notes is not None:
            notes.append(text)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate, and show how far it is, the rate and the time left.

    Args:
        items: What to iterate over.
        description: What is being done.
        total: Number of items; `len(items)` where it has one.
    """
    if total is None and isinstance(items, Sequence):
        total = len(items)
    with _display.get().bar(description, total, rated=True) as moved:
        for count, item in enumerate(items, 1):
            yield item
            moved(description, count, total)


@contextmanager
def watch(description: str) -> Iterator[Callable[[int | None, int | None, str], None]]:
    """Show the progress of work that is done elsewhere.

    Yields:
        A function of how far it is, of how much (None: as before), and a line; a line without a place is
        printed above the bar and stays.
    """
    known: int | None = None
    with _display.get().bar(description, None) as moved:

        def show(done: int | None, total: int | None, line: str) -> None:
            nonlocal known
            known = known if total is None else total
            if done is None:
                say(line)
            else:
                moved(line, done, known)

        yield show
