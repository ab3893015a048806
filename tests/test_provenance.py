"""What is a factor of which layer is written down in the file; names mean nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import trp_onnx
from tests.easy import compress
from tests.graphs import conv_net, info, model, save, weights
from trp_onnx.graph.session import open_session

LAYER, PART = "trp_onnx.layer", "trp_onnx.part"


def notes_of(path: Path) -> dict[str, tuple[str, str]]:
    found = {}
    for node in onnx.load(path).graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        if LAYER in notes:
            found[node.name] = (notes[LAYER], notes[PART])
    return found


def halve(source: Path, out: Path, rank: int = 6, layer: str = "conv2") -> Path:
    rules = [trp_onnx.LayerRule(layer, scheme="spatial", rank=(rank,))]
    compress(source, out, config=rules, align=1)
    return out


@pytest.mark.parametrize("ir_version", [4, 8, 10])
def test_factors_are_marked_in_files_of_every_version(tmp_path: Path, ir_version: int) -> None:
    built = onnx.load(conv_net(tmp_path / "net.onnx"))
    built.ir_version = ir_version
    small = halve(save(built, tmp_path / "net.onnx"), tmp_path / "small.onnx")
    assert notes_of(small) == {"conv2/v": ("conv2", "v"), "conv2/h": ("conv2", "h")}
    onnx.checker.check_model(small, full_check=True)
    assert onnx.load(small).ir_version == ir_version
    open_session(small)


def test_factors_of_factors_are_parts_of_the_first_layer(tmp_path: Path) -> None:
    small = halve(conv_net(tmp_path / "net.onnx"), tmp_path / "small.onnx", rank=14)
    rules = [trp_onnx.LayerRule("conv2/v", scheme="channel", rank=(4,))]
    compress(small, tmp_path / "smaller.onnx", config=rules, align=1)
    assert notes_of(tmp_path / "smaller.onnx") == {
        "conv2/v/core": ("conv2", "v/core"),
        "conv2/v/out": ("conv2", "v/out"),
        "conv2/h": ("conv2", "h"),
    }


def test_int8_keeps_the_marks(tmp_path: Path) -> None:
    small = halve(conv_net(tmp_path / "net.onnx"), tmp_path / "small.onnx")
    x = np.random.default_rng(0).standard_normal((32, 3, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    trp_onnx.quantize(small, tmp_path / "int8.onnx", data=tmp_path / "x.npz")
    assert notes_of(tmp_path / "int8.onnx") == notes_of(small)


def dense_with_our_names(path: Path) -> Path:
    """Dense layers whose names end as those of our factors do, 32 channels wide and 20 in between."""
    constants = {"a": weights(20, 32, 3, 1, seed=1), "b": weights(32, 20, 1, 3, seed=2)}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["m"], name="/attn/in", pads=[1, 0, 1, 0]),
        helper.make_node("Relu", ["m"], ["r"], name="/attn/relu"),
        helper.make_node("Conv", ["r", "b"], ["y"], name="/attn/out", pads=[0, 1, 0, 1]),
    ]
    return save(model(nodes, [info("x", [1, 32, 8, 8])], [info("y", [1, 32, 8, 8])], constants), path)


def layers_in_bench(*paths: Path) -> list[set[str]]:
    return [set(contender.layers) for contender in trp_onnx.bench(paths, rounds=2).contenders]


def test_dense_layers_stay_what_they_are_whatever_their_names(tmp_path: Path) -> None:
    net = dense_with_our_names(tmp_path / "net.onnx")
    (layers,) = layers_in_bench(net)
    assert {"/attn/in", "/attn/out"} <= layers and "/attn" not in layers
    assert trp_onnx.export(net, tmp_path / "out").advice == ()


def test_bench_adds_up_the_factors_of_a_layer(tmp_path: Path) -> None:
    net = conv_net(tmp_path / "net.onnx")
    dense, small = layers_in_bench(net, halve(net, tmp_path / "small.onnx"))
    assert "conv2" in dense & small
    assert not any(name.startswith("conv2/") for name in small)


def test_a_factor_takes_no_name_that_is_there(tmp_path: Path) -> None:
    built = onnx.load(conv_net(tmp_path / "net.onnx"))
    built.graph.node[3].name = "conv2/v"
    small = halve(save(built, tmp_path / "net.onnx"), tmp_path / "small.onnx")
    names = [node.name for node in onnx.load(small).graph.node]
    assert len(set(names)) == len(names)
    assert set(notes_of(small)) == {"conv2/v#2", "conv2/h"}
