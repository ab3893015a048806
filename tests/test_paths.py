"""What is written never takes the place of anything that is read, in every command."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import trp_onnx
from tests import graphs
from tests.easy import compress
from trp_onnx.cli.main import main
from trp_onnx.errors import UsageError

COMPRESS = ("compress", "net.onnx", "-o", "out.onnx", "--macs", "0.6", "--align", "1")
TRAIN = (*COMPRESS, "--train", "--epochs", "1", "--batch", "16", "--augment", "none", "--data", "data.npz")

TABLE = {
    "format": "trp-onnx latency table 1", "step": 8, "milliseconds": 1.0, "signatures": {}, "shares": {}, "parts": {},
    "target": {"machine": "a phone", "runtime": "1.22", "provider": "cpu", "threads": 1},
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder full of inputs; whatever happens, none of them changes."""
    monkeypatch.chdir(tmp_path)
    graphs.conv_net(tmp_path / "net.onnx", channels=12)
    built = onnx.load("net.onnx")
    onnx.save(built, "big.onnx", save_as_external_data=True, location="big.bin", size_threshold=0)
    x = graphs.rng().standard_normal((64, 12, 12, 3)).astype(np.float32)
    np.savez("data.npz", x=x, y=np.arange(64) % 10)
    np.savez("inputs.npz", x=x[:1].transpose(0, 3, 1, 2).copy())
    Path("plan.toml").write_text('[[layer]]\nregex = ".*"\nenergy = 0.1\n')
    Path("prep.toml").write_text("scale = 1.0\n")
    Path("training.toml").write_text("epochs = 1\n")
    Path("table.json").write_text(json.dumps(TABLE))
    Path("images").mkdir()
    Path("images/0.png").write_bytes(b"no image, but somebody's")
    Path("batches.py").write_text("def batches(split, epoch): ...\n")
    before = contents(tmp_path)
    yield tmp_path
    after = contents(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if "partial" in name]


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def refused(code: int, said: str, *arguments: str) -> None:
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == code, result.output
    assert said in result.stderr and result.stderr.count("error:") == 1


@pytest.mark.parametrize(
    "command",
    [
        "inspect net.onnx --json net.onnx",
        "inspect net.onnx --json ./images/../net.onnx",
        "inspect big.onnx --json big.bin",
        "evaluate net.onnx --data data.npz --json data.npz",
        "evaluate net.onnx --data data.npz --json net.onnx",
        "evaluate net.onnx --data data.npz --preprocess prep.toml --json prep.toml",
        "evaluate net.onnx --data images --json images/0.png",
        "evaluate big.onnx --data data.npz --json big.bin",
        "bench net.onnx big.onnx --json big.bin",
        "bench net.onnx --inputs inputs.npz --json inputs.npz",
        "profile net.onnx -o net.onnx",
        "profile big.onnx -o big.bin",
        "quantize net.onnx -o net.onnx --data data.npz",
        "quantize big.onnx -o big.bin --data data.npz",
        "quantize net.onnx -o int8.onnx --data data.npz --json data.npz",
        "quantize net.onnx -o int8.onnx --data data.npz --json int8.onnx",
        "quantize net.onnx -o int8.onnx --data data.npz --original big.onnx --json big.bin",
        "quantize net.onnx -o prep.toml --data data.npz --preprocess prep.toml",
        "compress net.onnx -o net.onnx --macs 0.6",
        "compress big.onnx -o big.bin --macs 0.6",
        "compress net.onnx -o plan.toml --config plan.toml",
        "compress net.onnx -o out.onnx --config plan.toml --save-plan plan.toml",
        "compress net.onnx -o out.onnx --config plan.toml --report .",
        "compress net.onnx -o out.onnx --macs 0.6 --latency-table table.json --json table.json",
        "compress net.onnx -o out.onnx --macs 0.6 --latency-table table.json --save-plan table.json",
        "compress big.onnx -o out.onnx --macs 0.6 --save-plan big.bin",
        "compress big.onnx -o out.onnx --macs 0.6 --json big.bin",
        "compress net.onnx -o out.onnx --macs 0.6 --data data.npz --save-plan data.npz",
        "compress net.onnx -o out.onnx --macs 0.6 --data data.npz --preprocess prep.toml --save-plan prep.toml",
        "compress net.onnx -o out.onnx --macs 0.6 --test data.npz --save-plan data.npz",
        "compress net.onnx -o out.onnx --macs 0.6 --inputs inputs.npz --save-plan inputs.npz",
        "compress net.onnx -o images/0.png --macs 0.6 --data images",
        "compress net.onnx -o out.onnx --macs 0.6 --save-plan out.onnx",
        "compress net.onnx -o out.onnx --macs 0.6 --save-plan out.onnx.data",
        "compress net.onnx -o out.onnx --macs 0.6 --save-plan p.toml --json ./p.toml",
        "compress net.onnx -o out.onnx --macs 0.6 --report r --save-plan r",
        "compress net.onnx -o out.onnx --macs 0.6 --report out.onnx",
        "compress net.onnx --macs 0.6 --json net.lowrank.onnx",
        "compress net.onnx -o out.onnx --macs 0.6 --json out.onnx.data",
        " ".join((*TRAIN, "--run", ".")),
        " ".join((*TRAIN, "--teacher", "big.onnx", "--save-plan", "big.bin")),
        " ".join((*TRAIN, "--training", "training.toml", "--save-plan", "training.toml")),
        "compress net.onnx -o out.onnx --macs 0.6 --train --data batches:batches --save-plan batches.py",
    ],
)
def test_inputs_are_never_replaced(here: Path, command: str) -> None:
    result = CliRunner().invoke(main, command.split(), catch_exceptions=False)
    assert result.exit_code in (1, 2), result.output
    assert result.stderr.count("error:") == 1
    assert not Path("out.onnx").exists() and not Path("int8.onnx").exists()


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_nor_under_another_name(here: Path, link: object) -> None:
    for name in ("net.onnx", "big.bin", "plan.toml"):
        link(here / name, f"other-{name}")  # type: ignore[operator]
    refused(2, "is an input", "inspect", "net.onnx", "--json", "other-net.onnx")
    refused(2, "is an input", "compress", "other-net.onnx", "-o", "net.onnx", "--macs", "0.6")
    refused(2, "belongs to the input", "inspect", "big.onnx", "--json", "other-big.bin")
    refused(2, "is an input", *COMPRESS[:4], "--config", "plan.toml", "--save-plan", "other-plan.toml")
    Path("folder").symlink_to(here)
    refused(2, "is an input", "inspect", "net.onnx", "--json", "folder/net.onnx")
    Path("report").mkdir()
    link(here / "plan.toml", "report/report.json")  # type: ignore[operator]
    refused(2, "is an input", *COMPRESS[:4], "--config", "plan.toml", "--report", "report")


def test_nor_by_the_python_functions(here: Path) -> None:
    for arguments in (
        {"out": "big.bin", "macs": 0.6},
        {"out": "big.onnx", "macs": 0.6},
        {"out": "data.npz", "macs": 0.6, "data": "data.npz"},
        {"out": "out.onnx", "macs": 0.6, "data": "data.npz", "train": trp_onnx.TrainingOptions(), "run": "."},
    ):
        with pytest.raises(UsageError):
            compress("big.onnx", **arguments)  # type: ignore[arg-type]
    for out in ("big.onnx", "big.bin", "data.npz"):
        with pytest.raises(UsageError):
            trp_onnx.quantize("big.onnx", out, "data.npz")


@pytest.mark.parametrize("name", ["manifest.json", "net.ort", "net.required_operators_and_types.config"])
def test_export_beside_its_input(here: Path, name: str) -> None:
    """Its files have names of their own; an input may have one of them."""
    Path("big.bin").replace(name)
    model = onnx.load("big.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = name
    Path("net.onnx").write_bytes(model.SerializeToString())
    before = contents(here)
    refused(2, "belongs to the input", "export", "net.onnx", "-o", ".")
    assert contents(here) == before
    for path, content in (("big.bin", Path(name).read_bytes()),):  # as the fixture left them
        Path(path).write_bytes(content)
    graphs.conv_net(here / "net.onnx", channels=12)


def test_export_into_the_folder_of_its_input(here: Path) -> None:
    result = CliRunner().invoke(main, ["export", "net.onnx", "-o", "."], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert {"net.ort", "manifest.json"} <= {path.name for path in here.iterdir()}


@pytest.mark.parametrize(
    "command", [COMPRESS, ("inspect", "net.onnx"), ("doctor",), ("evaluate", "net.onnx", "--data", "data.npz")]
)
def test_only_files_are_replaced(here: Path, command: tuple[str, ...]) -> None:
    os.mkfifo("pipe")
    Path("nowhere").symlink_to("nothing")
    for target, said in (
        ("/dev/null", "no regular file"), ("pipe", "no regular file"), ("/dev/stdout", "--json -"),
        ("/dev/fd/1", "--json -"), ("/proc/self/fd/2", "--json -"), ("images", "is a folder"),
        ("nowhere", "link to nothing"), ("none/x.json", "does not exist"), ("net.onnx/x.json", "cannot write"),
        ("n" * 300, "cannot write"),
    ):  # fmt: skip
        if Path(target).parent.exists() or not target.startswith("/"):
            refused(1, said, *command, "--json", target)
    for option in ("-o", "--save-plan") if command == COMPRESS else ():
        refused(1, "no regular file", *COMPRESS, option, "pipe")
        refused(1, "no regular file", *COMPRESS, option, "/dev/null")


def test_a_link_to_a_file_is_replaced_not_followed(here: Path) -> None:
    Path("old.json").write_text("old")
    Path("link.json").symlink_to("old.json")
    assert CliRunner().invoke(main, ["inspect", "net.onnx", "--json", "link.json"]).exit_code == 0
    assert Path("old.json").read_text() == "old" and json.loads(Path("link.json").read_text())["layers"]


def test_a_report_replaces_regular_files_only(here: Path) -> None:
    Path("report/report.json").mkdir(parents=True)
    refused(1, "is a folder", *COMPRESS, "--report", "report")
    assert not Path("out.onnx").exists()


def test_an_explicit_output_is_replaced(here: Path) -> None:
    Path("out.onnx").write_bytes(b"anything")
    Path("out.onnx.data").write_bytes(b"not ours to touch: nothing goes there")
    assert CliRunner().invoke(main, COMPRESS).exit_code == 0
    onnx.checker.check_model("out.onnx")
    assert Path("out.onnx.data").read_bytes().startswith(b"not ours")
