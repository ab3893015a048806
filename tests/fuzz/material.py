"""What takes long to make, once for all tries; and everything imported that a command imports."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from tests.fuzz import corpus
from tests.fuzz.tries import TRAINING, Material

CACHED = (
    ["compress", "m.onnx", "-o", "out.onnx", "--macs", "0.6", "--data", "d.npz"],
    ["compress", "m.onnx", "-o", "out.onnx", "--speedup", "1.05"],
)
TRAINED = ["compress", "m.onnx", "-o", "out.onnx", "--macs", "0.6", "--align", "1", "--data", "d.npz", "--train",
           "--training", "t.toml", "--epochs", "1", "--resume"]  # fmt: skip


def imported() -> None:
    """Before the first fork: the product and what it stands on."""
    import trp_onnx

    for module in pkgutil.walk_packages(trp_onnx.__path__, "trp_onnx."):
        if module.name.rpartition(".")[2] not in ("__main__", "worker", "engine", "loop"):
            with suppress(ImportError):
                importlib.import_module(module.name)
    for name in (
        "onnxsim",
        "PIL.Image",
        "scipy.optimize",
        "matplotlib.figure",
        "jinja2",
        "rich.table",
        "rich.progress",
    ):
        with suppress(ImportError):
            importlib.import_module(name)


def material(folder: Path) -> Material:
    """Good files that the product writes, in a folder."""
    models = {name: build().SerializeToString() for name, build in corpus.MODELS.items()}
    folder.mkdir(parents=True)
    (folder / "cached-commands.json").write_text(json.dumps(CACHED))
    (folder / "training-command.json").write_text(json.dumps(TRAINED))
    pid = os.fork()  # sessions of onnxruntime stay in there
    if not pid:
        try:
            _write(folder, models["net"])
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return Material(folder, models)


def _write(folder: Path, net: bytes) -> None:
    from trp_onnx.cli.main import main
    from trp_onnx.training import isolated_runtime

    def run(*arguments: str) -> None:
        sys.argv = ["trp-onnx", *arguments]
        with suppress(SystemExit):
            main()

    os.chdir(folder)
    os.environ["TRP_ONNX_CACHE"] = str(folder / "cache")
    os.dup2(os.open(folder / "printed", os.O_WRONLY | os.O_CREAT), 1)
    Path("m.onnx").write_bytes(net)
    np.savez("d.npz", **corpus.samples(corpus.MODELS["net"]()))
    run("profile", "m.onnx", "-o", "table.json")
    for command in CACHED:
        run(*command)
    Path("t.toml").write_text(TRAINING)
    if isolated_runtime.installed_runtime() is not None:
        run(*TRAINED[:-1], "--run", "run")
        Path("run", "result.npz").unlink(missing_ok=True)  # it was about to end
