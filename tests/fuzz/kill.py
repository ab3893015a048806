"""Trainings that are killed at random times: `python -m tests.fuzz.kill --rounds 50 --seed 1`.

Each round trains a small network to the end, killed with SIGKILL on the way, now the command with its worker, now one
of the two, and goes on by --resume until it is done. What comes out must have the same bits as an undisturbed training,
the inputs theirs, and nothing may be left but the output.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.graphs import conv_net, rng

EPOCHS, SAMPLES = 3, 360
VICTIMS = ("all", "command", "worker")


def main() -> int:
    """Rounds of kills; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.kill", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="trp-kill-") as name:
        folder = Path(name)
        make_inputs(folder)
        inputs = {path.name: digest(path) for path in folder.iterdir()}
        began = time.monotonic()
        subprocess.run(command("whole.onnx"), cwd=folder, check=True, capture_output=True)
        seconds = time.monotonic() - began
        print(f"undisturbed: {seconds:.1f} s", flush=True)
        right = digest(folder / "whole.onnx")
        (folder / "whole.onnx").unlink()
        for number in range(given.rounds):
            seed = f"{given.seed}:{number}"
            kills, wrong = one_round(folder, random.Random(seed), seconds, right, inputs)
            counts.update(kills)
            counts.update({"rounds": 1, "failed": bool(wrong)})
            print(f"{seed}  {dict(kills)}  {wrong or 'the same bits'}", flush=True)
    print(dict(counts))
    return int(counts["failed"] > 0)


def make_inputs(folder: Path) -> None:
    """A network and data that it learns something from."""
    conv_net(folder / "net.onnx")
    y = np.arange(SAMPLES) % 10
    x = rng(7).standard_normal((10, 12, 12, 3))[y] + 0.8 * rng(8).standard_normal((SAMPLES, 12, 12, 3))
    np.savez(folder / "data.npz", x=x.astype(np.float32), y=y)
    (folder / "training.toml").write_text("checkpoint_seconds = 0.0\nwarmup = 10\nmicro_batch = 16\n")


def command(out: str) -> list[str]:
    """A training of a few seconds with a checkpoint after every step."""
    return [
        sys.executable, "-m", "trp_onnx", "compress", "net.onnx", "-o", out, "--macs", "0.6", "--align", "1", "-q",
        "--train", "--data", "data.npz", "--epochs", str(EPOCHS), "--batch", "32", "--augment", "crop", "--resume",
        "--training", "training.toml", "--strategy", "replan",
    ]  # fmt: skip


def one_round(
    folder: Path, chance: random.Random, seconds: float, right: str, inputs: dict[str, str]
) -> tuple[collections.Counter[str], str]:
    """Kill and go on until it is done; how often whom, and what went wrong."""
    out, kills = folder / "out.onnx", collections.Counter[str]()
    for _ in range(chance.randint(1, 3)):
        process = subprocess.Popen(
            command(out.name), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        victim, until = chance.choice(VICTIMS), time.monotonic() + chance.uniform(0.05, 0.7) * seconds
        while time.monotonic() < until and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is None:
            kill(victim, process.pid)
            kills[victim] += 1
        process.wait()
        if out.exists():
            break
    if not out.exists():
        done = subprocess.run(command(out.name), cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            return kills, f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1]}"
    wrong = "" if digest(out) == right else "other bits"
    out.unlink()
    if {path.name for path in folder.iterdir()} != inputs.keys():  # the result stood: the next run clears up
        subprocess.run(command(out.name), cwd=folder, check=True, capture_output=True)
        out.unlink()
    left = {path.name for path in folder.iterdir()} - inputs.keys()
    changed = [name for name, was in inputs.items() if digest(folder / name) != was]
    return kills, wrong or (f"left {left}" if left else "") or (f"changed {changed}" if changed else "")


def kill(victim: str, pid: int) -> None:
    """SIGKILL to a command, to its worker, or to both."""
    workers = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    for target in {"all": [pid, *workers], "command": [pid], "worker": workers or [pid]}[victim]:
        try:
            os.kill(target, signal.SIGKILL)
        except ProcessLookupError:
            continue


def digest(path: Path) -> str:
    """Of a file's contents."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
