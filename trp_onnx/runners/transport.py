"""How a request gets to a worker and its answer back: by a call, or as lines of JSON through a process."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any, Protocol

from trp_onnx.errors import ModelError, RunnerError
from trp_onnx.process import children
from trp_onnx.runners.worker import Refusal, Worker, pack, unpack

_GOES = 2.0


class Transport(Protocol):
    """The way to one worker."""

    shares_files: bool
    """Whether the worker sees the files of this machine."""

    def ask(self, do: str, **request: Any) -> Any:
        """Send a request, wait for its answer."""

    def close(self) -> None:
        """End the worker, whatever it is doing."""


class Call:
    """A worker in this process."""

    shares_files = True

    def __init__(self) -> None:
        """Nothing to start."""
        self._worker = Worker()

    def ask(self, do: str, **request: Any) -> Any:
        """See `Transport`."""
        try:
            return getattr(self._worker, do)(**request)
        except Refusal as refusal:
            raise refused(refusal.kind, str(refusal)) from refusal.__cause__
        except Exception as error:  # what a worker elsewhere would say
            raise RunnerError(f"{type(error).__name__}: {str(error).splitlines()[0][:300]}") from error

    def close(self) -> None:
        """Let go of the sessions."""
        self._worker = Worker()


class Process:
    """A worker in a process of its own, in a session of its own: Ctrl-C ends it here, not there."""

    def __init__(
        self,
        spec: str,
        command: Sequence[str],
        *,
        timeout: float,
        shares_files: bool = True,
        before: str = "",
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start it.

        Args:
            spec: Its name in messages.
            command: What to start.
            timeout: Seconds without a sign of life after which it is given up.
            shares_files: Whether it sees the files of this machine.
            before: What to write to it first.
            env: Its environment; this process's own otherwise.

        Raises:
            RunnerError: It cannot be started.
        """
        self.shares_files = shares_files
        self._spec, self._timeout = spec, timeout
        self._folder = tempfile.mkdtemp(prefix="trp-onnx-worker.")  # runtimes leave logs in theirs
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, start_new_session=True,
                text=True, encoding="utf-8", errors="replace", env={**(env or os.environ), "TMPDIR": self._folder},
            )  # fmt: skip
        except OSError as error:
            self._said.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise RunnerError(f"{spec} cannot be started: '{command[0]}': {error.strerror}") from error
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._before = before

    def ask(self, do: str, **request: Any) -> Any:
        """See `Transport`."""
        # From a thread: a worker that hangs does not read either.
        threading.Thread(target=self._write, args=(encode(do, request) + "\n",), daemon=True).start()
        while True:
            try:
                line = self._answers.get(timeout=self._timeout)
            except queue.Empty:
                self.close()
                raise RunnerError(
                    f"{self._spec} gave no sign of life for {self._timeout:g} s and was ended; --timeout waits longer"
                ) from None
            if line is None:
                raise self._died()
            try:
                answer = json.loads(line)
            except ValueError:
                continue  # something else that a start-up script prints
            if isinstance(answer, dict) and ("ok" in answer or "refused" in answer):
                return decode(do, answer)

    def close(self) -> None:
        """End it and all that it started."""
        children.end(self._process)
        self._listener.join(timeout=_GOES)  # longer where a daemon of it holds the pipe open
        for stream in (self._process.stdin, self._said):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError, OSError), self._process.stdout as lines:
            for line in lines:
                self._answers.put(line)
        self._answers.put(None)

    def _write(self, text: str) -> None:
        """A pipe that breaks is noticed by whoever waits for the answer."""
        assert self._process.stdin is not None
        text, self._before = self._before + text, ""
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(text)
            self._process.stdin.flush()

    def _died(self) -> RunnerError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.poll()
        said = b""
        if not self._said.closed:
            self._said.seek(0)
            said = self._said.read()
        lines = said.decode(errors="replace").strip().splitlines()
        lines = [line for line in lines if "rror" in line] or lines  # Node's last line is its version
        self.close()
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return RunnerError(f"the worker of {self._spec} died ({how})" + (f": {lines[-1][:300]}" if lines else ""))


def encode(do: str, request: dict[str, Any]) -> str:
    """A request as a line of JSON."""
    if do == "prepare":
        models = [m if isinstance(m, str) else {"data": base64.b64encode(m).decode()} for m in request["models"]]
        feeds = {name: pack(array) for name, array in request["feeds"].items()}
        request = request | {"models": models, "feeds": feeds}
    return json.dumps({"do": do} | request)


def decode(do: str, answer: dict[str, Any]) -> Any:
    """What a line of JSON answers.

    Raises:
        ModelError, RunnerError: The worker refused.
    """
    if "refused" in answer:
        raise refused(answer["refused"], str(answer.get("why")))
    if do == "outputs":
        return [{name: unpack(array) for name, array in found.items()} for found in answer["ok"]]
    return answer["ok"]


def refused(kind: str, why: str) -> ModelError | RunnerError:
    """A worker's refusal as an error of ours."""
    return RunnerError(why) if kind == "runner" else ModelError(why)
