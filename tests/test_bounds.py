"""What would take more memory or time than there is, is refused before it is taken, in one sentence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import trp_onnx
from tests import graphs
from tests.test_bad_input import cli


def dynamic(path: Path) -> Path:
    w = {"w": graphs.weights(8, 3, 3, 3)}
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])
    shapes = (["N", 3, "H", "W"], ["N", 8, "H", "W"])
    return graphs.save(graphs.model([node], [graphs.info("x", shapes[0])], [graphs.info("y", shapes[1])], w), path)


@pytest.mark.parametrize("size", ["1,3,1000000,1000000", "99999999999,3,8,8", "1,3,4,2305843009213693952"])
def test_generated_inputs_of_absurd_size(tmp_path: Path, size: str) -> None:
    model = dynamic(tmp_path / "m.onnx")
    code, message = cli(
        "compress", model, "-o", tmp_path / "o.onnx", "--macs", 0.6, "--align", 1, "--input-shape", f"x:{size}"
    )
    assert code == 1 and "GiB of memory" in message, message
    assert len(message.strip().splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_constants_that_unfold_to_gigabytes_stay_folded(tmp_path: Path) -> None:
    """A file of a few hundred bytes that means 4 GB: nothing takes them."""
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["c"], value=graphs.tensor("v", np.ones(1, np.float32))),
        helper.make_node("ReduceSum", ["c"], ["r"], keepdims=1),
        helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
        helper.make_node("Identity", ["h"], ["y"]),
    ]
    w = {"s": np.array([1 << 15, 1 << 15], np.int64), "w": graphs.weights(32, 32)}
    model = graphs.model(nodes, [graphs.info("x", [1, 32])], [graphs.info("y", [1, 32])], w)
    path = graphs.save(model, tmp_path / "m.onnx")
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, 3 << 30));"
        "from trp_onnx.cli.main import main; main(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", limited, "inspect", path], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr


def test_a_file_larger_than_protobuf_reads(tmp_path: Path) -> None:
    with (tmp_path / "m.onnx").open("wb") as file:
        file.truncate(3 << 30)  # it takes no room on the disk
    code, message = cli("inspect", tmp_path / "m.onnx")
    assert code == 1 and "protobuf ends at 2 GB" in message, message


def test_many_nodes(tmp_path: Path) -> None:
    """Above a size neither the simplifier nor the runtime's optimiser runs, and the plan is none the worse."""
    nodes = []
    before = "x"
    for i in range(21_000):
        nodes.append(helper.make_node("Relu", [before], [f"r{i}"]))
        before = f"r{i}"
    nodes.append(helper.make_node("MatMul", [before, "w"], ["y"], name="fc"))
    w = {"w": graphs.weights(64, 64)}
    path = graphs.save(
        graphs.model(nodes, [graphs.info("x", [1, 64])], [graphs.info("y", [1, 64])], w), tmp_path / "m.onnx"
    )
    found = trp_onnx.inspect(path)
    assert [layer.full_rank for layer in found.layers if layer.name == "fc"] == [64]
    assert any("not simplified" in note for note in found.notes)
    assert len(onnx.load(path).graph.node) == 21_001


def chain(path: Path, layers: int) -> Path:
    """MatMul -> Relu -> MatMul -> Relu ..."""
    names = ["x", *(f"h{i}" for i in range(2 * layers - 1)), "y"]
    nodes = [
        helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]], name=f"layer{i}")
        if i % 2 == 0
        else helper.make_node("Relu", [names[i]], [names[i + 1]])
        for i in range(2 * layers)
    ]
    w = {f"w{i}": graphs.weights(16, 16, seed=i) for i in range(0, 2 * layers, 2)}
    return graphs.save(graphs.model(nodes, [graphs.info("x", [1, 16])], [graphs.info("y", [1, 16])], w), path)


def calls(work: Callable[[], object]) -> int:
    """Functions of Python that run meanwhile, in this thread."""
    count = 0

    def called(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_work_is_in_proportion_to_the_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the layers take twice the calls."""
    monkeypatch.setattr("trp_onnx.passes.normalise.MOST_NODES", 100)  # as of a network with many nodes

    def run(layers: int) -> int:
        path = chain(tmp_path / f"{layers}.onnx", layers)
        return calls(lambda: trp_onnx.inspect(path))

    run(60)  # imports
    assert run(200) < 2.2 * run(100)
