"""The commands as a user runs them."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image

import trp_onnx
from tests import graphs
from tests.easy import compress
from trp_onnx.cli.main import main
from trp_onnx.errors import UsageError


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return graphs.conv_net(tmp_path / "net.onnx", channels=24)


REPORT_KEYS = {"macs", "parameters", "file_bytes", "outputs", "layers", "notes", "seconds", "tool", "model", "output"}
LAYER_KEYS = {"name", "op", "scheme", "rank", "reason", "macs_before", "macs_after", "relative_error"}


def test_compress_writes_the_model_and_the_report(net: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    text = run(
        "compress",
        net,
        "-o",
        out,
        "--macs",
        0.6,
        "--align",
        4,
        "--report",
        tmp_path / "r",
        "--json",
        tmp_path / "j.json",
    )
    assert out.stat().st_mode & 0o044  # readable by others, as any new file
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert json.loads((tmp_path / "j.json").read_text()) == report
    assert report.keys() >= REPORT_KEYS
    assert all(layer.keys() >= LAYER_KEYS for layer in report["layers"])
    assert report["macs"]["ratio"] == report["macs"]["after"] / report["macs"]["before"] <= 0.6
    assert report["file_bytes"]["after"] == out.stat().st_size
    assert report["parameters"]["after"] == sum(a.size for a in graphs.initializers(out).values())
    for name in ("conv1", "conv2", "fc", "MACs", "file bytes", "output 'logits'"):
        assert name in text


def test_the_reported_output_error_is_that_of_the_two_files(net: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    x = graphs.rng(3).standard_normal((5, 3, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "inputs.npz", x=x)
    report = compress(net, out, macs=0.6, align=1, inputs=tmp_path / "inputs.npz")
    expected, actual = graphs.run(net, {"x": x})[0], graphs.run(out, {"x": x})[0]
    assert report.outputs[0].relative_error == pytest.approx(graphs.distance(expected, actual), rel=1e-4)
    assert report.verified_on == "the inputs in inputs.npz"


def test_json_on_stdout_is_nothing_but_json(net: Path, tmp_path: Path) -> None:
    assert json.loads(run("compress", net, "-o", tmp_path / "o.onnx", "--macs", 0.6, "--align", 1, "--json", "-"))
    assert len(json.loads(run("inspect", net, "--json", "-"))["layers"]) == 3
    assert json.loads(run("doctor", "--json", "-"))["providers"]


def test_an_existing_output_is_replaced_whole(net: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_text("old")
    run("compress", net, "-o", out, "--macs", 0.6, "--align", 1)
    assert graphs.nodes_of(out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "out.onnx"]


def test_compression_is_deterministic(net: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for out in files:
        compress(net, out, macs=0.5, align=1)
    assert graphs.network_of(files[0]) == graphs.network_of(files[1])


def test_a_compressed_model_can_be_compressed_again(net: Path, tmp_path: Path) -> None:
    compress(net, tmp_path / "a.onnx", macs=0.6, align=1)
    report = compress(tmp_path / "a.onnx", tmp_path / "b.onnx", macs=0.8, align=1)
    assert report.macs.ratio <= 0.8
    names = [node.name for node in graphs.nodes_of(tmp_path / "b.onnx")]
    assert len(names) == len(set(names))


def test_inspect_shows_layers_spectra_and_roles(net: Path) -> None:
    text = run("inspect", net)
    for word in ("conv1", "(stem)", "fc", "(last)", "MACs", "99%", "spatial"):
        assert word in text
    views = json.loads(run("inspect", net, "--json", "-"))["layers"]
    assert sum(view["share"] for view in views) == pytest.approx(1)
    assert views[1]["rank_at_energy"].keys() == {"0.90", "0.95", "0.99"}
    assert views[1]["candidates"] == ["spatial", "spatial-mirror", "channel", "channel-mirror", "tucker2"]


def test_inspect_takes_one_row_a_layer_at_80_columns(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    built = onnx.load(net)
    for node in built.graph.node:
        node.name = f"/backbone/stage/of/a/long/network/{node.name}"
    deep = graphs.save(built, net.with_name("deep.onnx"))
    lines = run("inspect", deep).splitlines()
    rows = [line for line in lines if "Conv" in line or "Gemm" in line]
    assert len(rows) == 3 and max(map(len, lines)) <= 80
    assert all(name in row for name, row in zip(("conv1 (stem)", "conv2", "fc (last)"), rows, strict=True))


def test_inspect_prints_its_notes(net: Path) -> None:
    built = onnx.load(net)
    for axis in (2, 3):
        built.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
    text = run("inspect", graphs.save(built, net.with_name("dynamic.onnx")))
    assert "note: the MACs of 2 nodes are unknown" in text


def labelled(net: Path, images: np.ndarray, **options: object) -> np.ndarray:
    """What the network says of images, as labels: its accuracy on them is 1 by construction."""
    preprocessing = trp_onnx.Preprocessing(**options)
    return graphs.run(net, {"x": preprocessing(images)})[0].argmax(axis=1)


def test_evaluate_counts_what_the_written_file_gets_right(net: Path, tmp_path: Path) -> None:
    images = graphs.rng(1).integers(0, 256, (70, 12, 12, 3)).astype(np.uint8)
    options = {"scale": 1 / 255, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    y = labelled(net, images, **options)
    y[:7] = (y[:7] + 1) % 10
    np.savez(tmp_path / "d.npz", x=images, y=y)
    flags = ("--scale", "1/255", "--mean", "0.5,0.4,0.3", "--std", "0.2,0.3,0.4")
    assert "90.00% top-1 of 70 samples" in run("evaluate", net, "--data", tmp_path / "d.npz", *flags)
    assert (
        json.loads(run("evaluate", net, "--data", tmp_path / "d.npz", *flags, "--limit", 7, "--json", "-"))["value"]
        == 0
    )
    report = compress(
        net,
        tmp_path / "o.onnx",
        macs=0.7,
        align=1,
        test=tmp_path / "d.npz",
        preprocessing=trp_onnx.Preprocessing(**options),
    )
    document = report.to_dict()["score"]
    assert (document["metric"], document["before"], document["samples"]) == ("top-1", 90, 70)
    written = trp_onnx.evaluate(
        tmp_path / "o.onnx", tmp_path / "d.npz", preprocessing=trp_onnx.Preprocessing(**options)
    )
    assert document["after"] == written.value


@pytest.mark.parametrize(("text", "value"), [("1/255", 1 / 255), ("1/127.5", 1 / 127.5), ("0.5", 0.5), ("2", 2.0)])
def test_scales_are_numbers_or_fractions(text: str, value: float) -> None:
    from trp_onnx.data import read_preprocessing

    assert read_preprocessing(None, scale=text).scale == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("text", ["1/0", "a/b", "1/2/3", "", "/"])
def test_scales_that_are_none(text: str) -> None:
    from trp_onnx.data import read_preprocessing

    with pytest.raises(UsageError, match="scale takes a number"):
        read_preprocessing(None, scale=text)


@pytest.mark.parametrize("as_toml", [False, True])
def test_preprocessing_does_what_it_says(tmp_path: Path, as_toml: bool) -> None:
    """BGR, centre crop, a background class: against the same thing by hand."""
    net = graphs.conv_net(tmp_path / "net.onnx", channels=24)
    images = graphs.rng(2).integers(0, 256, (20, 16, 20, 3)).astype(np.uint8)
    by_hand = images[:, 2:14, 4:16, ::-1].transpose(0, 3, 1, 2).astype(np.float32) * np.float32(2) - 100
    y = graphs.run(net, {"x": by_hand})[0][:, 1:].argmax(axis=1)
    np.savez(tmp_path / "d.npz", x=images, y=y)
    if as_toml:
        (tmp_path / "p.toml").write_text('color = "bgr"\ncrop = 12\nscale = 2\nmean = [100]\nlabel_offset = 1\n')
        flags: tuple[object, ...] = ("--preprocess", tmp_path / "p.toml")
    else:
        flags = ("--color", "bgr", "--crop", 12, "--scale", 2, "--mean", 100, "--label-offset", 1)
    assert "100.00% top-1 of 20 samples" in run("evaluate", net, "--data", tmp_path / "d.npz", *flags)


def test_nchw_arrays_and_image_folders_give_the_same_accuracy(net: Path, tmp_path: Path) -> None:
    images = graphs.rng(4).integers(0, 256, (30, 12, 12, 3)).astype(np.uint8)
    y = labelled(net, images, scale=1 / 255)
    y[0] = (y[0] + 1) % 10
    for i, (image, label) in enumerate(zip(images, y, strict=True)):
        folder = tmp_path / "images" / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:03}.png")
    for label in range(10):
        (tmp_path / "images" / f"class{label}").mkdir(exist_ok=True)
    np.savez(tmp_path / "d.npz", x=images.transpose(0, 3, 1, 2), y=y)
    for data in (tmp_path / "d.npz", tmp_path / "images"):
        assert f"{2900 / 30:.2f}% top-1 of 30 samples" in run("evaluate", net, "--data", data, "--scale", "1/255")


def test_a_fixed_batch_is_filled_up(tmp_path: Path) -> None:
    import onnx

    net = graphs.conv_net(tmp_path / "net.onnx")
    built = onnx.load(net)
    built.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    built.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 8
    onnx.save(built, net)
    images = graphs.rng(4).integers(0, 256, (11, 12, 12, 3)).astype(np.uint8)
    y = np.concatenate([labelled(net, images[:8]), labelled(net, np.concatenate([images[8:], images[:5]]))[:3]])
    np.savez(tmp_path / "d.npz", x=images, y=y)
    assert "100.00% top-1 of 11 samples" in run("evaluate", net, "--data", tmp_path / "d.npz")


DEMO_FILES = [
    "app", "digits-small.onnx", "digits-test.npz", "digits-train.npz", "digits.onnx", "input.toml", "plan.toml",
    "report.html", "report.json",
]  # fmt: skip


def _demo(folder: Path) -> str:
    """What it says, progress and all."""
    result = CliRunner().invoke(main, ["demo", "-o", str(folder)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = json.loads((folder / "report.json").read_text())
    assert report["score"]["samples"] == 540
    assert report["score"]["before"] > 95 and report["score"]["lost"] <= 1.5
    (printed,) = [line for line in result.stdout.splitlines() if line.startswith("top-1 of 540")]
    assert [f"{report['score'][side]:.2f}%" for side in ("before", "after")] == printed.split()[3:5]
    assert report["macs"]["ratio"] < 0.7
    assert sum(layer["scheme"] == "spatial" for layer in report["layers"]) >= 3
    assert sorted(p.name for p in folder.iterdir()) == DEMO_FILES
    ort = folder / "app" / "digits-small.ort"
    assert ort.is_file() and str(ort) in result.stdout and str(folder / "report.html") in result.stdout
    assert result.stdout.count("\n  trp-onnx ") == 3
    return result.output


@pytest.mark.slow
def test_demo_trains_compresses_and_exports(training_runtime: None, tmp_path: Path) -> None:
    text = _demo(tmp_path / "demo")
    assert "epoch   1/" in text
    for command in text.rpartition("next:")[2].strip().splitlines():
        run(*shlex.split(command)[1:])


@pytest.mark.slow
def test_demo_does_all_but_train_where_there_is_no_training_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trp_onnx.training.isolated_runtime.PYTHONS", ())
    text = _demo(tmp_path / "demo")
    assert text.startswith("note: the demo leaves training out") and "epoch" not in text


def test_doctor_names_versions_and_providers() -> None:
    text = run("doctor")
    assert "onnxruntime" in text and "CPUExecutionProvider" in text and "--align auto" in text


def test_doctor_sees_two_runtimes_that_overwrite_each_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("onnxruntime", "onnxruntime-gpu"):
        folder = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "RECORD").write_text("onnxruntime/__init__.py,,\n")
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").touch()  # from 3.12 on, a record of files that are not there is left out
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])  # behind the one that is there
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "overwrite each other" in result.output


QUICK = [["-c", "import trp_onnx"], ["-m", "trp_onnx", "--help"], ["-m", "trp_onnx", "compress", "--help"]]


@pytest.mark.parametrize("arguments", QUICK)
def test_import_and_help_load_nothing_heavy(arguments: list[str]) -> None:
    heavy = {"google", "matplotlib", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxsim", "PIL", "scipy", "sklearn"}
    shown = subprocess.run([sys.executable, "-X", "importtime", *arguments], check=True, capture_output=True, text=True)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in shown.stderr.splitlines()}
    assert "trp_onnx" in loaded and not heavy & loaded


@pytest.mark.timing
@pytest.mark.parametrize("arguments", QUICK)
def test_import_and_help_are_fast(arguments: list[str]) -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


def test_the_summary_names_every_file_that_was_written(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    out = tmp_path / "out.onnx"
    options = ("--macs", 0.6, "--align", 4, "--external-data", "yes")
    text = run("compress", net, "-o", out, *options, "--json", tmp_path / "j.json")
    document = json.loads((tmp_path / "j.json").read_text())
    sizes = {entry["file"]: entry["bytes"] for entry in document["files"]}
    assert sizes == {name: (tmp_path / name).stat().st_size for name in ("out.onnx", "out.onnx.data")}
    assert sum(sizes.values()) == document["file_bytes"]["after"]
    assert f"written to {out} (" in text and f" and {out}.data (" in text
