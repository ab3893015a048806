"""Mutations of the files beside a model: archives of arrays, tables in JSON, settings in TOML, images, any bytes."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.mutations import NAMES, NUMBERS, SIZES, Rng, one_of


def scrambled(data: bytes, rng: Rng) -> bytes:
    """A few bytes flipped, cut, doubled, put in or taken out; or nothing like it at all."""
    changed = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 2, 5, 50]))):
        place = int(rng.integers(len(changed) + 1))
        how = int(rng.integers(7))
        if how == 0 and place < len(changed):
            changed[place] ^= 1 << int(rng.integers(8))
        elif how == 1 and place < len(changed):
            changed[place] = int(one_of(rng, (0, 1, 127, 128, 255)) or 0)
        elif how == 2:
            del changed[place:]
        elif how == 3:
            changed[place:place] = rng.bytes(int(rng.integers(1, 20)))
        elif how == 4:
            del changed[place : place + int(rng.integers(1, 50))]
        elif how == 5:
            changed[place:place] = changed[place // 2 : place]
        elif rng.random() < 0.1:
            changed[:] = rng.bytes(300)
    return bytes(changed)


# Archives.


def npy(descr: str, shape: str, data: bytes, order: str = "False") -> bytes:
    """An array's file with a header of one's own."""
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n" + data


def archive(arrays: dict[str, np.ndarray], rng: Rng, path: Path) -> str:
    """An .npz that is not quite one."""
    members: dict[str, bytes] = {}
    for name, array in arrays.items():
        file = io.BytesIO()
        np.save(file, array, allow_pickle=False)
        members[f"{name}.npy"] = file.getvalue()
    name = str(one_of(rng, list(members)))
    array, kind = arrays[name.removesuffix(".npy")], zipfile.ZIP_STORED
    how = str(one_of(rng, (
        "header", "descr", "shape", "pickle", "cut", "bytes", "bomb", "declared", "gone", "renamed", "values", "type",
        "other shape", "empty", "method", "encrypted", "whole", "no zip", "twice", "folder", "many",
    )))  # fmt: skip
    if how == "header":
        members[name] = members[name][:10] + scrambled(members[name][10:118], rng) + members[name][118:]
    elif how == "descr":
        kinds = ("'|O'", "'<f3'", "'<f8'", "[('a', '<f4')]", "'<U5'", "'<M8[s]'", "'<c8'", "'|V7'", "3", "'>f4'")
        members[name] = npy(str(one_of(rng, kinds)), str(array.shape), array.tobytes())
    elif how == "shape":
        shapes = (
            f"({2**40},)",
            "(-1, 3)",
            "()",
            "(0, 3)",
            "'x'",
            "(3.5,)",
            f"({2**31}, {2**31})",
            "(9" + "9" * 5000 + ",)",
        )
        members[name] = npy("'<f4'", str(one_of(rng, shapes)), array.tobytes())
    elif how == "pickle":
        members[name] = npy("'|O'", "(1,)", b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04echo\x85R.")
    elif how == "cut":
        members[name] = members[name][: int(rng.integers(len(members[name])))]
    elif how == "bytes":
        members[name] = scrambled(members[name], rng)
    elif how == "bomb":
        kind = zipfile.ZIP_DEFLATED
        members[name] = npy("'|u1'", f"({2**26},)", bytes(2**26))
    elif how == "declared":
        members[name] = npy("'<f8'", f"({2**32},)", bytes(80))
    elif how == "gone":
        del members[name]
    elif how == "renamed":
        hostile = [text for text in NAMES if "\0" not in text]
        members = {(str(one_of(rng, hostile)) if key == name else key): data for key, data in members.items()}
    elif how in ("values", "type", "other shape", "empty"):
        with np.errstate(all="ignore"):
            members[name] = saved(changed(array, how, rng))
    elif how == "folder":
        members["x/"] = b""
    elif how == "many":
        members |= {f"a{i}.npy": members[name] for i in range(50)}
    with zipfile.ZipFile(path, "w", kind) as file:
        for key, data in members.items():
            file.writestr(zipfile.ZipInfo(key) if kind == zipfile.ZIP_STORED else key, data)
            if how == "twice":
                with_warnings_off(file, key, data)
    content = bytearray(path.read_bytes())
    central = content.find(b"PK\x01\x02")
    if how == "method":
        content[central + 10] = content[8] = int(one_of(rng, (1, 12, 14, 93, 99)) or 1)
    elif how == "encrypted":
        content[central + 8] |= 1
        content[6] |= 1
    elif how == "whole":
        content = bytearray(scrambled(bytes(content), rng))
    elif how == "no zip":
        content = bytearray(members[name])
    path.write_bytes(content)
    return f"archive: {how} of {name!r}"


def with_warnings_off(file: zipfile.ZipFile, key: str, data: bytes) -> None:
    """Zipfile warns of a name that is there already."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.writestr(zipfile.ZipInfo(key), data)


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def changed(array: np.ndarray, how: str, rng: Rng) -> np.ndarray:
    """Another array: valid as a file, not as data."""
    if how == "values" and array.size:
        array = array.copy()
        value = one_of(rng, NUMBERS) if array.dtype.kind == "f" else one_of(rng, (-1, 10, 2**31 - 1, -(2**31)))
        array.reshape(-1)[int(rng.integers(array.size))] = value
        return array
    if how == "type":
        kinds = ("f2", "f4", "f8", "i1", "u1", "i8", "?", "c8", "U3", "S3", "M8[s]", "longdouble")
        return array.astype(str(one_of(rng, kinds)))
    if how == "empty":
        return array[:0]
    shapes = (array[:1], array[..., :1], array[None], array.reshape(-1), array.T, array[:3], array[0], array[:-1])
    return np.ascontiguousarray(one_of(rng, shapes))


# Text.


def json_document(text: str, rng: Rng) -> str:
    """A document with some values of another kind, or none at all."""
    how = str(one_of(rng, ("value", "value", "value", "bytes", "deep", "long number", "list", "constant")))
    if how == "bytes":
        return scrambled(text.encode(), rng).decode("latin-1")
    if how == "deep":
        return "[" * 100_000 if rng.random() < 0.5 else '{"a":' * 50_000
    if how == "long number":
        return text.replace("1", "1" * int(one_of(rng, (500, 5000)) or 500), 3)
    if how == "list":
        return json.dumps([json.loads(text)])
    if how == "constant":
        return text.replace("0.", str(one_of(rng, ("NaN", "Infinity", "-Infinity", "1e999", "-0."))), 2)
    document = json.loads(text)
    for _ in range(int(rng.integers(1, 4))):
        _change_a_value(document, rng)
    return json.dumps(document)


def _change_a_value(document: Any, rng: Rng) -> None:
    places: list[tuple[Any, Any]] = []
    stack = [document]
    while stack:
        held = stack.pop()
        keys = list(held) if isinstance(held, dict) else range(len(held))
        places += [(held, key) for key in keys]
        stack += [held[key] for key in keys if isinstance(held[key], (dict, list))]
    if not places:
        return
    held, key = places[int(rng.integers(len(places)))]
    how = int(rng.integers(6))
    if how == 0:
        del held[key]
    elif how == 1 and isinstance(held, dict):
        held[str(one_of(rng, NAMES))] = held.pop(key)
    else:
        held[key] = one_of(
            rng, (None, True, -1, 0, 1e308, 2**70, "", "text", "\x1b[31m", [], {}, [[]], {"a": 1}, 0.5, [1, 2])
        )


TOML_VALUES = (
    "1", "-1", "0", "true", "1e400", "nan", "inf", "-inf", '""', '"x"', "[]", "[1, 2]", "[[1]]", "{}", "{a = 1}",
    "1979-05-27", "9" * 5000, "0.5", '"\\u001b[31m"', '"^(a+)+$"', '"' + "a" * 4000 + '"', "[" * 2000,
    "0x7fffffffffffffffff", '"\\u0000"', "100000000000", "1e-320",
)  # fmt: skip


def toml_document(text: str, rng: Rng) -> str:
    """Settings with values of another kind, keys of another name, lines that go or come twice."""
    lines = text.splitlines()
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(len(lines)))
        key = lines[place].partition("=")[0]
        how = int(rng.integers(7))
        if how <= 2 and "=" in lines[place]:
            lines[place] = f"{key}= {one_of(rng, TOML_VALUES)}"
        elif how == 3:
            lines.append(lines[place])
        elif how == 4:
            lines[place] = scrambled(lines[place].encode(), rng).decode("latin-1")
        elif how == 5 and len(lines) > 1:
            del lines[place]
        else:
            lines.insert(
                place,
                str(one_of(rng, ("[[layer]]", "[layer]", "a.b.c = 1", "keep = true", "rank = [1, 1]", "x", "[a]" * 9))),
            )
    return "\n".join(lines) + "\n"


# Images and files of other kinds.


def image(rng: Rng) -> tuple[str, bytes]:
    """A small one, often a damaged or an odd one."""
    from PIL import Image

    kind = str(one_of(rng, ("png", "jpeg", "bmp", "gif", "webp")))
    mode = str(one_of(rng, ("RGB", "RGB", "L", "P", "RGBA", "1", "CMYK", "I;16", "F")))
    size = one_of(rng, ((12, 12), (12, 12), (1, 1), (30, 13), (4000, 1)))
    picture = Image.frombytes("RGB", (12, 12), rng.bytes(432)).resize(size or (12, 12))
    file = io.BytesIO()
    try:
        picture.convert(mode).save(file, kind)
    except (OSError, ValueError, KeyError):
        picture.save(file, "png")
    data = file.getvalue()
    how = rng.random()
    if how < 0.3:
        data = scrambled(data, rng)
    elif how < 0.4 and data.startswith(b"\x89PNG"):
        data = data[:16] + struct.pack(">II", 60_000, 60_000) + data[24:]
    elif how < 0.5:
        data = data[: len(data) // 2]
    name, ending = one_of(rng, ("a", "b", "\x1b[31m", "é", ".hidden")), one_of(rng, (kind, "png", "JPG", "txt"))
    return f"{name}.{ending}", data


def odd_file(path: Path, rng: Rng) -> str:
    """In the place of a file: a pipe, a folder, a link to nowhere, to itself, to a device, nothing."""
    how = str(one_of(rng, ("pipe", "folder", "nowhere", "itself", "zero", "null", "empty", "gone", "socket")))
    path.unlink(missing_ok=True)
    if how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)  # a try works in the folder of its files
    elif how != "gone":
        path.symlink_to({"nowhere": "no-such-file", "itself": path.name, "zero": "/dev/zero", "null": "/dev/null"}[how])
    return f"{path.name} is another thing: {how}"


__all__ = ["SIZES", "archive", "image", "json_document", "odd_file", "scrambled", "toml_document"]
