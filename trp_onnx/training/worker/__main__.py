"""A training worker: `python -m trp_onnx.training.worker`, in the training runtime, started by `supervisor`.

Its first rank is told on stdin which run directories to work on, one a line (`resume DIR` or `start DIR`),
and reports on stdout. The pipe is its lifeline: when it closes, whoever started the worker is gone.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import traceback
from pathlib import Path

from trp_onnx.errors import TrpOnnxError
from trp_onnx.training.communicator import Communicator, connect
from trp_onnx.training.job import END, Files
from trp_onnx.training.metrics import tell


def main() -> None:
    """Work until told to end."""
    communicator = connect()
    try:
        _serve(communicator)
    except BaseException as error:
        _report(error)
        communicator.abort()
        os._exit(1)


def _serve(communicator: Communicator) -> None:
    from trp_onnx.training.worker.loop import Trainer
    from trp_onnx.training.worker.ort_engine import OrtEngine

    orders = _lifeline() if communicator.rank == 0 else None
    while True:
        order = communicator.share(orders.get() if orders is not None else None)
        if order == END:
            return
        how, _, name = order.partition(" ")
        run = Path(name)
        files = communicator.share(Files.read(run) if communicator.rank == 0 else None)
        Trainer(files, run, communicator, OrtEngine()).train(resume=how == "resume")
        if communicator.rank == 0:
            tell("done")


def _lifeline() -> queue.Queue[str]:
    orders: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            orders.put(line.rstrip("\n"))
            if line.rstrip("\n") == END:
                return
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    return orders


def _report(error: BaseException) -> None:
    if isinstance(error, TrpOnnxError):
        tell("error", type=type(error).__name__, message=str(error))
        return
    traceback.print_exc()
    tell("error", type="TrainingError", message=f"the training worker failed: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
