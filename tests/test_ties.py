"""A weight that something else reads too does not go when its layer is factorised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import trp_onnx
from tests.easy import compress
from tests.graphs import info, initializers, model, save, weights

WORDS, WIDTH = 300, 32
KEEP_FC = [trp_onnx.LayerRule("head", scheme="svd", rank=(8,))]


def low_rank(rows: int, columns: int) -> np.ndarray:
    return weights(rows, 8, seed=1) @ weights(columns, 8, seed=2).T


def tied(*, turned: bool) -> onnx.ModelProto:
    """Ids -> embedding -> fc -> head by the embedding itself, or by an initializer of its own."""
    head = [helper.make_node("Transpose", ["emb"], ["embT"])] if turned else []
    nodes = [
        helper.make_node("Gather", ["emb", "ids"], ["e"], name="tok"),
        helper.make_node("MatMul", ["e", "w1"], ["h"], name="fc"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        *head,
        helper.make_node("MatMul", ["r", "embT"], ["logits"], name="head"),
    ]
    constants = {"emb": low_rank(WORDS, WIDTH), "w1": weights(WIDTH, WIDTH, seed=3)}
    if not turned:
        constants["embT"] = low_rank(WIDTH, WORDS)
    ids = info("ids", [1, 4], TensorProto.INT64)
    return model(nodes, [ids], [info("logits", [1, 4, WORDS])], constants)


def factorise(path: Path, built: onnx.ModelProto) -> trp_onnx.Report:
    source = save(built, path / "net.onnx")
    return compress(source, path / "small.onnx", config=KEEP_FC, align=1, simplify=False)


def test_a_tied_weight_is_charged_to_its_layer(tmp_path: Path) -> None:
    report = factorise(tmp_path, tied(turned=True))
    head = next(layer for layer in report.layers if layer.name == "head")
    factors = 8 * (WORDS + WIDTH)
    assert head.parameters_after == WORDS * WIDTH + factors
    assert report.parameters.after - report.parameters.before == factors
    assert sum(array.size for array in initializers(tmp_path / "small.onnx").values()) == report.parameters.after
    (note,) = [note for note in report.notes if "stays in the file" in note]
    assert "'emb'" in note and "Gather 'tok'" in note and f"{factors:,} parameters" in note


def test_a_file_that_grows_is_said(tmp_path: Path) -> None:
    report = factorise(tmp_path, tied(turned=True))
    assert report.file_bytes.after > report.file_bytes.before
    assert any("larger than the input" in note and "'head'" in note for note in report.notes)
    assert not any("larger" in note for note in factorise(tmp_path, tied(turned=False)).notes)


def test_a_tied_layer_is_factorised_for_its_macs(tmp_path: Path) -> None:
    source = save(tied(turned=True), tmp_path / "net.onnx")
    sizes = {"ids": (1, 4)}
    report = compress(source, tmp_path / "small.onnx", energy=1e-6, align=1, input_shapes=sizes)
    assert next(layer for layer in report.layers if layer.name == "head").scheme == "svd"


def test_a_weight_of_its_own_goes(tmp_path: Path) -> None:
    report = factorise(tmp_path, tied(turned=False))
    head = next(layer for layer in report.layers if layer.name == "head")
    assert head.parameters_after == 8 * (WORDS + WIDTH)
    assert not any("stays in the file" in note for note in report.notes)


@pytest.mark.parametrize("keep", [False, True])
def test_two_layers_that_read_one_weight_their_own_way(tmp_path: Path, keep: bool) -> None:
    # One reads it as it stands, one turned: it goes only when both are factorised.
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="up"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "w"], ["y"], name="down", transB=1),
    ]
    built = model(nodes, [info("x", [2, WIDTH])], [info("y", [2, WIDTH])], {"w": low_rank(WIDTH, 64)})
    rules = [trp_onnx.LayerRule("up", scheme="svd", rank=(8,))]
    rules.append(trp_onnx.LayerRule("down", keep=True) if keep else trp_onnx.LayerRule("down", scheme="svd", rank=(8,)))
    source = save(built, tmp_path / "net.onnx")
    report = compress(source, tmp_path / "small.onnx", config=rules, align=1, simplify=False)
    factors = 8 * (WIDTH + 64)
    assert report.layers[0].parameters_after == factors + (WIDTH * 64 if keep else 0)
    assert report.parameters.after == (factors + WIDTH * 64 if keep else 2 * factors)
    assert any("Gemm 'down' reads it too" in note for note in report.notes) == keep
