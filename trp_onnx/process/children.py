"""Processes that are started here: each leads a session of its own, so that it ends with all that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import Any


def end(process: subprocess.Popen[Any]) -> None:
    """End a process that was started with `start_new_session`, and its children; Windows ends the process alone."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
