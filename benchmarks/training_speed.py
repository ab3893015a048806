"""Images per second per core in training: ours, with and without each rewrite, beside PyTorch's.

    pip install -e '.[benchmark]'
    python benchmarks/training_speed.py            # all; results/training_speed.json

Every contender is a process of its own with one thread, which takes steps when it is told to. They take
turns, in an order that flips every round; what is reported is the median of the ratios of a round. A step is
forward, backward and SGD with Nesterov's momentum on one batch in memory. Also: two workers against one,
and which part of a step data, projection and optimizer take (m = 20, crop and flip).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _residual import CLASSES, NETS, as_onnx, as_torch
from _results import Results, Row, markdown

BATCHES = (64, 128)
REWRITES = {
    "plain": (),
    "+ relu": ("relu",),
    "+ input gradient": ("relu", "input_gradient"),
    "+ blocked": ("relu", "input_gradient", "blocked"),
}
ROUNDS = 9
TURN_SECONDS = 1.5


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    if arguments.contender:
        serve(json.loads(arguments.contender))
        return
    results = Results("training_speed", key=("what", "net", "batch"))
    for net in NETS:
        for batch in BATCHES:
            if not results.has(what="speed", net=net, batch=batch):
                results.add(speed(net, batch, arguments.rounds))
                print(results.rows[-1], flush=True)
    if not results.has(what="workers", net="resnet20", batch=128):
        results.add(workers(arguments.rounds))
        print(results.rows[-1], flush=True)
    if not results.has(what="shares", net="resnet20", batch=128):
        results.add(shares())
        print(results.rows[-1], flush=True)
    print(table(results.rows))


def speed(net: str, batch: int, rounds: int) -> dict[str, Any]:
    """Every contender on one network."""
    found = compete(
        {"torch": {"kind": "torch", "net": net, "batch": batch},
         "torch, channels last": {"kind": "torch", "net": net, "batch": batch, "channels_last": True}}
        | {name: {"kind": "ours", "net": net, "batch": batch, "only": only} for name, only in REWRITES.items()},
        batch, rounds, base="torch",
    )  # fmt: skip
    return {"what": "speed", "net": net, "batch": batch} | found


def workers(rounds: int) -> dict[str, Any]:
    """Two workers and one, the same global batch."""
    one = {"kind": "ours", "net": "resnet20", "batch": 128, "only": None}
    found = compete({"1 worker": one, "2 workers": one | {"workers": 2}}, 128, rounds, base="1 worker")
    return {"what": "workers", "net": "resnet20", "batch": 128} | found


def shares() -> dict[str, Any]:
    """Parts of a training run's time."""
    order = {"kind": "ours", "net": "resnet20", "batch": 128, "only": None, "project": True}
    with Contender(order) as contender:
        contender.take(20)
        spent = contender.ask({"spent": 200})
    total = sum(spent.values())
    return {"what": "shares", "net": "resnet20", "batch": 128} | {k: round(v / total, 4) for k, v in spent.items()}


def compete(orders: dict[str, dict[str, Any]], batch: int, rounds: int, base: str) -> dict[str, Any]:
    """Interleaved turns; images per second (of the median turn) and the median ratio to the base."""
    contenders = {name: Contender(order) for name, order in orders.items()}
    try:
        steps = {}
        for name, contender in contenders.items():
            contender.take(3)
            steps[name] = max(1, round(TURN_SECONDS / (contender.take(2) / 2)))
        rates: dict[str, list[float]] = {name: [] for name in orders}
        for round_ in range(rounds):
            for name in list(orders) if round_ % 2 == 0 else list(reversed(orders)):
                rates[name].append(batch * steps[name] / contenders[name].take(steps[name]))
    finally:
        for contender in contenders.values():
            contender.close()
    first = np.array(rates[base])
    return {
        "images_per_second": {name: round(float(np.median(r)), 1) for name, r in rates.items()},
        "ratio": {name: round(float(np.median(np.array(r) / first)), 3) for name, r in rates.items()},
    }


class Contender:
    """A process that trains when it is asked to."""

    def __init__(self, order: dict[str, Any]) -> None:
        from trp_onnx.training.isolated_runtime import worker_environment

        command = [sys.executable, __file__, "--contender", json.dumps(order)]
        if order.get("workers", 1) > 1:
            beside = Path(sys.executable).parent / "mpiexec"
            command = [str(beside) if beside.exists() else shutil.which("mpiexec") or "mpiexec",
                       "-n", str(order["workers"]), *command]  # fmt: skip
        environment = worker_environment() if order["kind"] == "ours" else os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.ask({"steps": 0})

    def take(self, steps: int) -> float:
        """Seconds for so many steps."""
        return float(self.ask({"steps": steps}))

    def ask(self, question: dict[str, Any]) -> Any:
        """One line there, one back."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(order: dict[str, Any]) -> None:
    """The other side."""
    if order["kind"] == "torch":
        step, first = torch_step(order), True
        spent: dict[str, float] = {}
        share = lambda value: value  # noqa: E731
    else:
        step, spent, share, first = our_step(order)
    while True:
        line = share(sys.stdin.readline() if first else None)
        if not line:
            return
        question = json.loads(line)
        spent.clear()
        start = time.perf_counter()
        for _ in range(question.get("steps", question.get("spent", 0))):
            step()
        answer: Any = dict(spent) if "spent" in question else time.perf_counter() - start
        if first:
            print(json.dumps(answer), flush=True)


def torch_step(order: dict[str, Any]) -> Callable[[], None]:
    """PyTorch as its tutorials train."""
    import torch

    torch.set_num_threads(1)
    layout = torch.channels_last if order.get("channels_last") else torch.contiguous_format
    model = as_torch(order["net"]).to(memory_format=layout).train()
    x = torch.randn(order["batch"], 3, 32, 32).to(memory_format=layout)
    y = torch.randint(0, CLASSES, (order["batch"],))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    loss_of = torch.nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        loss_of(model(x), y).backward()
        optimizer.step()

    return step


def our_step(order: dict[str, Any]) -> tuple[Callable[[], None], dict[str, float], Callable[[Any], Any], bool]:
    """The product's own trainer."""
    import onnx_ir as ir

    from trp_onnx.data import Preprocessing
    from trp_onnx.graph.inputs import Run, inputs_of
    from trp_onnx.graph.layers import find_layers
    from trp_onnx.job import Goal
    from trp_onnx.planning import Planner
    from trp_onnx.training import TrainingOptions
    from trp_onnx.training.batches import DataSource
    from trp_onnx.training.communicator import connect
    from trp_onnx.training.job import Files, Job
    from trp_onnx.training.losses import OutputLoss
    from trp_onnx.training.projection import Projection
    from trp_onnx.training.schedules import Fixed
    from trp_onnx.training.targets import targets_of
    from trp_onnx.training.trainable import make_trainable
    from trp_onnx.training.worker import loop, ort_engine

    if order["only"] is not None:
        ort_engine.speed_up = partial(ort_engine.speed_up, only=tuple(order["only"]))  # type: ignore[assignment]
    world = connect()
    model = ir.from_proto(as_onnx(order["net"]))
    rng = np.random.default_rng(0)
    ready = make_trainable(model, Run({"x": rng.standard_normal((2, 3, 32, 32)).astype(np.float32)}, 2))
    projection = Projection()
    if order.get("project"):
        layers = find_layers(model)
        chosen = Planner(layers, scheme="spatial").plan(Goal(macs=0.4)).chosen
        total = sum(layer.macs or 0 for layer in layers)
        projection = Projection(tuple(targets_of(layers, chosen)), Fixed(0.4), every=20, total_macs=total)
    folder = Path(tempfile.mkdtemp())
    images = rng.integers(0, 255, (2560, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "x.npz", x=images, y=rng.integers(0, CLASSES, len(images)))
    micro = order["batch"] if not order.get("workers") and not order.get("project") else 64
    options = TrainingOptions(epochs=1000, batch=order["batch"], micro_batch=micro, rate=0.01)
    source = DataSource(str(folder / "x.npz"), "", Preprocessing(scale=1 / 255), inputs_of(model))
    loss = OutputLoss("logits", 1, CLASSES, label_weight=1.0)
    job = Job(
        options, (loss,), ready.parameters, ready.no_decay, ready.statistics, projection, source, False,
    )  # fmt: skip
    trainer = loop.Trainer(
        Files(job.to_json(), ready.model.SerializeToString(), b""), folder, world, ort_engine.OrtEngine()
    )
    if order.get("project"):
        stream = loop.prefetch(b for epoch in range(1000) for b in trainer.data.epoch(epoch, 0, world.rank, world.size))

        def step() -> None:
            with trainer.timed("data"):
                batch = next(stream)
            trainer.train_on(batch, 10**6)
    else:
        batch = next(iter(trainer.data.epoch(0, 0, world.rank, world.size)))

        def step() -> None:
            trainer.train_on(batch, 10**6)

    return step, trainer.spent, world.share, world.rank == 0


CONTENDERS = {
    "torch": "PyTorch, default layout",
    "torch, channels last": "PyTorch, channels last",
    "plain": "ours, graph as built",
    "+ relu": "+ ReLU gradient",
    "+ input gradient": "+ input gradient as convolution",
    "+ blocked": "+ blocked convolutions",
}
TIMED = {"resnet20": "ResNet-20", "wide": "64-256 channels"}


def table(measured: Sequence[Row]) -> str:
    """Contenders down, networks and batches across."""
    rows = [row for row in measured if row["what"] == "speed"]
    names = dict.fromkeys(name for row in rows for name in row["ratio"])
    lines = []
    for name in names:
        cells = (
            f"{row['images_per_second'][name]:.0f} ({row['ratio'][name]:.2f}x)" if name in row["ratio"] else ""
            for row in rows
        )
        lines.append((CONTENDERS.get(name, name), *cells))
    heads = (f"{TIMED.get(row['net'], row['net'])}, batch {row['batch']}" for row in rows)
    return markdown(("images/s on one core (ratio to PyTorch)", *heads), lines)


if __name__ == "__main__":
    main()
