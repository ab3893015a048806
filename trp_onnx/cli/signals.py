"""What a command does about signals and errors: progress on stderr, one sentence, an exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import click

from trp_onnx.cli.paths import guard_paths
from trp_onnx.errors import TrpOnnxError
from trp_onnx.process import interrupts

_INTERRUPTED = 130
_SAME_SIGNAL = 1.0  # seconds in which a signal is the one before: terminals and supervisors send several


@contextmanager
def answering() -> Iterator[None]:
    """Progress on stderr; errors as one sentence and an exit code."""
    from trp_onnx.process.displays import terminal_console
    from trp_onnx.progress import shown_on

    interrupted: float | None = None
    sent = signal.SIGINT.value

    def stop(number: int, _: object) -> None:
        nonlocal interrupted, sent
        now, sent = time.monotonic(), number
        if interrupted is None or now > interrupted + _SAME_SIGNAL:
            interrupted = now
            interrupts.heard()
            raise KeyboardInterrupt

    def unheard(event: Any) -> None:
        """An interrupt in a callback of the interpreter's (of an import, of a collection) is dropped there: again."""
        nonlocal interrupted
        if interrupted is not None and event.exc_type is KeyboardInterrupt:
            interrupted = None
            threading.Timer(0.05, send, (sent,)).start()  # not here: it would be dropped as well
        else:
            hook(event)

    # Windows has no harmless `kill`: it would end this process.
    send = partial(os.kill, os.getpid()) if os.name == "posix" else signal.raise_signal
    hook, sys.unraisablehook = sys.unraisablehook, unheard
    # A hang-up that nohup has the process ignore stays ignored.
    numbers = [n for n in interrupts.SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        with shown_on(terminal_console()):
            guard_paths()
            yield
    except BaseException as error:
        # C extensions turn an interrupt at import into errors of their own: the flag tells.
        if interrupted is not None:
            what = "; ".join(getattr(error, "__notes__", ["nothing was written"]))
            click.echo(f"trp-onnx: interrupted; {what}", err=True)
            sys.exit(_INTERRUPTED)
        if not isinstance(error, TrpOnnxError):
            raise
        from trp_onnx.printable import message

        click.echo(f"trp-onnx: error: {message(str(error))}", err=True)
        sys.exit(error.exit_code)
    finally:
        sys.unraisablehook = hook
        interrupts.answered()
        if interrupted is None:  # else the process ends, and the same signal again does not end it otherwise
            for number, handler in previous.items():
                signal.signal(number, handler)
