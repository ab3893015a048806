"""Bad input: one sentence, the documented exit code, nothing half-written, the input untouched."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper

import trp_onnx
from tests import graphs
from tests.easy import compress
from tests.hard_cases import CASES
from tests.processes import full_disk
from trp_onnx.cli.main import main


def cli(*arguments: object) -> tuple[int, str]:
    """Exit code and what went to stderr."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr


def refused(folder: Path, model: Path, code: int, *options: object, out: Path | None = None) -> str:
    """Compress, expect the exit code, and that the folder is as it was."""
    before = {p: p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}
    options = options or ("--macs", 0.6)
    exit_code, message = cli("compress", model, "-o", out or folder / "out.onnx", "--align", 1, *options)
    assert exit_code == code, message
    assert {p: p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))} == before
    assert "Traceback" not in message
    assert len([line for line in message.splitlines() if "rror:" in line]) == 1
    return message


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return graphs.conv_net(tmp_path / "net.onnx")


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path, tmp_path / "nowhere.onnx", 1)


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    assert "is not a file" in refused(tmp_path, tmp_path, 1)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello, I am a text file\n", b"\x89PNG\r\n\x1a\n" + bytes(200), os.urandom(4096)],
    ids=["empty", "text", "picture", "noise"],
)
def test_a_file_that_is_not_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert "not a" in refused(tmp_path, path, 1)


@pytest.mark.parametrize("part", [0.02, 0.5, 0.99])
def test_a_truncated_file(tmp_path: Path, net: Path, part: float) -> None:
    data = net.read_bytes()
    net.write_bytes(data[: int(len(data) * part)])
    assert "truncated" in refused(tmp_path, net, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(tmp_path: Path, net: Path, value: float) -> None:
    built = onnx.load(net)
    w = graphs.initializers(net)["w2"].copy()
    w[1, 2, 0, 1] = value
    next(t for t in built.graph.initializer if t.name == "w2").CopyFrom(graphs.tensor("w2", w))
    onnx.save(built, net)
    message = refused(tmp_path, net, 1)
    assert "'w2'" in message and "conv2" in message and "NaN or infinity" in message


def test_an_opset_too_new_for_the_runtime(tmp_path: Path, net: Path) -> None:
    built = onnx.load(net)
    built.opset_import[0].version = 999
    onnx.save(built, net)
    assert "opset 999" in refused(tmp_path, net, 1)


def test_a_model_without_layers(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    path = graphs.save(
        graphs.model([node], [graphs.info("x", [1, 3])], [graphs.info("y", [1, 3])]), tmp_path / "m.onnx"
    )
    assert "nothing to factorise" in refused(tmp_path, path, 1)


def test_nodes_in_any_order(tmp_path: Path, net: Path) -> None:
    """The runtime takes them, so do we; a circle is said."""
    proto = onnx.load(net)
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    onnx.save(proto, tmp_path / "reversed.onnx")
    compress(tmp_path / "reversed.onnx", tmp_path / "out.onnx", macs=0.6, align=1)
    nodes[0].input[0] = nodes[2].output[0]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.save(proto, tmp_path / "circle.onnx")
    assert "in a circle" in refused(tmp_path, tmp_path / "circle.onnx", 1)


def test_missing_external_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(CASES["conv_1d"](), path, save_as_external_data=True, location="m.bin", size_threshold=0)
    (tmp_path / "m.bin").unlink()
    assert "'m.bin', which is missing" in refused(tmp_path, path, 1)


def test_truncated_external_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(CASES["conv_1d"](), path, save_as_external_data=True, location="m.bin", size_threshold=0)
    (tmp_path / "m.bin").write_bytes(b"\0" * 100)
    assert "truncated" in refused(tmp_path, path, 1)


@pytest.mark.parametrize("where", ["../secret.bin", "absolute", "link"])
def test_external_data_outside_the_models_folder(tmp_path: Path, where: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(32 * 24 * 5 * 4))
    path = folder / "m.onnx"
    onnx.save(CASES["conv_1d"](), path, save_as_external_data=True, location="m.bin", size_threshold=0)
    built = onnx.load(path, load_external_data=False)
    location = {"../secret.bin": where, "absolute": str(secret), "link": "m.bin"}[where]
    if where == "link":
        (folder / "m.bin").unlink()
        (folder / "m.bin").symlink_to(secret)
    for entry in built.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(built.SerializeToString())
    assert "outside the model's folder" in refused(tmp_path, path, 1)
    assert cli("inspect", path)[0] == 1
    assert cli("evaluate", path, "--data", path)[0] == 1


def test_the_output_is_the_input(tmp_path: Path, net: Path) -> None:
    assert "is an input" in refused(tmp_path, net, 2, out=net)
    link = tmp_path / "link.onnx"
    link.symlink_to(net)
    assert "is an input" in refused(tmp_path, net, 2, out=link)


def test_the_outputs_data_file_belongs_to_the_input(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(CASES["conv_1d"](), path, save_as_external_data=True, location="out.onnx.data", size_threshold=0)
    assert "belongs to the input" in refused(tmp_path, path, 2)


def test_an_output_that_cannot_be_written(tmp_path: Path, net: Path) -> None:
    assert "does not exist" in refused(tmp_path, net, 1, out=tmp_path / "no" / "out.onnx")
    (tmp_path / "folder.onnx").mkdir()
    assert "it is a folder" in refused(tmp_path, net, 1, out=tmp_path / "folder.onnx")
    assert "cannot write" in refused(tmp_path, net, 1, out=net / "out.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_without_permission(tmp_path: Path, net: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert "Permission denied" in refused(tmp_path, net, 1, out=locked / "out.onnx")


@pytest.mark.parametrize("external", [False, True])
def test_a_disk_that_is_full(tmp_path: Path, external: bool) -> None:
    path = tmp_path / "m.onnx"
    graphs.conv_net(path, channels=64)
    if external:
        onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.bin", size_threshold=0)
    with full_disk():
        assert "no space is left" in refused(tmp_path, path, 1)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGHUP])  # SIGTERM comes below, twice
def test_an_interruption_leaves_nothing_behind(tmp_path: Path, sent: signal.Signals) -> None:
    path = graphs.conv_net(tmp_path / "m.onnx", channels=512)
    before = sorted(tmp_path.iterdir())
    process = subprocess.Popen(
        [sys.executable, "-m", "trp_onnx", "compress", path, "-o", tmp_path / "out.onnx", "--macs", "0.6"],
        stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(sent, signal.SIG_DFL),  # nohup and background shells have some ignored
    )  # fmt: skip
    deadline = time.monotonic() + 600
    while sorted(tmp_path.iterdir()) == before and time.monotonic() < deadline:
        time.sleep(0.01)  # until the hidden folder appears
    assert sorted(tmp_path.iterdir()) != before
    process.send_signal(sent)
    _, message = process.communicate(timeout=600)
    assert process.returncode == 130, message
    assert "interrupted" in message and "Traceback" not in message
    assert sorted(tmp_path.iterdir()) == before


def test_a_signal_that_comes_twice(tmp_path: Path) -> None:
    """As a terminal and a supervisor send it to the same process: the second one is not a second wish."""
    path = graphs.conv_net(tmp_path / "m.onnx", channels=512)
    before = sorted(tmp_path.iterdir())
    process = subprocess.Popen(
        [sys.executable, "-m", "trp_onnx", "compress", path, "-o", tmp_path / "out.onnx", "--macs", "0.6"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 600
    while sorted(tmp_path.iterdir()) == before and time.monotonic() < deadline:
        time.sleep(0.01)
    for _ in range(20):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    _, message = process.communicate(timeout=600)
    # The interpreter's own end gives signals their default meaning back, when all else is done.
    assert process.returncode in (130, -signal.SIGTERM), message
    assert message.count("interrupted") == 1 and "Traceback" not in message, message
    assert sorted(tmp_path.iterdir()) == before


NO_ROOM = "trp-onnx: error: cannot print the result: No space left on device"


@pytest.mark.parametrize(
    ("command", "streams"),
    [("inspect", "> /dev/full"), ("inspect", ">&-"), ("inspect", "2>&-"), ("compress", ">&- 2>&-")],
)
def test_streams_that_take_nothing(tmp_path: Path, net: Path, command: str, streams: str) -> None:
    """On a disk that is full, or closed: then the result's own files have their numbers."""
    out = tmp_path / "out.onnx"
    options = f"-o {out} --macs 0.6 --align 1" if command == "compress" else ""
    line = f"{sys.executable} -m trp_onnx {command} {net} {options} {streams}"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == ((1, NO_ROOM) if "full" in streams else (0, ""))
    assert command == "inspect" or trp_onnx.verify(out)


@pytest.mark.parametrize("command", ["inspect", "bench", "compress"])
def test_results_that_cannot_be_printed(
    tmp_path: Path, net: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a disk that is full; on a terminal that knows ASCII alone."""
    out = tmp_path / "out.onnx"
    options = {"inspect": [], "bench": ["--rounds", "2"], "compress": ["-o", str(out), "--macs", "0.6", "--align", "1"]}
    for stream, code in ((Path("/dev/full").open("w"), 1), (io.TextIOWrapper(io.BytesIO(), "ascii"), 0)):  # noqa: SIM115
        with stream, pytest.raises(SystemExit) as ended:
            monkeypatch.setattr(sys, "stdout", stream)
            main([command, str(net), *options[command]])
        assert ended.value.code == code
        assert (NO_ROOM in capsys.readouterr().err) == bool(code)
    assert command != "compress" or out.exists()


def save_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


IMAGES = np.zeros((6, 12, 12, 3), np.uint8)


def test_images_that_go_in_as_they_are_stored(tmp_path: Path, net: Path) -> None:
    """Right for a few models; with all others everything would be measured on noise without a word."""
    data = save_npz(tmp_path / "d.npz", x=IMAGES, y=np.arange(6))
    assert "as they are stored, 0 to 255" in cli("evaluate", net, "--data", data)[1]
    assert "as they are stored" not in cli("evaluate", net, "--data", data, "--scale", "1/255")[1]
    data = save_npz(tmp_path / "f.npz", x=IMAGES.astype(np.float32), y=np.arange(6))
    assert "as they are stored" not in cli("evaluate", net, "--data", data)[1]


@pytest.mark.parametrize(
    ("option", "text", "complaint"),
    [
        ("--config", "layer = [1, 2]", "holds [[layer]] and [[space]] entries: layer[0] takes a table, not 1"),
        ("--training", '[output_weights]\nlogits = "a"', "output_weights takes"),
        ("--training", 'milestones = ["a"]', "milestones[0] takes"),
        ("--training", 'augment = ["wild"]', "augment[0] is one of crop, flip, resized, color, not 'wild'"),
    ],
)
def test_settings_of_the_wrong_kind(tmp_path: Path, net: Path, option: str, text: str, complaint: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    data = save_npz(tmp_path / "d.npz", x=IMAGES, y=np.arange(6))
    more = ("--train", "--data", data) if option == "--training" else ()
    assert complaint in refused(tmp_path, net, 2, "--macs", 0.6, option, tmp_path / "s.toml", *more)


def test_a_signal_that_comes_where_it_is_not_heard(tmp_path: Path, net: Path) -> None:
    """In a callback of the interpreter's an exception is dropped; the interrupt comes again."""
    code = (
        "import os, signal, sys, time, weakref; import trp_onnx.cli.main, trp_onnx.commands.inspect as module\n"
        "class Gone: pass\n"
        "def inspect(*_, **__):\n"
        "    gone = Gone(); there = weakref.ref(gone, lambda _: os.kill(os.getpid(), signal.SIGTERM))\n"
        "    del gone; time.sleep(20)\n"
        f"module.inspect = inspect; sys.argv = ['trp-onnx', 'inspect', {str(net)!r}]; trp_onnx.cli.main.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 130 and done.stderr.strip() == "trp-onnx: interrupted; nothing was written"


def test_an_npz_with_pickled_objects(tmp_path: Path, net: Path) -> None:
    data = save_npz(tmp_path / "d.npz", x=np.array([{"a": 1}, None], dtype=object), y=np.arange(2))
    assert "pickled objects, which are never loaded" in refused(tmp_path, net, 1, "--macs", 0.6, "--data", data)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 4, 10], [0, 1, 2, 3, 4, -1]])
def test_labels_out_of_range(tmp_path: Path, net: Path, labels: list[int]) -> None:
    data = save_npz(tmp_path / "d.npz", x=IMAGES, y=np.array(labels))
    message = refused(tmp_path, net, 1, "--macs", 0.6, "--test", data)
    assert f"label {labels[-1]}, but the model has 10 classes" in message


def test_images_of_the_wrong_size(tmp_path: Path, net: Path) -> None:
    data = save_npz(tmp_path / "d.npz", x=np.zeros((4, 20, 20, 3), np.uint8), y=np.arange(4))
    message = refused(tmp_path, net, 1, "--macs", 0.6, "--data", data)
    assert "(4,20,20,3), but the model's input is 'x' (N,3,12,12)" in message and "--crop" in message
    assert (
        cli("compress", net, "-o", tmp_path / "out.onnx", "--macs", 0.6, "--align", 1, "--data", data, "--crop", 12)[0]
        == 0
    )


@pytest.mark.parametrize(
    "arrays,complaint",
    [
        ({"images": IMAGES}, "no array for input 'x': the model's input is 'x' (N,3,12,12)"),
        ({"x": IMAGES, "y": np.arange(5)}, "6 samples but 5 labels"),
        ({"x": IMAGES[:0], "y": np.arange(0)}, "holds no samples"),
        ({"x": np.array(["a", "b"])}, "numbers are needed"),
    ],
)
def test_data_that_makes_no_sense(tmp_path: Path, net: Path, arrays: dict[str, np.ndarray], complaint: str) -> None:
    data = save_npz(tmp_path / "d.npz", **arrays)
    assert complaint in refused(tmp_path, net, 1, "--macs", 0.6, "--data", data)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("options", [(), ("--asymmetric",)])
def test_samples_that_are_not_finite(tmp_path: Path, net: Path, value: float, options: tuple[object, ...]) -> None:
    x = np.zeros((40, 12, 12, 3), np.float32)
    x[23, 4, 4, 1] = value
    data = save_npz(tmp_path / "d.npz", x=x, y=np.zeros(40, np.int64))
    assert "sample 23 of" in refused(tmp_path, net, 1, "--macs", 0.6, "--data", data, *options)
    code, message = cli("evaluate", net, "--data", data)
    assert code == 1 and "holds NaN or infinity" in message


@pytest.mark.parametrize("option", ["--save-plan", "--json"])
def test_where_else_nothing_can_be_written(tmp_path: Path, net: Path, option: str) -> None:
    message = refused(tmp_path, net, 1, "--macs", 0.6, option, tmp_path / "nowhere" / "file")
    assert "nowhere' does not exist" in message
    assert "is a folder" in refused(tmp_path, net, 1, "--macs", 0.6, option, tmp_path)


def test_data_that_is_no_archive(tmp_path: Path, net: Path) -> None:
    data = tmp_path / "d.npz"
    data.write_bytes(b"no archive at all")
    assert "is not an .npz file" in refused(tmp_path, net, 1, "--macs", 0.6, "--data", data)
    (tmp_path / "d.npy").write_bytes(b"no array at all")
    assert "is a damaged .npy file" in refused(tmp_path, net, 1, "--macs", 0.6, "--data", tmp_path / "d.npy")
    assert "does not exist" in refused(tmp_path, net, 1, "--macs", 0.6, "--data", tmp_path / "none.npz")
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refused(tmp_path, net, 1, "--macs", 0.6, "--data", tmp_path / "empty")


@pytest.mark.parametrize(
    "options,complaint",
    [
        (("--macs", 0.5, "--energy", 0.1), "only one of"),
        (("--macs", 0), "between 0 and 1"),
        (("--macs", 1.5), "between 0 and 1"),
        (("--energy", -0.1), "from 0 to below 1"),
        (("--macs", 0.5, "--scheme", "magic"), "magic"),
        (("--macs", 0.5, "--align", "some"), "neither a whole number nor auto"),
        (("--macs", 0.5, "--align", 0), "--align takes"),
        (("--macs", 0.5, "--input-shape", "x"), "input:1,3,224,224"),
        (("--macs", 0.5, "--scale", "much"), "scale takes a number, not"),
        (("--macs", 0.5, "--std", "0"), "std[0] takes a number from 1.17549e-38, not 0"),
        (("--macs", "much"), "not a valid float"),
    ],
)
def test_wrong_usage_exits_with_2(tmp_path: Path, net: Path, options: tuple[object, ...], complaint: str) -> None:
    # refused() wants some option; an empty tuple means none at all here
    code, message = cli("compress", net, "-o", tmp_path / "out.onnx", *options)
    assert (code, complaint in message) == (2, True), message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx"]


@pytest.mark.parametrize(
    "text,complaint",
    [
        ("[[layer]]\nname = 'conv9'\nkeep = true\n", "'conv9' matches no layer"),
        ("[[layer]]\nname = '*'\nrnak = 4\n", "unknown key 'rnak'"),
        ("[[layer]]\nname = '*'\npattern = 'a'\n", "unknown key 'pattern'; known: name, regex"),
        ("[[layer]]\nkeep = true\n", "either name"),
        ("[[layer]]\nname = '*'\nrank = 4\nratio = 0.5\n", "only one of"),
        ("[[layer]]\nname = 'conv2'\nrank = 0\n", "whole number from 1"),
        ("[[layer]]\nname = 'conv2'\nrank = 4000\n", "exceeds its full rank"),
        ("[[layer]]\nname = 'conv2'\nscheme = 'spatial'\nrank = [4, 4]\n", "does not fit scheme spatial"),
        ("[[layer]]\nname = 'conv2'\nratio = 0.001\n", "cannot be brought to 0.001"),
        ("[[layer]]\nname = 'conv2'\nscheme = 'cp'\n", "unknown scheme 'cp'"),
        ("[[layer]]\nregex = '('\nkeep = true\n", "not a regular expression"),
        ("layer = 3\n", "[[layer]] and [[space]] entries"),
        ("[[layer]\n", "is not TOML"),
    ],
)
def test_a_wrong_configuration_exits_with_2(tmp_path: Path, net: Path, text: str, complaint: str) -> None:
    config = tmp_path / "c.toml"
    config.write_text(text)
    assert complaint in refused(tmp_path, net, 2, "--config", config)


def test_targets_out_of_reach_exit_with_3(tmp_path: Path, net: Path) -> None:
    message = refused(tmp_path, net, 3, "--macs", 0.001)
    assert "out of reach" in message and "of the MACs remain" in message
    assert "no layer gets cheaper" in refused(tmp_path, net, 3, "--energy", 0)


def test_input_shapes_that_do_not_fit(tmp_path: Path, net: Path) -> None:
    assert "names 'y'" in refused(tmp_path, net, 1, "--macs", 0.6, "--input-shape", "y:1,3,12,12")
    assert "does not fit input 'x'" in refused(tmp_path, net, 1, "--macs", 0.6, "--input-shape", "x:1,4,12,12")


def test_given_inputs_that_do_not_fit(tmp_path: Path, net: Path) -> None:
    wrong = save_npz(tmp_path / "i.npz", z=np.zeros(3))
    assert "no array for input 'x'" in refused(tmp_path, net, 1, "--macs", 0.6, "--inputs", wrong)
    small = save_npz(tmp_path / "s.npz", x=np.zeros((1, 4, 4), np.float32))
    assert "gives 'x' the shape (1,4,4)" in refused(tmp_path, net, 1, "--macs", 0.6, "--inputs", small)


def test_an_operator_that_the_runtime_does_not_have(tmp_path: Path) -> None:
    node = helper.make_node("Mystery", ["x"], ["y"], domain="nobody.knows")
    built = graphs.model([node], [graphs.info("x", [1, 3])], [graphs.info("y", [1, 3])])
    built.opset_import.append(helper.make_opsetid("nobody.knows", 1))
    path = graphs.save(built, tmp_path / "m.onnx")
    assert "cannot load" in refused(tmp_path, path, 1)


def test_names_with_markup_are_printed_as_they_are(tmp_path: Path) -> None:
    built = CASES["conv_1d"]()
    built.graph.node[0].name = "[red]layer[/red] [/]"
    path = graphs.save(built, tmp_path / "m.onnx")
    result = CliRunner().invoke(
        main, ["compress", str(path), "-o", str(tmp_path / "o.onnx"), "--macs", "0.6", "--align", "1"]
    )
    assert result.exit_code == 0, result.output
    assert "[red]layer[/red]" in result.stdout


def test_errors_are_one_tree() -> None:
    for name in ("ModelError", "DataError", "OutputError", "VerificationError", "UsageError", "TargetError"):
        assert issubclass(getattr(trp_onnx, name), trp_onnx.TrpOnnxError)
