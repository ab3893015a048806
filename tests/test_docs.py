"""README.md and the guides: their `sh` and `python` blocks run as they are written, and their links lead somewhere."""

from __future__ import annotations

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

DOCS = REPO / "docs"
PAGES = sorted([REPO / "README.md", REPO / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
ELSEWHERE = {"data.md", "edge.md", "python.md"}  # samples of code, or run by other tests
TRAIN = {"recover.md", "training.md"}  # for longer than a test may
MADE = {"cli.md", "python.md", "json.md", "architecture.md", "changelog.md", "benchmarks.md"}  # by the site


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
    """What the pages speak of: model.onnx with the input `input` of 3x32x32, samples.npz."""
    net = graphs.conv_net(tmp_path / "model.onnx", channels=64)
    graphs.resized(net, {"x": "input"}, 32)
    x = graphs.rng().standard_normal((64, 3, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=x, y=graphs.run(net, {"input": x})[0].argmax(axis=1))
    return tmp_path


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(shlex.split(command), cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Path, folder: Path) -> None:
    commands = [line for block in blocks(page, "sh") for line in lines_of(block) if line.startswith("trp-onnx ")]
    for given in commands:
        command = given
        done = run(command, folder)
        if done.returncode == 3:  # a busy machine, or one of other kernels, may not be as fast as the page asks
            command = re.sub(r"--speedup \S+", "--macs 0.7", command)
            done = run(command, folder)
        # Speed is no promise of a test: what was recorded on a busy machine need not hold.
        fine = done.returncode == 0 or (command.startswith("trp-onnx verify") and done.returncode == 1)
        assert fine and "Traceback" not in done.stderr, f"{command}\n{done.stdout}\n{done.stderr}"


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
            assert (page.parent / target).exists() or Path(target).name in MADE, target


def test_the_readme_is_short() -> None:
    assert len((REPO / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_the_picture_is_that_of_the_results() -> None:
    drawn = picture.PICTURE.read_text(encoding="utf-8")
    assert all(name.split(" (")[0] in drawn for name in picture.NAMES.values())
    assert picture.marks(drawn) == picture.marks(picture.drawn())


def test_every_page_is_in_the_navigation() -> None:
    listed = (REPO / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(str(page.relative_to(DOCS)) in listed for page in DOCS.rglob("*.md"))
