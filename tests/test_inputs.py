"""What a model is fed: batches, sizes, generated and given inputs, arrays as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

import trp_onnx
from tests.graphs import info, model, rng, save, weights
from trp_onnx.batching import find_batching, run_samples
from trp_onnx.runtime import open_session


def batch_in_reshape(path: Path, rows: int = 1, declared: str | int = "N", answers: str | int = "N") -> Path:
    """A batch that is dynamic by name, and a Reshape that holds it fast."""
    arrays = {
        "w": weights(24, 3, 3, 3), "v": weights(24, 24, 3, 3, seed=1), "fc": weights(1536, 10, seed=2) / 10,
        "shape": np.array([rows, 1536]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["b"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["b", "shape"], ["f"]),
        helper.make_node("MatMul", ["f", "fc"], ["y"], name="fc"),
    ]
    return save(model(nodes, [info("x", [declared, 3, 8, 8])], [info("y", [answers, 10])], arrays), path)


def labelled(path: Path, net: Path, count: int, *shape: int) -> Path:
    """Samples with the net's own answers for labels, one at a time."""
    x = rng(3).standard_normal((count, *shape)).astype(np.float32)
    session = open_session(net)
    size = session.get_inputs()[0].shape[0]
    size = size if isinstance(size, int) else 1
    y = np.concatenate([session.run(None, {"x": x[i : i + size]})[0] for i in range(0, count, size)]).argmax(axis=1)
    np.savez(path, x=x, y=y)
    return path


@pytest.mark.parametrize(("rows", "size", "fixed"), [(1, 1, False), (4, 4, True), (-1, 32, False)])
def test_how_many_samples_go_in_at_once(tmp_path: Path, rows: int, size: int, fixed: bool) -> None:
    net = batch_in_reshape(tmp_path / "net.onnx", rows, answers=rows if rows > 1 else "N")
    x = rng().standard_normal((10, 3, 8, 8)).astype(np.float32)
    session = open_session(net)
    found = find_batching(session, {"x": x})
    assert (found.size, found.fixed) == (size, fixed)
    y = run_samples(session, {"x": x})["y"]
    free = open_session(batch_in_reshape(tmp_path / "free.onnx", -1))
    assert np.allclose(y, free.run(None, {"x": x})[0], atol=1e-5)


def test_samples_that_would_mix_go_in_one_at_a_time(tmp_path: Path) -> None:
    """The batch runs, and the answer of one sample depends on the others."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["d"]),
        helper.make_node("Add", ["x", "d"], ["y"]),
    ]
    net = save(model(nodes, [info("x", ["N", 6])], [info("y", ["N", 6])]), tmp_path / "net.onnx")
    x = rng().standard_normal((5, 6)).astype(np.float32)
    session = open_session(net)
    assert find_batching(session, {"x": x}).size == 1
    assert np.allclose(run_samples(session, {"x": x})["y"], x)


def test_a_batch_that_does_not_run_is_evaluated_and_quantised(tmp_path: Path) -> None:
    net = batch_in_reshape(tmp_path / "net.onnx")
    data = labelled(tmp_path / "d.npz", net, 40, 3, 8, 8)
    assert trp_onnx.evaluate(net, data).top1 == 1.0
    made = trp_onnx.quantize(net, tmp_path / "int8.onnx", data, test=data, max_drop=50)
    assert made.layers > 0 and made.variants[0].accuracy is not None and made.variants[0].accuracy.top1 == 1.0


def test_a_fixed_batch_is_filled_up(tmp_path: Path) -> None:
    net = batch_in_reshape(tmp_path / "net.onnx", -1, declared=4, answers=4)
    data = labelled(tmp_path / "d.npz", net, 40, 3, 8, 8)
    with np.load(data) as arrays:
        np.savez(tmp_path / "odd.npz", x=arrays["x"][:38], y=arrays["y"][:38])
    assert trp_onnx.evaluate(net, tmp_path / "odd.npz").correct == 38
