"""Keep what libraries print off the user's terminal.

onnx-simplifier and ONNX Runtime's tools print, log and write to the process's file descriptors from C++. What goes
wrong there is raised as well, so here it goes to the log, which `--verbose` shows.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from typing import IO, TextIO

logger = logging.getLogger(__name__)

_FATAL = 4
_LONGEST = 1 << 20  # bytes of one call's lines that reach the log
_lock = threading.Lock()
_inside = 0


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Lines printed inside, by Python or by C, go to the log.

    Descriptors belong to the whole process: of calls that overlap in several threads, the first turns them away and
    only its lines are kept. Whatever cannot be turned away (no descriptor, no room for a temporary file) is dropped
    or stays as it is; the work goes on.
    """
    global _inside
    with _lock:
        _inside += 1
        first = _inside == 1
    try:
        if first:
            with _captured():
                yield
        else:
            yield
    finally:
        with _lock:
            _inside -= 1


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """The same for ONNX Runtime's Python tools, which also log and leave files open."""
    import onnxruntime as ort

    before = logging.root.manager.disable
    ort.set_default_logger_severity(_FATAL)
    with silence(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def undisturbed(stream: TextIO) -> TextIO:
    """A stream that goes where standard error goes now, also while that is turned away: for progress bars."""
    try:
        if stream.fileno() != 2:
            return stream
        return os.fdopen(os.dup(2), "w", encoding=stream.encoding, errors="replace", buffering=1)
    except (OSError, ValueError, AttributeError):
        return stream


@contextlib.contextmanager
def _captured() -> Iterator[None]:
    printed = io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, full, or none at all
            stream.flush()
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_scratch())
        for number in (1, 2):
            stack.enter_context(_turned(number, file))
        stack.enter_context(contextlib.redirect_stdout(printed))
        stack.enter_context(contextlib.redirect_stderr(printed))
        try:
            yield
        finally:
            lines = printed.getvalue().splitlines() + _lines_of(file)
    for line in lines:
        if line.strip():
            logger.info("%s", line.rstrip())


def _scratch() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except OSError:  # no room
        return open(os.devnull, "r+b", buffering=0)  # noqa: PTH123  binary, both ways


@contextlib.contextmanager
def _turned(number: int, file: IO[bytes]) -> Iterator[None]:
    try:
        kept = os.dup(number)
    except OSError:  # the caller closed it
        yield
        return
    try:
        os.dup2(file.fileno(), number)
        yield
    finally:
        os.dup2(kept, number)
        os.close(kept)


def _lines_of(file: IO[bytes]) -> list[str]:
    with contextlib.suppress(OSError, ValueError):
        file.seek(0)
        return file.read(_LONGEST).decode(errors="replace").splitlines()
    return []
