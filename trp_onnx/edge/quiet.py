"""ONNX Runtime's Python tools print, log and leave files open as they work; here only their errors are of interest."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

_WARNING, _ERROR = 2, 3


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Neither prints nor log lines below an error."""
    import onnxruntime as ort

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    ort.set_default_logger_severity(_ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            yield
    finally:
        logging.disable(before)
        ort.set_default_logger_severity(_WARNING)
