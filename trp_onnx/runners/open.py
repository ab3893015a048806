"""Which runtime is meant by a word.

local                   this process
python:PATH             another interpreter, with the onnxruntime that it has
node                    onnxruntime-node, installed by npm on first use
web                     onnxruntime-web in headless Chromium, installed by npm on first use
ssh:HOST[:PYTHON]       a board with Python and onnxruntime, over ssh; models and inputs are sent there
"""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

from trp_onnx.errors import RunnerError, UsageError
from trp_onnx.runners.packages import NODE, WEB, ensure_package
from trp_onnx.runners.runner import Runner
from trp_onnx.runners.transport import Call, Process
from trp_onnx.runners.web import Browser

TIMEOUT = 120.0
"""Seconds without a sign of life after which a worker is given up."""

_LONGEST = 10**6

_HERE = Path(__file__).parent
_PYTHON_WORKER, _NODE_WORKER = _HERE / "worker.py", _HERE / "node.mjs"
_BOOTSTRAP = (
    "import sys; sys.path[:] = filter(None, sys.path); n = int(sys.stdin.readline()); "
    "exec(compile(sys.stdin.read(n), 'worker.py', 'exec'), {'__name__': '__main__'})"
)


def open_runner(spec: str = "local", timeout: float = TIMEOUT) -> Runner:
    """The runner that a word means; close it, or use it as a context manager.

    Args:
        spec: See the module.
        timeout: Seconds without a sign of life after which its worker is given up.

    Raises:
        UsageError: No such word.
        RunnerError: The runtime is not there; the sentence says how to get it.
    """
    kind, _, rest = spec.partition(":")
    if not 0 < timeout <= _LONGEST:
        raise UsageError(f"--timeout is a number of seconds up to {_LONGEST}, not {timeout}")
    if spec == "local":
        return Runner(spec, Call())
    if kind == "python" and rest:
        if shutil.which(rest) is None:
            raise RunnerError(f"there is no interpreter '{rest}': --runtime python:PATH needs one with onnxruntime")
        unseen = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        env = {name: value for name, value in os.environ.items() if name not in unseen}
        return Runner(spec, Process(spec, [rest, "-u", str(_PYTHON_WORKER)], timeout=timeout, env=env))
    if spec == "node":
        folder = ensure_package(NODE)
        return Runner(spec, Process(spec, ["node", str(_NODE_WORKER), str(folder)], timeout=timeout))
    if spec == "web":
        return Runner(spec, Browser(ensure_package(WEB), timeout))
    if kind == "ssh" and rest:
        host, _, python = rest.partition(":")
        return Runner(spec, _over_ssh(spec, host, python or "python3", timeout))
    raise UsageError(f"unknown runtime '{spec}'; there are local, python:PATH, node, web and ssh:HOST[:PYTHON]")


def _over_ssh(spec: str, host: str, python: str, timeout: float) -> Process:
    """The same worker, its source sent first; `TRP_ONNX_SSH` is another ssh command, with other options."""
    if host.startswith("-"):
        raise UsageError(f"'{host}' is no host")
    try:
        ssh = shlex.split(os.environ.get("TRP_ONNX_SSH", "ssh"))
    except ValueError as error:
        raise UsageError(f"TRP_ONNX_SSH is no command: {error}") from error
    source = _PYTHON_WORKER.read_text(encoding="utf-8")
    remote = shlex.join([python, "-u", "-c", _BOOTSTRAP])
    command = [
        *ssh,
        "-T",
        "-o",
        "BatchMode=yes",
        "-o",
        "ConnectTimeout=15",
        "-o",
        "ServerAliveInterval=15",
        host,
        remote,
    ]
    return Process(spec, command, timeout=timeout, shares_files=False, before=f"{len(source)}\n{source}")
