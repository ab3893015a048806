"""What an app ships: the .ort file does what its source does, the manifest is true, phones are asked."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper

import trp_onnx
from tests.easy import compress
from tests.graphs import conv_net, info, model, rng, run, save, weights
from tests.processes import full_disk
from trp_onnx.cli.main import main
from trp_onnx.edge import exporting
from trp_onnx.errors import ModelError, OutputError, UsageError, VerificationError


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return conv_net(tmp_path / "net.onnx", channels=32)


def test_the_folder_holds_what_the_manifest_says(net: Path, tmp_path: Path) -> None:
    before = net.read_bytes()
    result = CliRunner().invoke(main, ["export", str(net), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.stderr
    assert "net.ort" in result.stdout and "nnapi" in result.stdout
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"net.ort", "net.required_operators_and_types.config", "manifest.json"}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for entry in manifest["files"]:
        content = (tmp_path / "out" / entry["file"]).read_bytes()
        assert entry["bytes"] == len(content) and entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert manifest["source"]["sha256"] == hashlib.sha256(before).hexdigest() and net.read_bytes() == before
    assert manifest["inputs"] == [{"name": "x", "type": "float32", "shape": ["N", 3, 12, 12]}]
    assert manifest["opsets"] == {"ai.onnx": 17} and manifest["target"] == "any"
    assert 0 <= manifest["comparison"]["relative_errors"]["logits"] <= manifest["comparison"]["tolerance"] == 1e-4
    config = (tmp_path / "out" / "net.required_operators_and_types.config").read_text()
    assert "Conv" in config and str(tmp_path) not in config
    x = {"x": rng().standard_normal((2, 3, 12, 12)).astype(np.float32)}
    np.testing.assert_allclose(run(tmp_path / "out" / "net.ort", x)[0], run(net, x)[0], rtol=1e-4, atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "out"]


def test_dynamic_sizes_are_said_or_fixed(net: Path, tmp_path: Path) -> None:
    loose = trp_onnx.export(net, tmp_path / "loose")
    assert any("NNAPI and CoreML then take nothing" in note for note in loose.notes)
    by = {found.provider: found for found in loose.usability}
    assert by["nnapi"].verdict == "no" and by["nnapi"].taken == 0 and by["nnapi"].dynamic > 0
    fixed = trp_onnx.export(net, tmp_path / "fixed", input_shapes={"x": (1, 3, 12, 12)})
    assert fixed.manifest["inputs"][0]["shape"] == [1, 3, 12, 12]
    by = {found.provider: found for found in fixed.usability}
    assert "com.microsoft:FusedConv" in by["nnapi"].missing and any("--style runtime" in note for note in fixed.notes)
    phone = trp_onnx.export(net, tmp_path / "phone", input_shapes={"x": (1, 3, 12, 12)}, style="runtime")
    assert phone.notes == () and phone.manifest["style"] == "runtime"
    assert (tmp_path / "phone" / "net.with_runtime_opt.ort").is_file()
    by = {found.provider: found for found in phone.usability}
    assert by["nnapi"].verdict == "yes" and by["nnapi"].taken == by["nnapi"].nodes
    assert by["coreml"].missing == ("ai.onnx:Flatten",) and by["xnnpack"].taken >= 3
    with pytest.raises(ModelError, match="names 'z'"):
        trp_onnx.export(net, tmp_path / "bad", input_shapes={"z": (1, 3, 12, 12)})
    with pytest.raises(ModelError, match="does not fit"):
        trp_onnx.export(net, tmp_path / "bad", input_shapes={"x": (1, 4, 12, 12)})
    assert not (tmp_path / "bad").exists()


def test_operators_that_phones_do_not_have_are_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Trilu", ["c"], ["y"], name="trilu"),
    ]
    built = model(nodes, [info("x", [1, 3, 8, 8])], [info("y", [1, 4, 6, 6])], {"w": weights(4, 3, 3, 3)})
    net = save(built, tmp_path / "n.onnx")
    found = {entry.provider: entry for entry in trp_onnx.export(net, tmp_path / "out").usability}
    assert found["nnapi"].missing == ("ai.onnx:Trilu",) and found["nnapi"].taken == 1


def test_what_the_checker_cannot_read_is_exported_all_the_same(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    net = save(model(nodes, [info("x", None)], [info("y", None)]), tmp_path / "n.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((2, 3), np.float32))
    result = trp_onnx.export(net, tmp_path / "out", inputs=tmp_path / "x.npz")
    assert (tmp_path / "out" / "n.ort").is_file() and isinstance(result.usability, tuple)


def test_weights_in_another_file(net: Path, tmp_path: Path) -> None:
    onnx.save(onnx.load(net), tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    result = trp_onnx.export(tmp_path / "e.onnx", tmp_path / "out")
    x = {"x": rng().standard_normal((2, 3, 12, 12)).astype(np.float32)}
    np.testing.assert_allclose(run(tmp_path / "out" / "e.ort", x)[0], run(net, x)[0], rtol=1e-4, atol=1e-5)
    assert len(result.usability) == 3


def test_links_and_other_names_are_exported(net: Path, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(net.read_bytes())
    (tmp_path / "link.onnx").symlink_to(tmp_path / "blob")
    (tmp_path / "net.model").write_bytes(net.read_bytes())
    for name in ("link.onnx", "net.model"):
        stem = name.partition(".")[0]
        result = trp_onnx.export(tmp_path / name, tmp_path / stem)
        assert (tmp_path / stem / f"{stem}.ort").is_file() and result.manifest["source"]["file"] == name


def test_advice_on_kernels_and_ranks(net: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[[layer]]\nname = "conv2"\nscheme = "spatial"\nrank = 18\n')
    compress(net, tmp_path / "small.onnx", config=config)
    advice = trp_onnx.export(tmp_path / "small.onnx", tmp_path / "out").advice
    assert {entry.layer for entry in advice} == {"conv2"}
    assert any("KleidiAI" in entry.text for entry in advice) and any("rank 18" in entry.text for entry in advice)
    assert trp_onnx.export(net, tmp_path / "dense").advice == ()


def test_targets(net: Path, tmp_path: Path) -> None:
    blocked = trp_onnx.export(net, tmp_path / "x86", target="amd64")
    plain = trp_onnx.export(net, tmp_path / "arm", target="arm")
    assert blocked.manifest["files"][0]["sha256"] != plain.manifest["files"][0]["sha256"]
    assert "nchwc" in (tmp_path / "x86" / "net.required_operators_and_types.config").read_text().lower()
    assert "nchwc" not in (tmp_path / "arm" / "net.required_operators_and_types.config").read_text().lower()
    with pytest.raises(UsageError, match="--target is any, arm, amd64"):
        trp_onnx.export(net, tmp_path / "out", target="phone")
    with pytest.raises(UsageError, match="--style is fixed or runtime"):
        trp_onnx.export(net, tmp_path / "out", style="phone")


def test_a_file_that_does_something_else_is_not_kept(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = onnx.load(net)
    for tensor in proto.graph.initializer:
        if tensor.name == "w2":
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1.01, "w2"))
    other = tmp_path / "other" / "net.onnx"
    other.parent.mkdir()
    onnx.save(proto, other)
    convert = exporting.convert_to_ort
    monkeypatch.setattr(exporting, "convert_to_ort", lambda _, *rest: convert(other, *rest))
    with pytest.raises(VerificationError, match="differs from its source"):
        trp_onnx.export(net, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "other"]


def test_what_cannot_be_exported(net: Path, tmp_path: Path) -> None:
    def refused(kind: type[Exception], words: str, source: Path, folder: Path) -> None:
        with pytest.raises(kind, match=words):
            trp_onnx.export(source, folder)

    refused(ModelError, "does not exist", tmp_path / "none.onnx", tmp_path / "out")
    (tmp_path / "text.onnx").write_text("hello")
    refused(ModelError, "not an ONNX file", tmp_path / "text.onnx", tmp_path / "out")
    (tmp_path / "net.ort").write_bytes(b"ORTM")
    refused(UsageError, "is an .ort file already", tmp_path / "net.ort", tmp_path / "out")
    (tmp_path / "file").write_text("")
    refused(OutputError, "is a file", net, tmp_path / "file")
    unknown = model([helper.make_node("Magic", ["x"], ["y"])], [info("x", [1])], [info("y", [1])])
    refused(ModelError, "cannot convert", save(unknown, tmp_path / "u.onnx"), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("command", ["export", "quantize"])
def test_a_disk_that_is_full(net: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((64, 12, 12, 3), np.float32))
    options = ["--data", tmp_path / "d.npz"] if command == "quantize" else []
    before = sorted(tmp_path.iterdir())
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with full_disk():
        done = CliRunner().invoke(main, [command, str(net), "-o", str(tmp_path / "out"), *map(str, options)])
    assert done.exit_code == 1 and done.stderr.count("error:") == 1, done.stderr
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != ".ses"] == before


def test_real_models_become_ort_files(real_models: Path, tmp_path: Path) -> None:
    for name in ("resnet20_cifar10_bn", "squeezenet1.1_imagenet"):
        result = trp_onnx.export(real_models / f"{name}.onnx", tmp_path / name)
        assert max(result.manifest["comparison"]["relative_errors"].values()) < 1e-5
