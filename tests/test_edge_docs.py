"""docs/edge.md: what stands in its `sh` blocks runs, in that order, as it is written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.graphs import conv_net, rng, run
from trp_onnx import Preprocessing

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    path = conv_net(tmp_path / "model.onnx", channels=64)
    proto = onnx.load(path)
    for value in (*proto.graph.input, *proto.graph.output):
        for size in value.type.tensor_type.shape.dim[2:]:
            size.dim_value = 32
    for node in proto.graph.node:
        node.input[:] = ["input" if name == "x" else name for name in node.input]
    proto.graph.input[0].name = "input"
    onnx.save(proto, path)
    x = rng().integers(0, 256, (128, 32, 32, 3), np.uint8)
    inputs = Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))(x)
    y = run(path, {"input": inputs})[0].argmax(axis=1)
    np.savez(tmp_path / "samples.npz", x=x[:96])
    np.savez(tmp_path / "test.npz", x=x[96:], y=y[96:])
    shutil.copy(DOCS / "classify.py", tmp_path)

    blocks = re.findall(r"^```sh\n(.*?)^```", (DOCS / "edge.md").read_text(), re.DOTALL | re.MULTILINE)
    commands = [line for block in blocks for line in block.replace("\\\n", "").splitlines() if line]
    assert len(commands) >= 10 and all(line.startswith(("trp-onnx ", "python ", "printf ")) for line in commands)
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "as they are stored" not in done.stderr, f"{command}\n{done.stderr}"
    for name in ("shipped/small.ort", "shipped/manifest.json", "shipped-int8/small-int8.ort", "table.json"):
        assert (tmp_path / name).is_file()
    assert done.stdout.count("class ") == 4
