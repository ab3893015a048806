"""TOML and JSON files that users write or give back: read whole, or refused in one sentence."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trp_onnx.errors import TrpOnnxError

LARGEST = 64 << 20
"""Bytes of a file that is read; the latency table of a network of 10,000 layers has a tenth of that."""


def read_toml(path: Path, what: str, error: type[TrpOnnxError]) -> dict[str, Any]:
    """A TOML file.

    Args:
        path: The file.
        what: What it is to the user, e.g. "the configuration".
        error: What is raised.

    Raises:
        TrpOnnxError: Of the given kind: not there, too large, not UTF-8, not TOML, or nested too deeply.
    """
    document: dict[str, Any] = _parsed(path, what, "TOML", tomllib.loads, error)
    return document


def read_json(path: Path, what: str, error: type[TrpOnnxError]) -> Any:
    """A JSON file; a key that comes twice is an error. Otherwise as `read_toml`."""
    return _parsed(path, what, "JSON", lambda text: json.loads(text, object_pairs_hook=_once), error)


def _parsed(path: Path, what: str, kind: str, parse: Callable[[str], Any], error: type[TrpOnnxError]) -> Any:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise error(f"{what} '{path}' cannot be read: it is no regular file")
        if path.stat().st_size > LARGEST:
            raise error(f"{what} '{path}' cannot be read: it is larger than {LARGEST >> 20} MiB")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as reason:
        raise error(f"{what} '{path}' cannot be read: {reason.strerror}") from reason
    except UnicodeDecodeError as reason:
        raise error(f"{what} '{path}' cannot be read: it is not UTF-8 ({reason.reason})") from reason
    except ValueError as reason:  # a path with a NUL in it
        raise error(f"{what} '{path}' cannot be read: {reason}") from reason
    try:
        return parse(text)
    except RecursionError as reason:
        raise error(f"{what} '{path}' is not {kind} that can be read: it is nested too deeply") from reason
    except ValueError as reason:  # theirs, and that of a number of thousands of digits
        line = (str(reason).splitlines() or [""])[0].partition("; use sys.")[0]
        raise error(f"{what} '{path}' is not {kind}: {line}") from reason


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key '{twice[:100]}' comes twice")
    return found
