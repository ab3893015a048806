"""Checkpoints: one `.npz` that appears whole or not at all.

Arrays as they are, everything else as one JSON text; nothing is pickled. The file is written beside its
place, flushed to the disk, and renamed over the last one: whatever happens, one good checkpoint is there.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from trp_onnx.errors import OutputError, TrainingError

FORMAT = 2

PARTIAL = ".partial"


def save_checkpoint(path: Path, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
    """Write a checkpoint.

    Args:
        path: Its place.
        arrays: By name.
        state: JSON values.

    Raises:
        OutputError: The disk is full, or any other failure to write; the last checkpoint is still there.
    """
    state = json.loads(json.dumps(state))
    text = json.dumps({"format": FORMAT, "digest": _digest(arrays, state)} | state)
    temporary = path.with_name(path.name + PARTIAL)  # one name: nothing piles up, whoever is killed
    try:
        with temporary.open("wb") as file:
            np.savez(file, state=np.frombuffer(text.encode(), np.uint8), **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write the checkpoint '{path}': {error.strerror or error}; the last one is still good: "
            "make room and give the same command again (--train with --resume)"
        ) from error


def load_checkpoint(path: Path, job: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a checkpoint.

    Args:
        path: Its place.
        job: Hash of the job that it must belong to.

    Raises:
        TrainingError: Damaged, of another version, or of another model, data set or set of options.
    """
    damaged = f"the checkpoint '{path}' is damaged: remove its folder and start again"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive}
        state = json.loads(arrays.pop("state").tobytes())
        version, digest = state.pop("format"), state.pop("digest", None)
    except Exception as error:  # zip, zlib, numpy and JSON each have errors of their own; nothing is unpickled
        raise TrainingError(damaged) from error
    if version != FORMAT:
        raise TrainingError(
            f"the checkpoint '{path}' has format {version}, this version of trp-onnx reads {FORMAT}: "
            "finish it with the version that began it, or start again"
        )
    if digest != _digest(arrays, state):
        raise TrainingError(damaged)
    if state["job"] != job:
        raise TrainingError(
            f"the checkpoint '{path}' belongs to another model, data set or set of options: "
            "give the command that began it, or another --run folder"
        )
    return arrays, state


def _digest(arrays: dict[str, np.ndarray], state: dict[str, Any]) -> str:
    """Of all that a checkpoint holds, so that whatever is read is what was written."""
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
