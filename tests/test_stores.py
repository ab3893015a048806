"""Models whose file and weights are links into a store, or have several names, as onnxruntime reads them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import trp_onnx
from tests import graphs
from tests.easy import compress
from trp_onnx.cli.main import main

STORES = ("Hugging Face", "hard links", "folder link", "data beside the link")


def stored(kind: str, folder: Path) -> Path:
    """The path that a user gives of a model with external data."""
    kept, shown = folder / "blobs", folder / "snapshots" / "1a2b"
    kept.mkdir()
    plain = onnx.load(graphs.conv_net(folder / "plain.onnx", channels=24))
    onnx.save(plain, kept / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    if kind == "folder link":
        shown.parent.mkdir()
        shown.symlink_to(kept)
        return shown / "model.onnx"
    shown.mkdir(parents=True)
    for name, blob in (("model.onnx", "c0ffee"), ("model.onnx_data", "decade")):
        (kept / name).rename(kept / blob)
        if kind == "Hugging Face":
            (shown / name).symlink_to(f"../../blobs/{blob}")
        elif kind == "hard links":
            os.link(kept / blob, shown / name)
        elif name == "model.onnx":
            (shown / name).symlink_to(kept / blob)
        else:
            (kept / blob).rename(shown / name)
    return shown / "model.onnx"


@pytest.mark.parametrize("kind", STORES)
def test_a_model_in_a_store(kind: str, tmp_path: Path) -> None:
    net = stored(kind, tmp_path)
    x = graphs.rng().standard_normal((64, 12, 12, 3)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(64) % 10)
    feeds = {"x": x[:4].transpose(0, 3, 1, 2).copy()}
    expected = graphs.run(tmp_path / "plain.onnx", feeds)[0]
    np.testing.assert_array_equal(graphs.run(net, feeds)[0], expected)  # onnxruntime takes it
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    assert len(trp_onnx.inspect(net).layers) == 3
    report = compress(net, tmp_path / "out.onnx", macs=0.6, align=1, data=tmp_path / "d.npz")
    assert report.file_bytes.before == net.stat().st_size + (net.parent / "model.onnx_data").stat().st_size
    assert graphs.distance(expected, graphs.run(tmp_path / "out.onnx", feeds)[0]) < 1
    assert trp_onnx.bench([net, tmp_path / "out.onnx"], rounds=2).contenders
    assert trp_onnx.quantize(net, tmp_path / "int8.onnx", tmp_path / "d.npz").layers
    assert trp_onnx.evaluate(net, tmp_path / "d.npz").samples == 64
    trp_onnx.export(net, tmp_path / "app")
    trp_onnx.export(net, tmp_path / "fixed", input_shapes={"x": [1, 3, 12, 12]})
    for folder in ("app", "fixed"):
        graphs.run(tmp_path / folder / "model.ort", {"x": feeds["x"][:1]})
    for target in ("model.onnx", "model.onnx_data"):
        assert CliRunner().invoke(main, ["inspect", str(net), "--json", str(net.parent / target)]).exit_code == 2
    assert {path: path.read_bytes() for path in before} == before


def test_what_no_store_does(tmp_path: Path) -> None:
    """A model's own file, or what it names, leads nowhere that neither its folder nor its store is."""
    net = stored("Hugging Face", tmp_path)
    (net.parent / "model.onnx_data").unlink()
    (tmp_path / "secret").write_bytes((tmp_path / "blobs" / "decade").read_bytes())
    (net.parent / "model.onnx_data").symlink_to(tmp_path / "secret")
    with pytest.raises(trp_onnx.ModelError, match="outside the model's folder"):
        trp_onnx.inspect(net)
    (net.parent / "model.onnx_data").unlink()
    with pytest.raises(trp_onnx.ModelError, match="missing"):
        trp_onnx.inspect(net)
    with pytest.raises(trp_onnx.ModelError, match="missing"):
        trp_onnx.inspect(tmp_path / "blobs" / "c0ffee")
