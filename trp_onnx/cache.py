"""Measurements on disk, in the user's cache: one small JSON file an entry.

A cache that cannot be read or written is done without. `TRP_ONNX_CACHE` names another folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from trp_onnx.errors import OutputError
from trp_onnx.model import write_text


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
            with suppress(OSError, ValueError, KeyError, TypeError):
                document = json.loads(self._path(key).read_text(encoding="utf-8"))
                if document["key"] == key:
                    self._memory[key] = document["value"]
        return self._memory.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a value that JSON can hold."""
        self._memory[key] = json.loads(json.dumps(value))
        with suppress(OutputError):
            write_text(self._path(key), json.dumps({"key": key, "value": value}))

    def _path(self, key: str) -> Path:
        return self._folder / f"{_digest(key)}.json"


def cache_folder() -> Path:
    """Where this user's measurements are."""
    import platformdirs

    return Path(os.environ.get("TRP_ONNX_CACHE") or platformdirs.user_cache_dir("trp-onnx"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
