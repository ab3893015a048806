"""The verdict of `inspect`: what is within reach at what expected loss, and by which means."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import trp_onnx
from tests import graphs
from tests.clockwork import runs_on
from trp_onnx.cli.main import main


def test_inspect_ends_in_a_verdict_which_the_json_has_as_fields(tmp_path: Path) -> None:
    net = str(graphs.softmax_net(tmp_path / "net.onnx", rank=4))
    verdict = " ".join(CliRunner().invoke(main, ["inspect", net, "-q"]).output.split())
    document = json.loads(CliRunner().invoke(main, ["inspect", net, "--json", "-"]).output)
    assert verdict == document["verdict"]
    assert document["outlook"]["by_rank"] > 1.1 and "rank" in document["outlook"]["means"]
    assert f"--macs {1 / document['outlook']['by_rank']:.2f}" in verdict and "predicted" in verdict


def test_a_network_of_flat_spectra_has_nothing_to_give_to_ranks(tmp_path: Path) -> None:
    found = trp_onnx.inspect(graphs.softmax_net(tmp_path / "net.onnx"))
    assert found.outlook is not None and found.outlook.by_rank is None and "rank" not in found.outlook.means
    assert found.verdict.startswith("Ranks alone do not help")


def test_with_data_it_goes_by_what_layers_give(tmp_path: Path) -> None:
    net = graphs.softmax_net(tmp_path / "net.onnx")
    plain = np.ones((64, 3, 20, 20)) * graphs.rng(0).standard_normal((64, 3, 1, 1))  # little flows into the layers
    found = trp_onnx.inspect(net, data={"x": plain.astype(np.float32)})
    assert found.outlook is not None and found.outlook.errors_of == "outputs"
    assert found.outlook.by_rank is not None and "spectra of outputs" in found.verdict


def test_times_come_from_the_table_that_is_given_or_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_on(monkeypatch, tmp_path / "cache")
    net = graphs.softmax_net(tmp_path / "net.onnx", rank=4)
    table = trp_onnx.profile(net)
    for found in (trp_onnx.inspect(net, latency_table=table), trp_onnx.inspect(net)):
        assert found.outlook is not None
        assert (found.outlook.judged_by, found.outlook.kernels) == ("time", str(table.target))
        assert str(table.target) in found.verdict


def test_sizes_that_are_not_known_give_no_verdict(tmp_path: Path) -> None:
    proto = onnx.load(graphs.conv_net(tmp_path / "net.onnx"))
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
    found = trp_onnx.inspect(proto)
    assert found.outlook is None and "--input-shape" in found.verdict
