"""The training runtime's own folder.

onnxruntime-training and onnxruntime are one import package: in one environment they overwrite each other.
So the training wheel is unpacked, without dependencies, into a folder of the user's cache, and only worker
processes see it, first on their path. Everything else they take from the user's environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from os import PathLike
from pathlib import Path

import platformdirs

from trp_onnx.errors import TrainingError, UsageError
from trp_onnx.files.staging import hidden_beside
from trp_onnx.process.interrupts import held_back
from trp_onnx.progress import say

VERSION = "1.19.2"
PYTHONS = ((3, 11), (3, 12))


def runtime_folder(*, cuda: bool = False) -> Path:
    """Where the runtime is or would be: `TRP_ONNX_TRAINING`, or a folder in the user's cache."""
    given = os.environ.get("TRP_ONNX_TRAINING")
    if given:
        return Path(given)
    return Path(platformdirs.user_cache_dir("trp-onnx")) / f"{_package(cuda)}-{VERSION}"


def installed_runtime() -> Path | None:
    """The folder of the runtime that is there, the CUDA build first: who has it wants it."""
    return next((f for f in (runtime_folder(cuda=True), runtime_folder()) if _complete(f)), None)


def ensure_runtime() -> None:
    """Set the runtime up if it is missing, and say so in one line.

    Raises:
        TrainingError: See `setup_training`.
    """
    check_python()
    if installed_runtime() is None:
        say(f"setting up the training runtime, once: {_package(False)} {VERSION} into {runtime_folder()}")
        setup_training()


def setup_training(wheel: str | PathLike[str] | None = None, *, cuda: bool = False) -> Path:
    """Put the training runtime into its folder.

    Args:
        wheel: A wheel file, for machines without a network; from the package index otherwise.
        cuda: The CUDA build.

    Returns:
        The folder.

    Raises:
        TrainingError: This Python has no wheel, or the installation failed; nothing is left behind.
        UsageError: The folder holds something else.
    """
    check_python()
    if wheel is not None and not Path(wheel).is_file():
        raise TrainingError(f"the wheel '{wheel}' does not exist")
    folder = runtime_folder(cuda=cuda)
    _check_ours(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = hidden_beside(folder)
        temporary.mkdir()
    except OSError as error:
        raise TrainingError(f"cannot write to '{folder.parent}': {error.strerror}") from error
    what = str(wheel) if wheel is not None else f"{_package(cuda)}=={VERSION}"
    command = [sys.executable, "-P", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        done = subprocess.run(
            [*command, "--target", str(temporary / "site"), what], capture_output=True, text=True, check=False
        )
        if done.returncode or not _complete(temporary / "site"):
            reason = (done.stderr.strip().splitlines() or ["it holds no training runtime of that version"])[-1]
            raise TrainingError(
                f"the training runtime {what} cannot be installed: {reason}. Without a network, download its wheel "
                "elsewhere and run trp-onnx setup-training --wheel FILE"
            )
        with held_back():
            shutil.rmtree(folder, ignore_errors=True)
            (temporary / "site").replace(folder)
    except OSError as error:
        raise TrainingError(f"cannot write '{folder}': {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _check_ours(folder: Path) -> None:
    """Refuse a folder with anything in it that the wheel does not put there: it is replaced as a whole."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"the folder of the training runtime, '{folder}', is a file")
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.name != "bin" and not entry.name.startswith("onnxruntime"):
            raise UsageError(
                f"the folder '{folder}' holds '{entry.name}', which is no training runtime: TRP_ONNX_TRAINING names a "
                "folder that holds nothing else"
            )


def check_python() -> None:
    """Refuse a Python for which there is no training runtime.

    Raises:
        TrainingError: This is one.
    """
    if sys.version_info[:2] not in PYTHONS:
        raise TrainingError(
            f"training needs Python 3.11 or 3.12 (onnxruntime-training {VERSION} has no wheel for newer ones), "
            f"this is {sys.version_info.major}.{sys.version_info.minor}"
        )


def worker_environment() -> dict[str, str]:
    """Environment of a worker: the training runtime first on its path, one thread.

    Raises:
        TrainingError: The runtime is not set up.
    """
    check_python()
    folder = installed_runtime()
    if folder is None:
        raise TrainingError("the training runtime is not set up: run trp-onnx setup-training")
    # An empty entry would be the current folder.
    path = os.pathsep.join([str(folder), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return os.environ | threads | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _package(cuda: bool) -> str:
    return "onnxruntime-training" if cuda else "onnxruntime-training-cpu"


def _complete(folder: Path) -> bool:
    """The runtime's version is read, not imported."""
    try:
        text = (folder / "onnxruntime" / "__init__.py").read_text(encoding="utf-8")
    except OSError:
        return False
    return f'__version__ = "{VERSION}"' in text and (folder / "onnxruntime" / "training").is_dir()
