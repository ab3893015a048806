"""Interrupts that arrive at a bad moment, and those that somebody swallows.

A library may catch KeyboardInterrupt and go on (scikit-learn's fits do). Whoever turns signals into interrupts says so
here, and what publishes a result looks here first.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = [signal.Signals[n] for n in ("SIGINT", "SIGTERM", "SIGHUP") if n in signal.Signals.__members__]
"""What asks a command to end."""

_heard = threading.Event()


def heard() -> None:
    """Say that the user wants an end, beside raising KeyboardInterrupt."""
    _heard.set()


def answered() -> None:
    """Say that the work has ended, or begins anew."""
    _heard.clear()


@contextmanager
def held_back() -> Iterator[None]:
    """Let what is inside happen as a whole: signals wait until it is done.

    Raises:
        KeyboardInterrupt: Somebody swallowed one before; nothing inside happens.
    """
    if _heard.is_set():
        raise KeyboardInterrupt
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handlers = {number: handler for number, handler in before.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if waiting:
            signal.raise_signal(waiting[0])
