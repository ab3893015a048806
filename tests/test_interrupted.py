"""What is interrupted, killed or damaged: nothing half stays, nothing of a user's goes, one sentence says it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import trp_onnx
from tests import graphs
from tests.easy import compress
from trp_onnx.cli.main import main
from trp_onnx.errors import TrainingError, UsageError
from trp_onnx.training import TrainingOptions

COMPRESS = ("compress", "net.onnx", "-o", "out.onnx", "--macs", "0.6", "--align", "1")


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return graphs.conv_net(tmp_path / "net.onnx", channels=12)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    x = graphs.rng().standard_normal((64, 12, 12, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(64) % 10)
    return tmp_path / "data.npz"


def start(folder: Path, *arguments: object, before: str = "pass") -> subprocess.Popen[str]:
    """A command, with some Python before it."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    code = f"import sys; {before}; from trp_onnx.cli.main import main; main(prog_name='trp-onnx')"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=folder, env=env, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(60_000):
        if holds():
            return
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


def partials(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if ".partial" in path.name]


# Killed.

HANGS = "import trp_onnx.commands.compress as c, time; c.verify = lambda *a: time.sleep(600)"


def test_what_a_killed_command_left_goes_with_the_next(net: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *COMPRESS, before=HANGS)
    until(lambda: bool(partials(tmp_path)), process)
    process.kill()
    process.communicate()
    living = start(tmp_path, *COMPRESS, before=HANGS)
    until(lambda: any(str(living.pid) in name for name in partials(tmp_path)), living)
    (tmp_path / ".out.onnx.mine.partial").mkdir()
    (tmp_path / ".out.onnx.0123abcd-1-1.0123abcd.partial").mkdir()  # of another host that shares the disk
    compress(net, "out.onnx", macs=0.6, align=1)
    left = {Path(name).name for name in partials(tmp_path) if Path(name).parent == tmp_path}
    assert {".out.onnx.mine.partial", ".out.onnx.0123abcd-1-1.0123abcd.partial"} <= left
    assert len(left) == 3 and any(str(living.pid) in name for name in left)
    living.kill()
    living.communicate()
    compress(net, "out.onnx", macs=0.6, align=1)
    assert len([name for name in partials(tmp_path) if Path(name).parent == tmp_path]) == 2


class Killed(BaseException):
    """Stands for SIGKILL: nothing is done after it."""


def killed_at(last: int, patch: pytest.MonkeyPatch) -> None:
    """A kill before the step of that number, of those that move or remove a file of the result."""
    done: list[str] = []

    def before(do: Callable[..., Any]) -> Callable[..., Any]:
        def step(path: Path, *args: Any, **more: Any) -> Any:
            if path.name.startswith("out.onnx") and not path.name.endswith((".f", ".partial")):
                if len(done) == last:
                    raise Killed
                done.append(path.name)
            return do(path, *args, **more)

        return step

    for name in ("replace", "unlink"):
        patch.setattr(Path, name, before(getattr(Path, name)))


def test_a_kill_between_a_model_and_its_weights(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every step of moving both into place a model stands there with its weights: the old one or the new one."""
    source = tmp_path / "in" / "net.onnx"
    source.parent.mkdir()
    onnx.save(onnx.load(net), source, save_as_external_data=True, location="net.bin", size_threshold=0)
    folder = tmp_path / "out"
    folder.mkdir()
    out, x = folder / "out.onnx", {"x": graphs.rng(5).standard_normal((2, 3, 12, 12)).astype(np.float32)}

    def write(macs: float) -> None:
        compress(source, out, macs=macs, align=1, simplify=False, external_data="yes")

    def given() -> np.ndarray:
        return graphs.run(out, x)[0]

    write(0.8)
    old = given()
    write(0.4)
    new = given()
    write(0.8)
    assert not np.allclose(old, new) and np.array_equal(given(), old)
    found = []
    for last in itertools.count():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("shutil.rmtree", lambda *_, **__: None)
            killed_at(last, patch)
            try:
                write(0.4)
            except Killed:
                found.append("old" if np.array_equal(given(), old) else "new" if np.array_equal(given(), new) else "")
            else:
                break
        write(0.8)
        assert np.array_equal(given(), old)
        (data,) = (path.name for path in folder.iterdir() if path.is_file() and path != out)
        assert data in ("out.onnx.data", "out.onnx.1.data")
    assert found == ["old", "old", "new"]


def test_killed_exports_and_small_files(net: Path, tmp_path: Path) -> None:
    hangs = "import trp_onnx.edge.exporting as e, time; e._compare = lambda *a: time.sleep(600)"
    process = start(tmp_path, "export", "net.onnx", "-o", "app", before=hangs)
    until(lambda: bool(partials(tmp_path)), process)
    process.kill()
    process.communicate()
    hangs = "import pathlib, time; pathlib.Path.replace = lambda *a: time.sleep(600)"
    process = start(tmp_path, "inspect", "net.onnx", "--json", "j.json", before=hangs)
    until(lambda: len([name for name in partials(tmp_path) if "j.json" in name]) > 0, process)
    process.kill()
    process.communicate()
    for arguments in (("export", "net.onnx", "-o", "app"), ("inspect", "net.onnx", "--json", "j.json")):
        assert CliRunner().invoke(main, arguments).exit_code == 0
    assert not partials(tmp_path)


# Interrupted.


def test_an_interrupt_while_the_demo_fits_its_network_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    told = (
        "import time; from sklearn.linear_model import LogisticRegression as R\n"
        "def fit(self, *a):\n"
        "    open('fitting', 'w').close(); time.sleep(60)\n"
        "R.fit = fit\n"
    )
    code = f"exec({told!r})"
    process = start(tmp_path, "demo", "-o", "demo", before=code)
    until((tmp_path / "fitting").exists, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1] == "trp-onnx: interrupted; nothing was written"
    assert not list((tmp_path / "demo").glob("*"))


def test_an_interrupt_while_samples_are_spooled(net: Path, tmp_path: Path) -> None:
    """What went to disk meanwhile has gone, and so has the folder of the result."""
    (tmp_path / "endless.py").write_text(
        "import itertools, numpy as np\n"
        "def samples():\n"
        "    for i in itertools.count():\n"
        "        if i == 50: open('reading', 'w').close()\n"
        "        yield {'x': np.zeros((1, 3, 12, 12), np.float32)}\n"
    )
    (tmp_path / "spool").mkdir()
    spools = (
        "import os, tempfile, trp_onnx.data.spool as s; s.SPOOL_BYTES = 1; tempfile.tempdir = os.path.abspath('spool')"
    )
    process = start(tmp_path, *COMPRESS, "--data", "endless:samples", before=spools)
    until((tmp_path / "reading").exists, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1] == "trp-onnx: interrupted; nothing was written"
    assert not list((tmp_path / "spool").iterdir()) and not partials(tmp_path) and not (tmp_path / "out.onnx").exists()


def test_an_interrupt_that_a_library_swallows_is_heard(net: Path, tmp_path: Path) -> None:
    swallows = (
        "import trp_onnx.commands.assessing as c, os, signal; real = c.verify\n"
        "def verify(*a, **k):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(5)\n"
        "    except BaseException: pass\n"
        "    return real(*a, **k)\n"
        "c.verify = verify\n"
    )
    process = start(tmp_path, *COMPRESS, before=f"exec({swallows!r})")
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130 and "interrupted; nothing was written" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx"]


# Damaged.


@pytest.mark.parametrize(
    "damage", ["nothing", "null", "[]", '{"key": 1}', "[" * 100_000, "\0\xff", "changed", "folder", "pipe", "number"]
)
def test_a_damaged_cache_is_done_without(
    net: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setenv("TRP_ONNX_CACHE", str(tmp_path / "cache"))

    def compressed() -> trp_onnx.Report:
        return compress(net, tmp_path / "out.onnx", macs=0.6, align=1, data=data, scheme="spatial")

    right = compressed()
    entries = list((tmp_path / "cache").rglob("*.json"))
    assert entries
    for entry in entries:
        document = json.loads(entry.read_text())
        entry.unlink()
        if damage == "folder":
            entry.mkdir()
        elif damage == "pipe":
            os.mkfifo(entry)
        elif damage in ("changed", "number"):
            document["value"] = {"changed": [None, "x"], "number": 1e9}[damage]
            entry.write_text(json.dumps(document))
        else:
            entry.write_bytes({"nothing": ""}.get(damage, damage).encode("latin-1"))
    assert compressed().layers == right.layers


TRAIN = TrainingOptions(epochs=1, batch=16, augment=())


def train(net: Path, data: Path, **more: object) -> trp_onnx.Report:
    arguments: dict[str, object] = {"macs": 0.6, "align": 1, "train": TRAIN, "data": data} | more
    return compress(net, "out.onnx", **arguments)  # type: ignore[arg-type]


@pytest.mark.slow
def test_damaged_checkpoints(net: Path, data: Path, training_runtime: None) -> None:
    train(net, data, run="r")
    for name in ("result.npz", "checkpoint.npz"):
        path = Path("r") / name
        good = path.read_bytes()
        with np.load(path) as archive:
            arrays = dict(archive)
        state = json.loads(arrays["state"].tobytes())
        wrong: dict[str, bytes | dict[str, object]] = {
            "half": good[: len(good) // 2],
            "flipped": good[: len(good) // 3] + bytes([good[len(good) // 3] ^ 64]) + good[len(good) // 3 + 1 :],
            "nothing": b"",
            "list": {"state": [1]},
            "types": {"state": state | {"step": "four", "best": 3, "epoch": None, "ranks": {"a": 1}}},
            "missing": {"state": {"format": state["format"]}},
            "shapes": {"weights": np.zeros(3, np.float32)},
            "objects": {"weights": np.array([{}], dtype=object)},
        }
        for changed in wrong.values():
            if isinstance(changed, bytes):
                path.write_bytes(changed)
            else:
                text = json.dumps(changed.pop("state", state)).encode()
                np.savez(path, **(arrays | changed | {"state": np.frombuffer(text, np.uint8)}))  # type: ignore[arg-type]
            with pytest.raises(TrainingError, match="is damaged: remove its folder and start again"):
                train(net, data, run="r", resume=True)
        path.unlink()  # without a result it goes on from the checkpoint
        path.with_name("metrics.jsonl").write_bytes(b'[]\nnull\n{"step": "x"}\n\xff\xfe{"step": 1}\n' + b"[" * 99_999)
    path.write_bytes(good)
    Path("r/job.json").write_text("no job")
    assert train(net, data, run="r", resume=True).trained is not None


# A user's own.


def test_a_folder_that_is_not_ours_is_no_run_folder(net: Path, data: Path, tmp_path: Path) -> None:
    for folder in ("out.onnx.trp-run", "mine"):
        Path(folder).mkdir()
        (Path(folder) / "thesis.tex").write_text("years of work")
        with pytest.raises(UsageError, match=r"holds 'thesis\.tex' and was not made"):
            train(net, data, **({} if folder == "out.onnx.trp-run" else {"run": folder}))
        assert [path.name for path in Path(folder).iterdir()] == ["thesis.tex"]


def test_only_our_files_are_removed(net: Path, data: Path, training_runtime: None) -> None:
    train(net, data, run="kept")
    shutil.copytree("kept", "out.onnx.trp-run")
    folder = Path("out.onnx.trp-run")
    for name in ("notes.txt", "plots/loss.png", "finetune/mine.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    report = train(net, data, resume=True)
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert left == ["finetune/mine.txt", "notes.txt", "plots/loss.png"]
    assert any("out.onnx.trp-run' stays: it holds 'finetune/mine.txt'" in note for note in report.notes)


def test_a_run_that_is_killed_before_its_folder_has_a_marker(net: Path, data: Path, training_runtime: None) -> None:
    hangs = "import pathlib, time; pathlib.Path.replace = lambda *a: time.sleep(600)"
    command = (*COMPRESS, "--train", "--data", data, "--epochs", "1", "--augment", "none", "--resume")
    process = start(net.parent, *command, before=hangs)
    until(lambda: any("trp-onnx-run" in name for name in partials(net.parent)), process)
    process.kill()
    process.communicate()
    assert train(net, data, resume=True).macs.ratio <= 0.6
    assert not partials(net.parent) and not Path("out.onnx.trp-run").exists()


def test_a_folder_that_is_not_ours_is_no_demo(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    (tmp_path / "plan.toml").write_text("mine")
    with pytest.raises(UsageError, match=r"plan\.toml' is no part of a report"):
        trp_onnx.demo(tmp_path)
    assert (tmp_path / "plan.toml").read_text() == "mine"


def test_a_folder_that_is_no_runtime_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRP_ONNX_TRAINING", str(tmp_path))
    (tmp_path / "thesis.tex").write_text("years of work")
    wheel = tmp_path / "onnxruntime_training_cpu-1.19.2-py3-none-any.whl"
    wheel.write_bytes(b"")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        trp_onnx.setup_training(wheel)
    assert sorted(path.name for path in tmp_path.iterdir()) == [wheel.name, "thesis.tex"]


# Refused before any work.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"speedup": 1.5, "macs": None, "train": TrainingOptions(strategy="replan")}, "finds ranks itself"),
        ({"speedup": 2.0, "macs": None, "energy": 0.1, "train": TrainingOptions(strategy="paper")}, "only one of"),
        ({"macs": None, "train": TrainingOptions(strategy="replan")}, "needs --macs"),
        ({"macs": None, "train": TrainingOptions(strategy="paper")}, "needs --energy"),
        ({"macs": 1.5, "train": TrainingOptions(strategy="replan")}, "between 0 and 1"),
        ({"macs": 1.5}, "between 0 and 1"),
        ({"macs": None, "energy": 2.0}, "from 0 to below 1"),
        ({"macs": None}, "say how far to go"),
        ({"macs": 0.5, "speedup": 2.0}, "only one of"),
        ({"max_drop": 1.0}, "--max-drop"),
        ({"train": TrainingOptions(output_weights={"nothing": 1.0})}, "no output 'nothing'"),
    ],
)  # fmt: skip
def test_usage_errors_of_training_come_first(
    net: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, object], said: str
) -> None:
    monkeypatch.setenv("TRP_ONNX_TRAINING", str(tmp_path / "none"))  # a runtime would be set up with the first worker
    monkeypatch.setenv("TRP_ONNX_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match=said):
        train(net, data, **arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "net.onnx"]


def test_models_that_are_not_trained_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx import TensorProto, helper

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRP_ONNX_TRAINING", str(tmp_path / "none"))
    half = graphs.info("x", ["N", 8], TensorProto.BFLOAT16)
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    held = {"w": graphs.weights(8, 8)}
    net = graphs.save(graphs.model(nodes, [half], [graphs.info("y", ["N", 8])], held), tmp_path / "brain.onnx")
    np.savez(tmp_path / "rows.npz", x=graphs.weights(64, 8))
    with pytest.raises(trp_onnx.ModelError, match="'x' has type BFLOAT16: training takes models whose inputs"):
        train(net, tmp_path / "rows.npz")
    assert not (tmp_path / "none").exists()
