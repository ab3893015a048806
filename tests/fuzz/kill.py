"""Trainings that are killed: `python -m tests.fuzz.kill --rounds 50 --seed 1`.

Each round trains a small network, kills it once with SIGKILL, now the command with its worker, now one of the two, and
goes on by --resume until it is done. The moment is any of its life, or one at which a checkpoint or the result is being
written; a training that ended before it is trained again. What comes out must have the same bits as an undisturbed
training, the inputs theirs, and nothing may be left but the output.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.graphs import conv_net, rng

EPOCHS, SAMPLES = 3, 360
VICTIMS = ("all", "command", "worker")
MOMENTS = ("any", "checkpoint", "result")
PARTS = {"checkpoint": "out.onnx.trp-run/**/*.partial", "result": ".out.onnx.*.partial/out.onnx"}
"""What stands in the folder while one is being written."""


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
        life, right = undisturbed(folder)
        print(f"undisturbed: {life.seconds:.1f} s, of which {life.writing:.1f} s with the result written", flush=True)
        for number in range(given.rounds):
            seed = f"{given.seed}:{number}"
            what, late, wrong = one_round(folder, random.Random(seed), life, right, inputs)
            counts.update({what: 1, "rounds": 1, "late": late, "failed": bool(wrong)})
            print(f"{seed}  {what}  {wrong or 'the same bits'}", flush=True)
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


@dataclass(frozen=True)
class Life:
    """How long an undisturbed training takes: from its start, and from when its result is there, hidden."""

    seconds: float
    writing: float


def undisturbed(folder: Path) -> tuple[Life, str]:
    """Train to the end; what that takes, and the digest of what comes out."""
    began, out = time.monotonic(), folder / "out.onnx"
    process = start(folder)
    while process.poll() is None and not any(folder.glob(PARTS["result"])):
        time.sleep(0.002)
    written = time.monotonic()
    if process.wait():
        raise SystemExit("the training fails undisturbed")
    right = digest(out)
    out.unlink()
    return Life(time.monotonic() - began, time.monotonic() - written), right


def start(folder: Path) -> subprocess.Popen[bytes]:
    """The command, in a session of its own."""
    return subprocess.Popen(
        command("out.onnx"), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def one_round(
    folder: Path, chance: random.Random, life: Life, right: str, inputs: dict[str, str]
) -> tuple[str, int, str]:
    """Kill once, and go on until it is done: when and whom, trainings that ended before, and what went wrong."""
    out, moment, victim, late = folder / "out.onnx", chance.choice(MOMENTS), chance.choice(VICTIMS), 0
    while not killed(folder, chance, life, moment, victim):
        late += 1
        out.unlink()
    wrong = ""
    if not out.exists():
        done = subprocess.run(command(out.name), cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(folder / "out.onnx.trp-run", ignore_errors=True)
            return f"{moment} {victim}", late, f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1]}"
    wrong = "" if digest(out) == right else "other bits"
    out.unlink()
    if {path.name for path in folder.iterdir()} != inputs.keys():  # the result stood: the next run clears up
        subprocess.run(command(out.name), cwd=folder, check=True, capture_output=True)
        wrong = wrong or ("" if digest(out) == right else "other bits afterwards")
        out.unlink()
    left = {path.name for path in folder.iterdir()} - inputs.keys()
    changed = [name for name, was in inputs.items() if digest(folder / name) != was]
    wrong = wrong or (f"left {left}" if left else "") or (f"changed {changed}" if changed else "")
    return f"{moment} {victim}", late, wrong


def killed(folder: Path, chance: random.Random, life: Life, moment: str, victim: str) -> bool:
    """Train until the moment, then kill; False where the training ended before."""
    began, process = time.monotonic(), start(folder)
    until = began + chance.uniform(0.02, 1.0) * (life.seconds - (life.writing if moment == "checkpoint" else 0.0))
    if moment == "result":
        while process.poll() is None and not any(folder.glob(PARTS[moment])):
            time.sleep(0.001)
        until = time.monotonic() + chance.uniform(0.0, 1.0) * life.writing
    while time.monotonic() < until and process.poll() is None:
        time.sleep(0.001)
    if moment == "checkpoint":
        while process.poll() is None and not any(folder.glob(PARTS[moment])):
            time.sleep(0.0002)
        time.sleep(chance.choice((0.0, 0.001, 0.003, 0.01)))
    if process.poll() is not None:
        return False
    kill(victim, process.pid)
    return process.wait() != 0


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
