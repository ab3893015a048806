"""What is seen of the work while it goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import trp_onnx
from tests.graphs import conv_net

Step = tuple[str, int, int | None]
INSPECT = "import sys, trp_onnx; trp_onnx.inspect(sys.argv[1])"


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return conv_net(tmp_path / "net.onnx")


def test_a_function_is_told_what_is_done_and_how_far_it_is(net: Path) -> None:
    steps: list[Step] = []
    with trp_onnx.on_progress(lambda *step: steps.append(step)):
        trp_onnx.inspect(net)
    assert steps == [("spectra", done, 3) for done in range(4)]
    trp_onnx.inspect(net)
    assert len(steps) == 4


def test_what_the_function_raises_ends_the_work_and_nothing_is_written(net: Path, tmp_path: Path) -> None:
    def enough(what: str, done: int, total: int | None) -> None:
        raise StopIteration

    with pytest.raises((StopIteration, RuntimeError)), trp_onnx.on_progress(enough):
        trp_onnx.compress(net, tmp_path / "out.onnx", trp_onnx.Goal(macs=0.6), search=trp_onnx.SearchSpace(align=1))
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def at_a_terminal(*command: object, **environment: str) -> tuple[str, str]:
    """What a command prints with stderr on a terminal and stdout in a pipe: both."""
    ours, theirs = os.openpty()
    env = {**os.environ, "TERM": "xterm", **environment}
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, env=env
    )
    os.close(theirs)
    shown = b"".join(_read(ours))
    assert process.stdout is not None
    printed = process.stdout.read().decode()
    assert process.wait() == 0, shown
    process.stdout.close()
    os.close(ours)
    return printed, shown.decode()


def _read(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # the other side is closed
            return
        if not part:
            return
        yield part


posix = pytest.mark.skipif(os.name != "posix", reason="terminals of POSIX")


@posix
def test_a_terminal_shows_bars_by_itself(net: Path) -> None:
    assert "spectra" in at_a_terminal("-c", INSPECT, net)[1]
    assert at_a_terminal("-c", INSPECT, net, TRP_ONNX_NO_PROGRESS="1") == ("", "")
    off = f"import trp_onnx\nwith trp_onnx.on_progress(None): trp_onnx.inspect({str(net)!r})"
    assert at_a_terminal("-c", off) == ("", "")


@posix
def test_what_is_piped_goes_to_the_pipe_while_bars_are_shown(net: Path) -> None:
    code = f"""
import numpy, trp_onnx
def draw():
    print("mine")
    yield numpy.ones((3, 12, 12), numpy.float32)
trp_onnx.inspect({str(net)!r}, inputs=draw())
"""
    printed, shown = at_a_terminal("-c", code)
    assert printed == "mine\n" and "spectra" in shown


def test_elsewhere_nothing_is_shown(net: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trp_onnx.inspect(net)
    assert capfd.readouterr() == ("", "")


def test_a_notebook_shows_one_bar_that_goes(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures: list[str] = []
    handle = types.SimpleNamespace(update=pictures.append)

    def display(picture: str, display_id: bool) -> object:
        pictures.append(picture)
        return handle

    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(HTML=str, display=display))
    trp_onnx.inspect(net)
    assert pictures[0] == 'spectra <progress value="0" max="3"></progress> 0/3' and pictures[-1] == ""
