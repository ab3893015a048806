"""Spaces of linear operators alone: components in place of units, which the layers around absorb."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from tests import nets
from tests.easy import compress
from tests.graphs import distance, info, initializers, model, rng, run, save, weights
from tests.nets import Net
from trp_onnx.lowrank.rotation import Rotation
from trp_onnx.passes import TurnSpacesPass

WIDTH, RANK = 64, 24
HEADS, EACH = 4, 16


def low_rank(n: int, c: int, rank: int, seed: int) -> np.ndarray:
    return np.asarray(weights(n, rank, seed=seed) @ weights(rank, c, seed=seed + 1))


def chain(path: Path, *, activation: str | None = None) -> Path:
    """A matrix of low rank, a bias, and another matrix."""
    wa = low_rank(WIDTH, WIDTH, RANK, 1)
    w = {"wa": wa, "ba": wa.mean(axis=0), "wb": weights(WIDTH, 40, seed=4)}
    nodes = [
        helper.make_node("MatMul", ["x", "wa"], ["p"], name="a"),
        helper.make_node("Add", ["p", "ba"], ["h"]),
        helper.make_node(activation or "Identity", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "wb"], ["y"], name="b"),
    ]
    return save(model(nodes, [info("x", ["N", WIDTH])], [info("y", ["N", 40])], w), path)


def attention(path: Path, rank: int) -> Path:
    """Self-attention, whose product of V and O has so low a rank in each head."""
    size = HEADS * EACH
    v = np.concatenate([low_rank(EACH, size, rank, 10 + 2 * head) for head in range(HEADS)])
    w = {"wq": weights(size, size, seed=1), "wk": weights(size, size, seed=2), "wv": v.T.copy(),
         "wo": weights(size, size, seed=3), "bv": v.mean(axis=1),
         "heads": np.array([0, 0, HEADS, EACH]), "whole": np.array([0, 0, size])}  # fmt: skip
    nodes = []
    for side in "qkv":
        nodes.append(helper.make_node("MatMul", ["x", f"w{side}"], [f"{side}1"], name=side))
        flow = f"{side}1"
        if side == "v":
            nodes.append(helper.make_node("Add", [flow, "bv"], ["v2"]))
            flow = "v2"
        nodes.append(helper.make_node("Reshape", [flow, "heads"], [f"{side}3"]))
        order = [0, 2, 3, 1] if side == "k" else [0, 2, 1, 3]
        nodes.append(helper.make_node("Transpose", [f"{side}3"], [f"{side}4"], perm=order))
    nodes += [
        helper.make_node("MatMul", ["q4", "k4"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v4"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["back", "whole"], ["flat"]),
        helper.make_node("MatMul", ["flat", "wo"], ["y"], name="o"),
    ]
    return save(model(nodes, [info("x", ["N", 6, size])], [info("y", ["N", 6, size])], w), path)


def samples(path: Path, *shape: int) -> Path:
    np.savez(path, x=rng(7).standard_normal((384, *shape)).astype(np.float32))
    return path


@pytest.mark.parametrize("asymmetric", [False, True])
def test_a_chain_is_cut_to_its_rank_at_no_loss(tmp_path: Path, asymmetric: bool) -> None:
    net, out = chain(tmp_path / "net.onnx"), tmp_path / "out.onnx"
    data = samples(tmp_path / "x.npz", WIDTH)
    report = compress(net, out, macs=0.38, align=8, data=data, asymmetric=asymmetric)
    (space,) = (space for space in report.spaces if space.kept < space.units)
    assert (space.name, space.units, space.kept) == ("a", WIDTH, RANK) and "components" in space.reason
    feeds = {"x": rng(8).standard_normal((16, WIDTH)).astype(np.float32)}
    assert distance(run(net, feeds)[0], run(out, feeds)[0]) < 1e-5
    stored = sorted(array.shape for array in initializers(out).values() if array.ndim == 2)
    assert stored == [(RANK, 40), (WIDTH, RANK)]


def test_behind_an_activation_units_stay_units(tmp_path: Path) -> None:
    net = chain(tmp_path / "net.onnx", activation="Tanh")
    report = compress(net, tmp_path / "out.onnx", macs=0.38, align=8, data=samples(tmp_path / "x.npz", WIDTH))
    assert all("components" not in space.reason for space in report.spaces)


def test_heads_are_cut_to_the_rank_of_their_products(tmp_path: Path) -> None:
    net, out = attention(tmp_path / "net.onnx", 8), tmp_path / "out.onnx"
    report = compress(net, out, macs=0.8, align=8, data=samples(tmp_path / "x.npz", 6, HEADS * EACH))
    (space,) = (space for space in report.spaces if space.kept < space.units)
    assert (space.name, space.kind, space.kept) == ("v", "head", HEADS * 8) and "components" in space.reason
    feeds = {"x": rng(8).standard_normal((3, 6, HEADS * EACH)).astype(np.float32)}
    assert distance(run(net, feeds)[0], run(out, feeds)[0]) < 1e-5


LINEAR = {"AveragePool", "BatchNormalization", "Concat", "Dropout", "Identity", "channels last", "grouped", "mean",
          "reversed", "tokens", "transposed"}  # fmt: skip
"""Steps that treat all channels of the convolution before them alike, or are folded into it."""


@pytest.mark.parametrize("step", sorted(nets.STEPS))
def test_components_compute_the_same(step: str) -> None:
    net = Net("N", 3, 4, 4)
    flow, channels = nets.STEPS[step](net, net.conv("x", 3, 16, "first", 3), 16)
    net.gemm(net.op("Flatten", flow), channels * 16, 5, "fc")
    whole = net.model("fc.out")
    spaces = {name: space for name, space in nets.spaces_of(whole).items() if space.linear}
    assert ("first" in spaces) == (step in LINEAR)
    bases = {}
    for number, (name, space) in enumerate(spaces.items()):
        each = space.size // space.groups
        encode = np.eye(each) + rng(number).standard_normal((space.groups, each, each)) / each
        bases[name] = Rotation(encode, np.linalg.inv(encode))
    turned = whole.clone()
    TurnSpacesPass(bases)(turned)
    feeds = {"x": rng(1).standard_normal((2, 3, 4, 4)).astype(np.float32)}
    for expected, found in zip(nets.outputs(whole, feeds), nets.outputs(turned, feeds), strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
