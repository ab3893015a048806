"""docs/python.md: its blocks run, in that order, as they are written."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import trp_onnx
from tests import graphs
from tests.conftest import REPO

PAGE = (REPO / "docs" / "python.md").read_text(encoding="utf-8")


def test_the_blocks_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    net = graphs.conv_net(tmp_path / "model.onnx", channels=24)
    images = graphs.rng(1).integers(0, 256, (160, 12, 12, 3)).astype(np.uint8)
    x = (images.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    np.savez("samples.npz", x=x)
    np.savez("images.npz", x=images)
    np.savez("labelled.npz", x=images, y=graphs.run(net, {"x": x})[0].argmax(axis=1))
    space: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), space)
    printed = capsys.readouterr().out
    assert len(blocks) >= 9 and "MACs" in printed and "spectra: 3 of 3" in printed and "--macs 0.0001" in printed
    files = ("small.onnx", "small-int8.onnx", "report/report.html", "plan.toml", "here.json", "app/model.ort")
    assert all((tmp_path / name).is_file() for name in files)


def test_the_page_names_every_command_and_error() -> None:
    named = set(re.findall(r"`(\w+)`|trp_onnx\.(\w+)", PAGE))
    words = {word for pair in named for word in pair}
    commands = {name for name in dir(trp_onnx) if name.islower() and callable(getattr(trp_onnx, name))}
    errors = {name for name in dir(trp_onnx) if name.endswith("Error")}
    assert commands - {"demo", "setup_training", "metric", "open_data"} <= words and errors <= words
