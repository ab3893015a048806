"""npm packages in the user's cache: installed on first use, one folder each, no scripts of theirs run."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from trp_onnx.errors import RunnerError
from trp_onnx.files.cache import cache_folder
from trp_onnx.process import children
from trp_onnx.progress import say

NODE, WEB = "onnxruntime-node", "onnxruntime-web"
_VERSIONS = {NODE: "^1.20", WEB: "^1.20"}
"""From 1.20 on a profile can be given a place, and session entries reach the session."""

_SECONDS = 900


def ensure_package(name: str) -> Path:
    """The folder in whose `node_modules` a package is.

    Raises:
        RunnerError: It is not there and cannot be installed.
    """
    folder = cache_folder() / "npm" / name
    if _complete(folder, name):
        return folder
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise RunnerError(f"{name} needs Node.js 18 or newer with npm on the path, which is not there: install it")
    say(f"installing {name}, once, into {folder}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder.parent))
    except OSError as error:
        raise RunnerError(f"{name} cannot be put into '{folder}': {error.strerror}") from error
    try:
        command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", f"{name}@{_VERSIONS[name]}"]
        (staging / "package.json").write_text('{"private": true}\n', encoding="utf-8")
        code, stderr = _run(command, staging)
        if code != 0 or not _complete(staging, name):
            said = [line for line in stderr.splitlines() if line.strip()]
            raise RunnerError(f"npm cannot install {name}: {said[0][:300] if said else f'exit code {code}'}")
        if not _complete(folder, name):  # another command may have been faster, and is using it
            shutil.rmtree(folder, ignore_errors=True)
            staging.replace(folder)
    except subprocess.TimeoutExpired as error:
        raise RunnerError(f"npm did not install {name} within {_SECONDS} s") from error
    except OSError as error:
        raise RunnerError(f"{name} cannot be put into '{folder}': {error.strerror}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _run(command: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and stderr; what it starts ends with it, also when it is interrupted."""
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, encoding="utf-8", errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        _, stderr = process.communicate(timeout=_SECONDS)
    except BaseException:
        children.end(process)
        raise
    return process.returncode, stderr


def _complete(folder: Path, name: str) -> bool:
    return (folder / "node_modules" / name / "package.json").is_file()
