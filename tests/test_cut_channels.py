"""Cutting spaces: what no consumer reads can go from a whole network, which computes what it did."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_ir.passes import PreconditionError

from tests import graphs, nets
from tests.nets import Net
from tests.test_spaces import inverted_residual
from trp_onnx.passes import CutChannelsPass


def images(channels: int = 3, size: int = 8, batch: int = 2) -> dict[str, np.ndarray]:
    return {"x": graphs.rng(7).standard_normal((batch, channels, size, size)).astype(np.float32)}


def test_removing_nothing_changes_nothing() -> None:
    model = inverted_residual().model("fc.out")
    before = nets.outputs(model, images())
    kept = {name: range(space.size) for name, space in nets.spaces_of(model).items() if not space.closed}
    assert not CutChannelsPass(kept)(model).modified
    np.testing.assert_array_equal(before, nets.outputs(model, images()))


def test_what_nobody_reads_can_go() -> None:
    model = inverted_residual().model("fc.out")
    gone = {"stem": [0, 5, 7], "expand1": [1, 2, 3, 20], "expand2": list(range(1, 24))}
    nets.forgets(model, gone)
    small = nets.cut(model, gone)
    np.testing.assert_allclose(nets.outputs(small, images()), nets.outputs(model, images()), rtol=1e-4, atol=1e-5)
    assert [node.name for node in small.graph] == [node.name for node in model.graph]
    sizes = {name: value.const_value.size for name, value in small.graph.initializers.items()}
    assert sum(sizes.values()) < 0.5 * sum(value.const_value.size for value in model.graph.initializers.values())


@pytest.mark.parametrize(
    ("kept", "why"),
    [
        ({"nothing": [0]}, "the model has no space 'nothing'"),
        ({"stem": []}, "at least one of its units must stay"),
        ({"stem": [8]}, "its units are 0 to 7"),
        ({"stem": [1, 1]}, "each kept once"),
        ({"fc": [0]}, "nothing can be removed from it: they are the output 'fc.out' of the network"),
    ],
)
def test_what_cannot_be_cut(kept: dict[str, list[int]], why: str) -> None:
    model = inverted_residual().model("fc.out")
    with pytest.raises(PreconditionError, match=why):
        CutChannelsPass(kept)(model)


def test_groups_keep_equally_many() -> None:
    net = Net("N", 3, 8, 8)
    flow = net.op("Relu", net.conv("x", 3, 16, "conv1"))
    net.conv(net.op("Relu", net.conv(flow, 16, 8, "grouped", 3, 4)), 8, 5, "conv2")
    model = net.model("conv2.out")
    assert {name: space.groups for name, space in nets.spaces_of(model).items()} == {
        "conv1": 4, "grouped": 4, "conv2": 1,
    }  # fmt: skip
    with pytest.raises(PreconditionError, match="equally many units of each of its 4 groups"):
        CutChannelsPass({"conv1": range(1, 16)})(model)
    gone = {"conv1": [0, 1, 5, 6, 8, 11, 13, 14], "grouped": [0, 3, 5, 6]}
    nets.forgets(model, gone)
    np.testing.assert_allclose(
        nets.outputs(nets.cut(model, gone), images()), nets.outputs(model, images()), rtol=1e-4, atol=1e-5
    )
