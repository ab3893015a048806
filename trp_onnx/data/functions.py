"""Functions of the user's, named as `pkg.module:function`: the only code of the current folder that is ever run."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from trp_onnx.errors import DataError, TrpOnnxError


def is_function(name: str) -> bool:
    """Whether a name is one of a function, "pkg.module:function"."""
    module, separator, function = name.partition(":")
    return bool(separator) and function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def load_function(reference: str, what: str = "data function") -> Callable[..., Any]:
    """The function that `pkg.module:function` names.

    Raises:
        DataError: It cannot be imported, or is no function.
    """
    module, _, name = reference.partition(":")
    with users_code(f"the {what} '{reference}' cannot be imported"), _current_folder_searched():
        function = getattr(importlib.import_module(module), name)
    if not callable(function):
        raise DataError(f"'{reference}' is not callable")
    return function  # type: ignore[no-any-return]


@contextmanager
def users_code(failed: str, kind: type[TrpOnnxError] = DataError) -> Iterator[None]:
    """Code of the user's, which may raise whatever it wants.

    Args:
        failed: What is said of that, before the reason.
        kind: What is raised instead.

    Raises:
        TrpOnnxError: Of the given kind.
    """
    try:
        yield
    except TrpOnnxError:
        raise
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())
        raise kind(f"{failed}: {type(error).__name__}{f': {said}' if said else ''}") from error


@contextmanager
def _current_folder_searched() -> Iterator[None]:
    """Modules are found in the current folder too, after everywhere else, as long as this lasts and no longer."""
    here = os.getcwd()  # noqa: PTH109 - sys.path holds strings
    sys.path.append(here)
    try:
        yield
    finally:
        with suppress(ValueError):
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(here)]  # the last, which is ours
