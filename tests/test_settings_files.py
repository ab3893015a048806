"""TOML and JSON files, and rules given in Python: whatever is wrong with them is one sentence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trp_onnx
from tests import graphs
from tests.easy import compress
from tests.test_bad_input import cli
from trp_onnx.planning import LayerRule

DAMAGED = {
    "nested arrays": b"a = " + b"[" * 20_000 + b"]" * 20_000,
    "nested tables": b"[" + b"a." * 20_000 + b"a]",
    "a number of thousands of digits": b"a = " + b"9" * 20_000,
    "a key twice": b"a = 1\na = 2\n",
    "a NUL": b"a = '\0'\n",
    "not UTF-8": b"a = '\xff\xfe'\n",
    "UTF-16": "a = 1".encode("utf-16"),
    "a carriage return alone": b"a = 1\rb = 2",
}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return graphs.conv_net(tmp_path_factory.mktemp("net") / "net.onnx")


def refused(net: Path, folder: Path, *options: object, code: int) -> str:
    out = folder / "out.onnx"
    exit_code, message = cli("compress", net, "-o", out, "--align", 1, *options)
    assert exit_code == code, message
    assert len(message.strip().splitlines()) == 1 and not out.exists(), message
    return message


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_toml(tmp_path: Path, net: Path, what: str) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(DAMAGED[what])
    refused(net, tmp_path, "--config", path, code=2)
    refused(net, tmp_path, "--train", "--data", net, "--macs", 0.6, "--training", path, code=2)


@pytest.mark.parametrize("what", ["nested", "digits", "twice", "latin", "list", "number"])
def test_damaged_json(tmp_path: Path, net: Path, what: str) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(
        {
            "nested": b"[" * 100_000,
            "digits": b'{"format": ' + b"9" * 20_000 + b"}",
            "twice": b'{"format": 1, "format": 2}',
            "latin": b'{"format": "\xff"}',
            "list": b"[1, 2]",
            "number": b"1e999",
        }[what]
    )
    refused(net, tmp_path, "--speedup", 1.1, "--latency-table", path, code=1)


def test_no_file_to_read(tmp_path: Path, net: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "nowhere", tmp_path / ("n" * 300)):
        refused(net, tmp_path, "--config", path, code=2)
        refused(net, tmp_path, "--speedup", 1.1, "--latency-table", path, code=1)


def test_a_byte_order_mark_is_no_damage(tmp_path: Path, net: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbf[[layer]]\r\nname = 'conv2'\r\nratio = 0.5\r\n")
    code, message = cli("compress", net, "-o", tmp_path / "o.onnx", "--align", 1, "--config", tmp_path / "c.toml")
    assert code == 0, message


@pytest.mark.parametrize(
    "value",
    ["name = 3", "name = ['a']", "name = 'conv2'\nrank = 1.5", "name = 'conv2'\nrank = []",
     "name = 'conv2'\nrank = true", "name = 'conv2'\nrank = [1, 2, 3]", "name = 'conv2'\nrank = 99999999999999999999",
     "name = 'conv2'\nratio = '0.5'",
     "name = 'conv2'\nratio = nan", "name = 'conv2'\nratio = inf", "name = 'conv2'\nenergy = -0.0001",
     "name = 'conv2'\nvbmf = 1", "name = 'conv2'\nkeep = 'yes'", "name = 'conv2'\nscheme = 4",
     "name = 'conv2'\nscheme = []", "regex = '(?=a)b'\nkeep = true", "regex = '(a)\\1'\nkeep = true",
     "regex = '((a{100}){100}){100}'\nkeep = true", f"regex = '{'a' * 20_000}'\nkeep = true",
     f"name = '{'*a' * 10_000}'\nkeep = true"],
)  # fmt: skip
def test_values_that_make_no_sense(tmp_path: Path, net: Path, value: str) -> None:
    (tmp_path / "c.toml").write_text(f"[[layer]]\n{value}\n")
    assert "c.toml', layer entry 1" in refused(net, tmp_path, "--config", tmp_path / "c.toml", code=2)


@pytest.mark.parametrize("pattern", ["regex = '^(a+)+$'", "regex = '(x+x+)+y'", f"name = '{'*a' * 200}*b'"])
def test_patterns_take_no_longer_than_the_names(tmp_path: Path, pattern: str) -> None:
    import onnx

    model = onnx.load(graphs.conv_net(tmp_path / "m.onnx"))
    model.graph.node[2].name = "a" * 5000 + "x" * 5000
    onnx.save(model, tmp_path / "m.onnx")
    (tmp_path / "c.toml").write_text(f"[[layer]]\n{pattern}\nratio = 0.5\n")
    message = refused(tmp_path / "m.onnx", tmp_path, "--config", tmp_path / "c.toml", code=2)
    assert "matches no layer" in message


@pytest.mark.parametrize(
    "values",
    [
        {"scheme": "nope"}, {"scheme": 3}, {"ratio": -1.7}, {"ratio": 1.0}, {"ratio": float("nan")}, {"energy": "0.1"},
        {"rank": 4}, {"rank": (0,)}, {"rank": (1, 2, 3)}, {"rank": (1.5,)}, {"rank": (True,)}, {"keep": "no"},
        {"rank": (4,), "keep": True}, {"ratio": 0.5, "energy": 0.0}, {"vbmf": 1}, {"regex": True, "pattern": "("},
        {"pattern": None},
    ],
)  # fmt: skip
def test_rules_in_python(net: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(trp_onnx.UsageError):
        compress(net, tmp_path / "o.onnx", config=[LayerRule(**({"pattern": "*"} | values))])
    assert not (tmp_path / "o.onnx").exists()


def test_rules_in_python_take_numpys_numbers(net: Path, tmp_path: Path) -> None:
    rules = [LayerRule("conv2", rank=(np.int64(4),)), LayerRule("fc", ratio=np.float64(0.9))]
    report = compress(net, tmp_path / "o.onnx", config=rules, align=1)
    assert {layer.name: layer.rank for layer in report.layers}["conv2"] == (4,)


def test_what_stands_for_a_value_becomes_it() -> None:
    """Options of a user's own lists and arrays are those of tuples and numbers, and go through JSON."""
    given = trp_onnx.Preprocessing(mean=[1, 2], std=np.array([3.0, 4.0], np.float32), crop=np.int64(5))  # type: ignore[arg-type]
    assert given == trp_onnx.Preprocessing(mean=(1.0, 2.0), std=(3.0, 4.0), crop=5)
    for values in ({"scale": "1/255"}, {"color": "grey"}, {"mean": None}, {"crop": Path("x")}, {"std": ()}):
        with pytest.raises(trp_onnx.UsageError, match=next(iter(values))):
            trp_onnx.Preprocessing(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values", [{"epochs": 10**400}, {"rate": float("inf")}, {"clip": float("nan")}, {"seed": 2**70}]
)
def test_training_numbers_beyond_a_machine(values: dict[str, Any]) -> None:
    from trp_onnx.training import TrainingOptions

    with pytest.raises(trp_onnx.UsageError):
        TrainingOptions(**values)
