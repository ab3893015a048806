"""Measurements on disk, in the user's cache: one small JSON file an entry, with a digest of what it holds.

A cache that cannot be read or written is done without, and so is an entry that is not what was written.
`TRP_ONNX_CACHE` names another folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from trp_onnx.errors import OutputError
from trp_onnx.files.staging import write_text


class Cache:
    """Entries that belong together because they were measured in one setting."""

    def __init__(self, kind: str, setting: str) -> None:
        """Open it.

        Args:
            kind: What is measured; the name of a folder.
            setting: All that the entries depend on beside their keys.
        """
        self._folder = cache_folder() / kind / _digest(setting)
        self._memory: dict[str, Any] = {}
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> Any:
        """What was kept under a key, or None."""
        if key not in self._memory:
            with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                path = self._path(key)
                document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
                if document["digest"] == _digest(key + json.dumps(document["value"])):
                    self._memory[key] = document["value"]
        return self._memory.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a value that JSON can hold."""
        self._memory[key] = value = json.loads(json.dumps(value))
        entry = {"key": key, "value": value, "digest": _digest(key + json.dumps(value))}
        with suppress(OutputError):
            write_text(self._path(key), json.dumps(entry))

    def _path(self, key: str) -> Path:
        return self._folder / f"{_digest(key)}.json"


def cache_folder() -> Path:
    """Where this user's measurements are."""
    import platformdirs

    return Path(os.environ.get("TRP_ONNX_CACHE") or platformdirs.user_cache_dir("trp-onnx"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
