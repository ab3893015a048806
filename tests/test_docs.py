"""README.md and the guides: their `sh` and `python` blocks run as they are written, and their links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import picture
from tests import graphs
from tests.conftest import REPO
from trp_onnx.cli.main import main

DOCS = REPO / "docs"
PAGES = sorted([REPO / "README.md", REPO / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
ELSEWHERE = {"data.md", "edge.md", "python.md"}  # samples of code, or run by other tests
TRAIN = {"recover.md", "training.md"}  # for longer than a test may
MADE = {
    DOCS / name
    for name in ("architecture.md", "benchmarks.md", "changelog.md", "reference/json.md", "reference/python.md")
}  # by the site


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def lines_of(block: str) -> list[str]:
    return [line.partition("  #")[0].strip() for line in block.replace("\\\n", "").splitlines() if line.strip()]


WITH_COMMANDS = [
    page for page in PAGES
    if page.name not in ELSEWHERE | TRAIN
    and any("trp-onnx " in line for b in blocks(page, "sh") for line in lines_of(b))
    and any(line.startswith("trp-onnx ") and "MODEL" not in line for b in blocks(page, "sh") for line in lines_of(b))
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the pages speak of: model.onnx with the input `input` of 3x32x32, samples.npz, test.npz of other images."""
    net = graphs.conv_net(tmp_path / "model.onnx", channels=64)
    graphs.resized(net, {"x": "input"}, 32)
    for seed, name in enumerate(("samples.npz", "test.npz")):
        rng = graphs.rng(seed)
        x = rng.standard_normal((256, 3, 32, 32)) + 2 * rng.standard_normal((256, 3, 1, 1))  # of different classes
        x = x.astype(np.float32)
        np.savez(tmp_path / name, x=x, y=graphs.run(net, {"input": x})[0].argmax(axis=1))
    return tmp_path


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(shlex.split(command), cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Path, folder: Path) -> None:
    commands = [line for block in blocks(page, "sh") for line in lines_of(block) if line.startswith("trp-onnx ")]
    for given in commands:
        verifies = given.startswith("trp-onnx verify")
        command = f"{given} --json verified.json" if verifies else given
        done = run(command, folder)
        if done.returncode == 3:  # a busy machine, or one of other kernels, may not be as fast as the page asks
            command = re.sub(r"--(speedup|max-drop) \S+", "--macs 0.7", command)
            done = run(command, folder)
        if verifies and done.returncode == 1:  # what was recorded on a busy machine need not hold, but of speed alone
            checks = json.loads((folder / "verified.json").read_text())["checks"]
            assert {check["what"] for check in checks if check["holds"] is False} == {"speed"}, done.stdout
        else:
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("name", sorted(TRAIN))
def test_what_a_page_on_training_asks_for_there_is(name: str) -> None:
    """Options that stand in a command are those of this command, others those of any."""
    flags = {command: {o for p in known.params for o in p.opts} for command, known in main.commands.items()}
    commands = [line for block in blocks(DOCS / name, "sh") for line in lines_of(block) if "trp-onnx " in line]
    assert commands
    for line in commands:
        command, *words = line.partition("trp-onnx ")[2].split()
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= flags[command], line
    prose = re.sub(r"^```.*?^```", "", (DOCS / name).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    named = {o for code in re.findall(r"`([^`]+)`", prose) for o in re.findall(r"(?<!\S)--[a-z0-9-]+", code)}
    assert named and named <= set().union(*flags.values()), named


@pytest.mark.parametrize("page", [DOCS / "index.md", REPO / "README.md"], ids=lambda page: page.name)
def test_the_python_of_a_page_names_what_there_is(page: Path) -> None:
    import trp_onnx

    code = blocks(page, "python")
    names = {name for block in code for name in re.findall(r"trp_onnx\.(\w+)", block)}
    assert code and names and all(hasattr(trp_onnx, name) for name in names)
    for block in code:
        compile(block, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            there = (page.parent / target).resolve()
            assert there.exists() or there in MADE, target


def test_the_readme_is_short() -> None:
    assert len((REPO / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_the_picture_is_that_of_the_results() -> None:
    drawn = picture.PICTURE.read_text(encoding="utf-8")
    assert all(name.split(" (")[0] in drawn for name in picture.NAMES.values())
    assert picture.marks(drawn) == picture.marks(picture.drawn())


def test_every_page_is_in_the_navigation() -> None:
    listed = (REPO / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(str(page.relative_to(DOCS)) in listed for page in DOCS.rglob("*.md"))
