"""`trp_onnx.olive`: docs/olive.md as it stands, run by the real Olive in an environment of its own."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import graphs
from tests.conftest import REPO

PAGE = (REPO / "docs" / "olive.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.fixture
def olive() -> Path:
    """The folder of the programs of an environment with Olive."""
    folder = Path(os.environ.get("TRP_ONNX_RUNTIMES", "")) / "olive" / "bin"
    if not (folder / "olive").exists():
        pytest.skip("Olive is absent: benchmarks/other_runtimes.sh DIR olive makes it, TRP_ONNX_RUNTIMES=DIR names it")
    return folder


def test_without_olive_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "olive", None)
    with pytest.raises(ImportError, match="pip install olive-ai"):
        importlib.import_module("trp_onnx.olive")


@pytest.mark.network
@pytest.mark.runtimes
def test_olive_runs_the_workflow_of_the_page(olive: Path, tmp_path: Path) -> None:
    net = graphs.conv_net(tmp_path / "model.onnx", channels=24)
    graphs.resized(net, {"x": "input"}, 16)
    for seed, name in enumerate(("samples.npz", "test.npz")):
        rng = graphs.rng(seed)
        x = (rng.standard_normal((96, 3, 16, 16)) + 2 * rng.standard_normal((96, 3, 1, 1))).astype(np.float32)
        np.savez(tmp_path / name, x=x, y=graphs.run(net, {"input": x})[0].argmax(axis=1))
    (tmp_path / "workflow.json").write_text(block("json"))
    (tmp_path / "for_olive.py").write_text(block("python"))

    env = os.environ | {"PYTHONPATH": str(REPO), "OLIVE_DISABLE_TELEMETRY": "1"}
    listed = subprocess.run([olive / "python", "-m", "trp_onnx.olive"], env=env, capture_output=True, check=True)
    (tmp_path / "packages.json").write_bytes(listed.stdout)
    done = subprocess.run(
        [olive / "olive", "run", "--config", "workflow.json", "--package-config", "packages.json"],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "MACs" in done.stdout + done.stderr
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert scores["top-1"]["value"] > 80
    made = onnx.load(tmp_path / "out" / "model.onnx")
    assert "QuantizeLinear" in {node.op_type for node in made.graph.node}
    assert "trp_onnx.record" in {entry.key for entry in made.metadata_props}
