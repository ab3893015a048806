"""What every command has in common: its options, a help of one screen, tables of 80 columns, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from tests import graphs
from trp_onnx.cli.main import main

COMMANDS = sorted(main.commands)
LINES, COLUMNS = 40, 80


def said(*arguments: object, columns: int | None = None) -> str:
    env = {"COLUMNS": None if columns is None else str(columns)}
    result = CliRunner(env=env).invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_is_one_screen(command: str) -> None:
    lines = said(command, "--help", columns=COLUMNS).splitlines()
    assert len(lines) <= LINES and max(map(len, lines)) <= COLUMNS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_options_that_all_have(command: str) -> None:
    flags = {flag for parameter in main.commands[command].params for flag in parameter.opts}
    assert {"-v", "--verbose", "--help-all"} <= flags and said(command, "--help-all").startswith("Usage:")
    assert command == "setup-training" or {"-q", "--quiet", "--json"} <= flags


def test_one_name_means_one_thing() -> None:
    """An option that several commands have is of one type in all of them."""
    kinds: dict[str, set[str]] = {}
    for command in main.commands.values():
        for parameter in command.params:
            for flag in parameter.opts:
                kinds.setdefault(flag, set()).add(parameter.type.to_info_dict()["param_type"])
    assert {flag: found for flag, found in kinds.items() if len(found) > 1} == {}


def test_the_help_of_all_says_what_the_short_one_leaves_out() -> None:
    short, whole = said("compress", "--help"), said("compress", "--help-all")
    assert "more options: --help-all" in short and "more options" not in whole
    assert "alone it is as fast as can be" not in short
    assert "alone it is as fast as can be" in " ".join(whole.split())
    for flag in ("--external-data", "--latency-table", "--momentum"):
        assert flag not in short and flag in whole


def test_the_exit_codes_are_listed() -> None:
    text = " ".join(said("--help").split())
    for code in ("0 done", "1 cannot", "2 wrong usage", "3 target out of reach", "130 interrupted"):
        assert code in text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    net = onnx.load(graphs.conv_net(folder / "net.onnx", channels=24))
    for node in net.graph.node:
        node.name = f"/backbone/stages.{len(node.name)}/blocks/residual_branch/convolution/{node.name}"
    graphs.save(net, folder / "net.onnx")
    x = graphs.rng(1).standard_normal((64, 3, 12, 12)).astype(np.float32)
    np.savez(folder / "d.npz", x=x, y=graphs.run(folder / "net.onnx", {"x": x})[0].argmax(axis=1))
    return folder


@pytest.mark.parametrize(
    "line",
    [
        "compress net.onnx -o out.onnx --macs 0.6 --align 4 --test d.npz",
        "compress net.onnx -o out.onnx --macs 0.6 --align 4 --external-data yes",
        "inspect net.onnx",
        "bench net.onnx net.onnx net.onnx net.onnx --rounds 2",
        "quantize net.onnx -o int8.onnx --data d.npz --test d.npz --original net.onnx --max-drop 50",
        "export net.onnx -o app",
        "profile net.onnx -o table.json",
    ],
    ids=lambda line: " ".join(line.split()[:1]),
)
def test_tables_fit_80_columns_where_the_width_is_not_known(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    text = said(*line.split())
    lines = _without_notes(text)
    assert len(lines) > 2 and max(map(len, text.splitlines())) <= COLUMNS
    quiet, document = said(*line.split(), "--quiet"), json.loads(said(*line.split(), "--json", "-"))
    assert len(_without_notes(quiet)) <= len(lines) and document


def _without_notes(text: str) -> list[str]:
    """The lines of what is printed but for the notes at its end, which a busy machine may add to."""
    return text.partition("\nnote: ")[0].splitlines()


def test_quiet_evaluations_and_diagnoses_are_for_scripts(folder: Path) -> None:
    assert said("evaluate", folder / "net.onnx", "--data", folder / "d.npz", "--quiet") == "100\n"
    assert said("doctor", "--quiet") == ""


def completed(*words: str) -> list[str]:
    """What a shell offers for the last word."""
    env = {**os.environ, "_TRP_ONNX_COMPLETE": "bash_complete", "COMP_CWORD": str(len(words))}
    env["COMP_WORDS"] = " ".join(["trp-onnx", *words])
    done = subprocess.run([sys.executable, "-m", "trp_onnx"], env=env, capture_output=True, text=True, check=False)
    return done.stdout.split()


def test_shells_complete_commands_options_and_file_names() -> None:
    assert completed("comp") == ["plain,compress"]
    assert "plain,--speedup" in completed("compress", "--s")
    assert "plain,tucker2" in completed("compress", "m.onnx", "--scheme", "tu")
    for words in (("compress", "m"), ("bench", "a.onnx", "b"), ("compress", "m.onnx", "--json", "j")):
        assert completed(*words)[0].startswith("file,")
    for command in main.commands.values():
        for parameter in command.params:
            if parameter.metavar in ("FILE", "TOML", "JSON", "ONNX", "DIR") or "MODEL" in parameter.human_readable_name:
                assert parameter.type.to_info_dict()["param_type"] == "Path", (command.name, parameter.name)
