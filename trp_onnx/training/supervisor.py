"""Start the workers, watch them, and bring back what they found.

`--workers K` goes through mpiexec. Under a launcher of the user's own (`mpirun -n K trp-onnx compress`)
every process starts one worker, which joins the launcher's job in its place; the first one gives the
orders, the others stand by.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from trp_onnx import errors
from trp_onnx.errors import TrainingError, TrpOnnxError
from trp_onnx.process import children
from trp_onnx.progress import watch
from trp_onnx.training.checkpoint import load_checkpoint
from trp_onnx.training.communicator import launched_rank
from trp_onnx.training.isolated_runtime import ensure_runtime, worker_environment
from trp_onnx.training.job import AGAIN, CHECKPOINT, END, RESULT, Files, Job

_WORKER = [sys.executable, "-P", "-m", "trp_onnx.training.worker"]  # -P: nothing from the current folder


class Supervisor:
    """The workers of one training; a context manager that ends them."""

    def __init__(self, log: Path, workers: int) -> None:
        """Start them.

        Args:
            log: Where they say what goes wrong inside.
            workers: How many on this machine; ignored under an MPI launcher, which says so itself.

        Raises:
            TrainingError: The training runtime or MPI is missing.
        """
        self._log_path = log
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            _command(workers), env=worker_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, text=True, start_new_session=True, close_fds=False,
        )  # fmt: skip

    def train(self, run: Path, what: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Train in a run directory, from its checkpoint where it has one.

        Args:
            run: The directory.
            what: What that is, for people.

        Returns:
            Arrays and state of the result, see `loop`.

        Raises:
            TrpOnnxError: Whatever a worker met, or its death.
        """
        job = Job.from_json((run / "job.json").read_text(encoding="utf-8"))
        files = Files.read(run)
        digest = job.digest(files.model, files.teacher)
        if not (run / RESULT).exists():
            how = "resume" if (run / CHECKPOINT).exists() else "start"
            self._order(f"{how} {run.resolve()}")
            with watch(what) as show:
                for event in self._events():
                    if event["kind"] == "step":
                        show(event["step"], event["total"], _line(event))
                    elif event["kind"] == "epoch":
                        show(None, None, _summary(event, timed=job.options.minutes is not None))
                    elif event["kind"] == "done":
                        break
        arrays, state = load_checkpoint(run / RESULT, digest)
        return dict(arrays), state

    def _order(self, text: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it died: `_events` says why
            self._process.stdin.write(text + "\n")
            self._process.stdin.flush()

    def _events(self) -> Iterator[dict[str, Any]]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue  # a launcher's own words
            if event["kind"] == "error":
                raise _error(event)
            yield event
        code = self._process.wait()
        raise TrainingError(
            f"a training worker died (exit {code}); the last checkpoint is good, {AGAIN}. "
            f"What it said is in '{self._log_path}'"
        )

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._order(END)
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            children.end(self._process)  # a launcher's children too
        self._process.stdout.close()
        self._log.close()


def stands_by() -> bool:
    """Under an MPI launcher every process but the first lends its place to a worker, until that ends.

    Returns:
        False for the first one, and without a launcher: go on.

    Raises:
        TrpOnnxError: Whatever the worker met, or its death.
    """
    if not launched_rank():
        return False
    ensure_runtime()
    process = subprocess.Popen(
        _WORKER, env=worker_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, close_fds=False,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        for line in process.stdout:
            event = json.loads(line)
            if event["kind"] == "error":
                raise _error(event)
        if process.wait():
            raise TrainingError(f"a training worker died; the last checkpoint is good, {AGAIN}")
        return True
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _command(workers: int) -> list[str]:
    if workers == 1 or launched_rank() is not None:
        return _WORKER
    beside = Path(sys.executable).parent / "mpiexec"
    launcher = str(beside) if beside.exists() else shutil.which("mpiexec")
    try:
        import mpi4py  # noqa: F401
    except ImportError:
        launcher = None
    if launcher is None:
        raise TrainingError("several workers need MPI: pip install 'trp-onnx[mpi]', or give --workers 1")
    return [launcher, "-n", str(workers), *_WORKER]


def _error(event: dict[str, Any]) -> TrpOnnxError:
    kind = getattr(errors, event["type"], TrainingError)
    return kind(event["message"])


def _line(event: dict[str, Any]) -> str:
    loss = f"loss {event['loss']:.3f}" if event["loss"] is not None else ""
    ranks = f"ranks {min(event['ranks'])}-{max(event['ranks'])}  " if event["ranks"] else ""
    return f"epoch {event['epoch']}  {loss}  {_macs(event)}{ranks}{event['images_per_second']:.0f} images/s"


def _summary(event: dict[str, Any], *, timed: bool) -> str:
    """`timed`: whether epochs are not counted."""
    accuracy = event["accuracy"]
    quality = f"validation {accuracy:.2%}" if accuracy is not None else f"distance {-event['score']:.4f}"
    if event["metric"] is not None:
        quality = f"score {event['score']:.4g} ({event['metric']})"
    place = f"step {event['step']:5d}" if timed else f"epoch {event['epoch']:3d}/{event['epochs']}"
    loss = "" if event["loss"] is None else f"loss {event['loss']:.4f}  "
    return f"{place}  {loss}{quality}  {_macs(event)}{event['seconds']:.0f} s"


def _macs(event: dict[str, Any]) -> str:
    """Of the planned layers; nothing is planned while factors are trained."""
    return f"MACs {event['macs']:.3f}  " if event["ranks"] else ""
