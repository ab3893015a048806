"""Data from anywhere: archives, images, folders and preprocessing that are damaged or meant to do harm."""

from __future__ import annotations

import io
import os
import socket
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

import trp_onnx
from tests import graphs
from tests.graphs import rng
from tests.test_inputs import cli
from trp_onnx.data import read_npz, read_preprocessing


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return graphs.conv_net(tmp_path / "net.onnx")


def npy(x: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


def header(text: str, version: int = 1) -> bytes:
    """A .npy file that begins with any header."""
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode()


def archive(path: Path, method: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


X = np.zeros((40, 3, 12, 12), np.float32)


def patched(path: Path, at: int, value: int) -> Path:
    """A field of both headers of an archive's one member: of the local one at 2 less."""
    content = bytearray(path.read_bytes())
    central = content.index(b"PK\x01\x02")
    struct.pack_into("<H", content, central + at, value)
    struct.pack_into("<H", content, at - 2, value)
    path.write_bytes(content)
    return path


def bomb(path: Path) -> Path:
    """300 MB of zeros in a few hundred kilobytes."""
    packed = zlib.compressobj(9, wbits=-15)
    piece = packed.compress(bytes(1 << 20)) + packed.flush(zlib.Z_FULL_FLUSH)  # the same bytes over and over
    head = header("{'descr': '|u1', 'fortran_order': False, 'shape': (300, 1024, 1024), }\n")
    first, last = zlib.compressobj(9, wbits=-15), zlib.compressobj(9, wbits=-15)
    content = first.compress(head) + first.flush(zlib.Z_FULL_FLUSH) + 300 * piece + last.flush()
    archive(path, zipfile.ZIP_STORED, x=content)
    patched(path, 10, zipfile.ZIP_DEFLATED)
    stored = bytearray(path.read_bytes())
    struct.pack_into("<I", stored, stored.index(b"PK\x01\x02") + 24, len(head) + 300 * (1 << 20))
    path.write_bytes(stored)
    return path


F4 = "{'descr': '<f4', 'fortran_order': False, 'shape': %s}"
ARCHIVES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "encrypted": (lambda p: patched(archive(p, x=npy(X)), 8, 1), "encrypted"),
    "unknown method": (lambda p: patched(archive(p, x=npy(X)), 10, 77), "compressed by a method"),
    "no array": (lambda p: archive(p), "holds no arrays"),
    "no npy": (lambda p: archive(p, x=b"hello"), "damaged"),
    "broken header": (lambda p: archive(p, x=header("{'descr': '<f4', ")), "damaged"),
    "a program for a header": (lambda p: archive(p, x=header("__import__('os').getcwd()")), "damaged"),
    "a deep header": (lambda p: archive(p, x=header("(" * 5000 + ")" * 5000)), "damaged"),
    "version 9": (lambda p: archive(p, x=b"\x93NUMPY\x09\x00" + bytes(99)), "damaged"),
    "32 GiB declared": (lambda p: archive(p, x=header(F4 % "(8, 1024, 1024, 1024)")), "declares 34,359,738,368 bytes"),
    "beyond 64 bits": (lambda p: archive(p, x=header(F4 % f"({2**40}, {2**40}, {2**40})")), "declares"),
    "negative sizes": (lambda p: archive(p, x=header(F4 % "(-4, -3)") + bytes(48)), "damaged"),
    "truncated": (lambda p: archive(p, x=npy(X)[:-100]), "damaged"),
    "a bomb": (bomb, "is refused"),
    "objects": (lambda p: archive(p, x=npy(np.array([{}], dtype=object))), "never loaded"),
    "a single number": (lambda p: archive(p, x=npy(np.float32(3))), "no samples"),
    "structures": (lambda p: archive(p, x=npy(np.zeros(4, [("a", "f4"), ("b", "i4")]))), "numbers are needed"),
    "complex": (lambda p: archive(p, x=npy(X.astype(np.complex64))), "numbers are needed"),
    "dates": (lambda p: archive(p, x=npy(np.zeros(4, "M8[s]"))), "numbers are needed"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(tmp_path: Path, net: Path, name: str) -> None:
    make, complaint = ARCHIVES[name]
    data = make(tmp_path / "d.npz")
    tracemalloc.start()
    code, message = cli("compress", net, "-o", tmp_path / "out.onnx", "--macs", 0.6, "--data", data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (code, complaint in message) == (1, True), message
    assert message.count("error:") == 1 and peak < 100 << 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.npz", "net.onnx"]
    if not name.startswith(("a single", "structures", "complex", "dates")):
        code, message = cli("bench", net, "--rounds", 2, "--inputs", data)
        assert (code, complaint in message) == (1, True), message


def test_labels_that_are_no_classes(tmp_path: Path, net: Path) -> None:
    """They may be anything, but where classes are needed."""
    for y, complaint in ((np.full(40, 2**64 - 1, np.uint64), "has label 18446744073709551615"), (np.ones(40), "whole")):
        data = archive(tmp_path / "d.npz", x=npy(X), y=npy(y))
        code, message = cli("evaluate", net, "--data", data)
        assert (code, complaint in message) == (1, True), message


def test_bytes_turned_over(tmp_path: Path) -> None:
    """Every 7th byte of a small archive, each to something else: read or refused, nothing in between."""
    whole = archive(tmp_path / "d.npz", zipfile.ZIP_DEFLATED, x=npy(X[:2, :, :2, :2]), y=npy(np.arange(2))).read_bytes()
    for at in range(0, len(whole), 7):
        for value in (0, 0xFF, whole[at] ^ 0x20):
            (tmp_path / "d.npz").write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            try:
                trp_onnx.open_data(tmp_path / "d.npz")
            except trp_onnx.DataError as error:
                assert "\n" not in str(error)


def test_more_than_fits_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = archive(tmp_path / "d.npz", zipfile.ZIP_DEFLATED, x=npy(np.zeros((80, 1 << 20), np.uint8)))
    monkeypatch.setattr("trp_onnx.process.memory.available", lambda: 50 << 20)
    with pytest.raises(trp_onnx.DataError, match=r"takes 80 MiB of memory, and 40 MiB are free"):
        read_npz(data)


def test_a_single_array(tmp_path: Path, net: Path) -> None:
    """Is mapped; pickled objects and damage are refused."""
    np.save(tmp_path / "d.npy", X + rng().standard_normal(X.shape).astype(np.float32))
    command = ("compress", net, "-o", tmp_path / "out.onnx", "--macs", 0.6, "--data", tmp_path / "d.npy")
    assert cli(*command)[0] == 0
    for array, complaint in ((np.array([{}], object), "never loaded"), (None, "damaged")):
        (tmp_path / "d.npy").write_bytes(b"\x93NUMPY\1\0" if array is None else npy(array))
        code, message = cli(*command)
        assert code == 1 and complaint in message and message.count("error:") == 1


@pytest.mark.parametrize("name", ["x" * 300, "nowhere/d.npz"])
def test_names_that_no_file_has(net: Path, name: str) -> None:
    code, message = cli("evaluate", net, "--data", name)
    assert code == 1 and message.count("error:") == 1
    with pytest.raises(trp_onnx.DataError):
        trp_onnx.open_data("d\0.npz")


def test_the_path_of_a_data_set_may_be_text(tmp_path: Path) -> None:
    assert len(trp_onnx.open_data(str(archive(tmp_path / "d.npz", x=npy(X))))) == 40


def folder(path: Path, count: int = 40) -> Path:
    path.mkdir()
    for i in range(count):
        Image.new("RGB", (12, 12), (i, 0, 0)).save(path / f"{i:03}.png")
    return path


def test_what_is_no_file_is_no_image(tmp_path: Path) -> None:
    """A pipe would be waited for, for ever."""
    images = folder(tmp_path / "images")
    os.mkfifo(images / "pipe.png")
    (images / "folder.png").mkdir()
    (images / "gone.png").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(images / "socket.png"))
        assert len(trp_onnx.open_data(images)) == 40
    os.mkfifo(tmp_path / "data_batch_1")
    for name in ("data_batch_1", "images/pipe.png"):
        with pytest.raises(trp_onnx.DataError):
            trp_onnx.open_data(tmp_path / name)
    (tmp_path / "pipes").mkdir()
    os.mkfifo(tmp_path / "pipes" / "a.png")
    with pytest.raises(trp_onnx.DataError, match="holds no images"):
        trp_onnx.open_data(tmp_path / "pipes")


def test_damaged_images(tmp_path: Path, net: Path) -> None:
    images = folder(tmp_path / "images")
    whole = (images / "007.png").read_bytes()
    for at in range(0, len(whole), 5):
        (images / "007.png").write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        try:
            trp_onnx.open_data(images).take(np.array([7]))
        except trp_onnx.DataError as error:
            assert "007.png" in str(error)
    for content in (b"", whole[: len(whole) // 2], b"P6 12 12 255 "):
        (images / "007.png").write_bytes(content)
        code, message = cli("compress", net, "-o", tmp_path / "out.onnx", "--macs", 0.6, "--data", images)
        assert code == 1 and "'" + str(images / "007.png") + "' cannot be read as an image" in message


def test_huge_images(tmp_path: Path) -> None:
    """A few bytes that declare gigapixels."""
    (tmp_path / "images").mkdir()
    for name, text in (("a.ppm", b"P6 50000 50000 255\n"), ("b.ppm", b"P6 10000 12000 255\n")):
        (tmp_path / "images" / name).write_bytes(text)
        opened = trp_onnx.open_data(tmp_path / "images")
        with pytest.raises(trp_onnx.DataError, match="are not read"):
            opened.take(np.array([len(opened) - 1]))
    Image.new("L", (60000, 1)).save(tmp_path / "images" / "a.ppm")
    with pytest.raises(trp_onnx.DataError, match="too large at a shorter side"):
        trp_onnx.open_data(tmp_path / "images", trp_onnx.Preprocessing(resize=224)).take(np.array([0]))


def test_images_of_every_kind(tmp_path: Path) -> None:
    """All are the same grey, or its 16-bit or CMYK likeness; the palette has transparency, the animation two frames."""
    (tmp_path / "i").mkdir()
    grey = Image.new("L", (12, 12), 100)
    deep = Image.fromarray(np.full((12, 12), 100 * 257, np.uint16))
    palette = grey.convert("P")
    palette.info["transparency"] = bytes(range(256))
    deep.save(tmp_path / "i" / "a.png")
    deep.save(tmp_path / "i" / "b.tif")
    grey.convert("RGBA").save(tmp_path / "i" / "c.png")
    grey.convert("CMYK").save(tmp_path / "i" / "d.tif")
    palette.save(tmp_path / "i" / "e.png")
    grey.save(tmp_path / "i" / "f.gif", save_all=True, append_images=[Image.new("L", (12, 12), 7)])
    grey.convert("1").convert("L").point(lambda _: 100).save(tmp_path / "i" / "g.bmp")
    (run,) = trp_onnx.open_data(tmp_path / "i").take(np.arange(7))
    x = run.feeds["x"]
    assert x.shape == (7, 3, 12, 12) and np.abs(x - 100).max() <= 1
    Image.fromarray(np.full((12, 12), 0.5, np.float32)).save(tmp_path / "i" / "a.tif")
    with pytest.raises(trp_onnx.DataError, match="holds floats"):
        trp_onnx.open_data(tmp_path / "i").take(np.arange(2))


@pytest.mark.parametrize(
    "text",
    [
        "mean = " + "[" * 10_000 + "]" * 10_000,
        "crop = " + "9" * 5_000,
        "crop = 0x" + "f" * 20_000,
        "crop = 9" + "0" * 4_000,
        "scale = nan",
        "scale = inf",
        "scale = true",
        "scale = 0",
        "std = -1",
        "std = [0.2, 0.2, 1e-60]",
        "mean = 1e300",
        "mean = []",
        "mean = {a = 1}",
        "resize = 1_000_000_000",
        "label_offset = -1",
        "layout = ['nchw']",
        "a\0 = 1",
        "scale = 1\nscale = 2",
        "'" + "n" * 5_000 + "' = 1",
    ],
)
def test_preprocessing_that_makes_no_sense(tmp_path: Path, net: Path, text: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    data = archive(tmp_path / "d.npz", x=npy(X))
    code, message = cli("evaluate", net, "--data", data, "--preprocess", tmp_path / "p.toml")
    assert code == 2 and message.count("error:") == 1 and len(message) < 600, message


@pytest.mark.parametrize("value", ["1e400", "1/0", "1/1e400", "nan", "-inf", "1e999999999", "1/2/3", "", "1" * 6000])
@pytest.mark.parametrize("option", ["--scale", "--mean", "--std"])
def test_numbers_that_are_none(tmp_path: Path, net: Path, option: str, value: str) -> None:
    code, message = cli("evaluate", net, "--data", tmp_path, f"{option}={value}")
    assert code == 2 and "preprocessing: " + option[2:] in message and len(message) < 400, message


def test_fractions_are_what_they_were(tmp_path: Path) -> None:
    for text, value in (("1/255", 1 / 255), ("1/127.5", 1 / 127.5), ("0.5", 0.5), ("2", 2.0)):
        (tmp_path / "p.toml").write_text(f"scale = '{text}'\nmean = ['{text}', 0.5]\nstd = '{text},{text}'")
        read = read_preprocessing(tmp_path / "p.toml")
        assert (read.scale, read.mean, read.std) == (value, (value, 0.5), (value, value))


def test_values_beyond_float32(tmp_path: Path, net: Path) -> None:
    data = archive(tmp_path / "d.npz", x=npy(np.full((40, 3, 12, 12), 1e300)))
    code, message = cli("compress", net, "-o", tmp_path / "out.onnx", "--macs", 0.6, "--data", data)
    assert code == 1 and "too large for float32" in message


def test_hostile_cifar_files(tmp_path: Path) -> None:
    for content in (
        b"",
        b"\x80\x04cos\nsystem\n.",
        b"\x8a\xff" + bytes(300),
        b"(I99999999999999999999\n.",
        os.urandom(999),
    ):
        (tmp_path / "test_batch").write_bytes(content)
        with pytest.raises(trp_onnx.DataError, match="CIFAR-10"):
            trp_onnx.open_data(tmp_path / "test_batch")


def compressed(net: Path, x: np.ndarray, *more: object) -> tuple[int, str]:
    """What `compress` says to these samples."""
    data = archive(net.parent / "d.npz", x=npy(x))
    return cli("compress", net, "-o", net.parent / "o.onnx", "--macs", 0.6, "--align", 1, "--data", data, *more)


@pytest.mark.parametrize("more", [(), ("--no-widths",)], ids=["widths", "ranks"])
@pytest.mark.parametrize("place", [0, 7, 20, 39])
def test_samples_of_very_different_sizes(net: Path, place: int, more: tuple[str, ...]) -> None:
    """Whose squares no sum holds: the layers are judged by their weights, and that is said."""
    x = np.ones((40, 3, 12, 12), np.float32)
    x[place] = 1e25
    code, message = compressed(net, x, *more)
    assert code == 0 and "far larger in some samples than in others" in message


@pytest.mark.parametrize("more", [(), ("--no-widths",)], ids=["widths", "ranks"])
def test_outputs_that_are_no_numbers_any_more(net: Path, more: tuple[str, ...]) -> None:
    code, message = compressed(net, np.full((40, 3, 12, 12), 1e38, np.float32), *more)
    assert code == 1 and message.count("error:") == 1
    assert "output 'logits' of the model is NaN or infinite on the data: nothing can be measured by it" in message
    assert not (net.parent / "o.onnx").exists()


@pytest.mark.parametrize("kind", [np.float16, np.longdouble])
def test_whole_numbers_in_floats_of_any_size(tmp_path: Path, kind: type) -> None:
    """NumPy would compare them with the limits of int64 in their own type, which does not hold those."""
    w = {"table": graphs.weights(30, 16), "w": graphs.weights(16, 12)}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["y"], name="layer"),
    ]
    ids = graphs.info("ids", ["N", 4], TensorProto.INT64)
    model = graphs.save(graphs.model(nodes, [ids], [graphs.info("y", ["N", 4, 12])], w), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", ids=(np.arange(160) % 30).reshape(40, 4).astype(kind))
    code, message = cli("evaluate", model, "--data", tmp_path / "d.npz", "--against", model)
    assert code == 0, message


def test_labels_of_several_types(tmp_path: Path, net: Path) -> None:
    (tmp_path / "samples").mkdir()
    for i, label in enumerate((np.int64(3), np.datetime64("2026-01-01"), np.int64(2))):
        np.savez(tmp_path / "samples" / f"{i}.npz", x=X[0], y=label)
    code, message = cli("evaluate", net, "--data", tmp_path / "samples")
    assert code == 1 and "types that do not go together" in message and message.count("error:") == 1


def test_data_of_nothing(net: Path) -> None:
    with pytest.raises(trp_onnx.DataError, match="not as None"):
        trp_onnx.evaluate(net, data=None)


@pytest.mark.parametrize("more", [(), ("--asymmetric",)])
def test_a_product_that_sums_over_its_samples(tmp_path: Path, more: tuple[str, ...]) -> None:
    """Gemm of a transposed input: what fills up a batch of a fixed size is summed over like the rest."""
    w = {"w": graphs.weights(48, 40), "b": np.ones(40, np.float32)}
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer", transA=1)
    model = graphs.model([node], [graphs.info("x", [48, 3])], [graphs.info("y", [3, 40])], w)
    data = archive(tmp_path / "d.npz", x=npy(rng().standard_normal((40, 3)).astype(np.float32)))
    path = graphs.save(model, tmp_path / "m.onnx")
    code, message = cli("compress", path, "-o", tmp_path / "o.onnx", "--macs", 0.6, "--align", 1, "--data", data, *more)
    assert code == 0, message
