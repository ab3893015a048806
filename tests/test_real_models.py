"""Real exported models, where they are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import trp_onnx
from tests.easy import compress
from tests.graphs import run
from tests.test_hard_cases import interface

MODELS = (
    "mnist_cntk", "mobilenet_v2_1.0_224_imagenet_a", "oww_embedding_model", "resnet20_cifar10",
    "resnet20_cifar10_bn", "resnet56_cifar10", "resnet56_cifar10_bn", "squeezenet1.1_imagenet",
)  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_goes_through_compress_and_keeps_its_interface(real_models: Path, tmp_path: Path, name: str) -> None:
    path, out = real_models / f"{name}.onnx", tmp_path / "out.onnx"
    report = compress(path, out, macs=0.6, align=1)
    assert report.macs.ratio <= 0.6
    assert interface(out) == interface(path)
    assert all(layer.macs_before is not None and len(layer.reason) > 10 for layer in report.layers)
    assert not report.notes or all("layer '" in note for note in report.notes)  # nothing was given up


@pytest.mark.parametrize("name", MODELS)
def test_loses_nothing_when_every_layer_keeps_its_full_rank(real_models: Path, tmp_path: Path, name: str) -> None:
    path, out = real_models / f"{name}.onnx", tmp_path / "out.onnx"
    rules = [
        trp_onnx.LayerRule(view.name, scheme=view.scheme, rank=(view.full_rank,))
        for view in trp_onnx.inspect(path).layers
    ]
    report = compress(path, out, config=rules, align=1)
    assert all(layer.scheme for layer in report.layers)
    assert report.outputs[0].relative_error < 1e-4  # dozens of layers, each exact to 1e-6


def test_batch_normalisation_is_folded_and_names_stay(real_models: Path) -> None:
    with_bn = trp_onnx.inspect(real_models / "resnet20_cifar10_bn.onnx").layers
    without = trp_onnx.inspect(real_models / "resnet20_cifar10.onnx").layers
    assert [view.name for view in with_bn] == [view.name for view in without]
    assert with_bn[3].name == "/layer1/layer1.1/conv1/Conv"


def test_any_batch_size_still_runs(real_models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    compress(real_models / "resnet20_cifar10.onnx", out, macs=0.6, align=1)
    assert onnx.load(out).graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for batch in (1, 3):
        assert run(out, {"input": np.zeros((batch, 3, 32, 32), np.float32)})[0].shape == (batch, 10)
