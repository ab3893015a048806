"""Cutting spaces: what no consumer reads can go from a whole network, which computes what it did."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_ir.passes import PreconditionError

from tests import graphs, nets
from tests.nets import Net
from tests.test_spaces import encoder, inverted_residual
from trp_onnx.graph.layers import find_layers
from trp_onnx.passes import CutChannelsPass, ReplaceWeightsPass


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


def test_dimensions_of_heads_and_hidden_units() -> None:
    model = encoder().model("last.out")
    feeds = {"x": graphs.rng(3).standard_normal((2, 5, 12)).astype(np.float32)}
    gone = {"v": [0, 1, 4, 6, 9, 11], "up": list(range(0, 32, 3))}
    nets.forgets(model, gone)
    (queries,) = (layer.weight() for layer in find_layers(model) if layer.name == "q")
    queries[:, [3, 7, 8]] = 0  # asks no key there
    ReplaceWeightsPass({"q": (queries, None)})(model)
    small = nets.cut(model, {**gone, "q": [3, 7, 8]})
    np.testing.assert_allclose(nets.outputs(small, feeds), nets.outputs(model, feeds), rtol=1e-4, atol=1e-5)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(steps=st.lists(st.sampled_from(sorted(nets.STEPS)), min_size=1, max_size=5), seed=st.integers(0, 2**16))
def test_any_graph(steps: list[str], seed: int) -> None:
    removes_what_nobody_reads(steps, seed)


@pytest.mark.parametrize("step", sorted(nets.STEPS))
def test_every_step(step: str) -> None:
    assert any(name.startswith("first") for name in removes_what_nobody_reads([step], 0))


def removes_what_nobody_reads(steps: list[str], seed: int) -> set[str]:
    """Cut all open spaces of a network of some steps; they are returned."""
    net = Net("N", 3, 4, 4)
    flow, channels = net.conv("x", 3, 16, "first", 3), 16
    for number, step in enumerate(steps):
        flow, channels = nets.STEPS[step](net, flow, channels)
        if channels % 4:
            flow, channels = net.conv(flow, channels, 16, f"even{number}"), 16
    net.gemm(net.op("Flatten", flow), channels * 16, 5, "fc")
    model = net.model("fc.out")
    spaces = nets.spaces_of(model)
    rng, gone = np.random.default_rng(seed), {}
    for name, space in spaces.items():
        each = space.size // space.groups
        if space.closed is None:
            groups = range(space.groups)
            count = int(rng.integers(1, each))
            gone[name] = [each * group + int(unit) for group in groups for unit in rng.permutation(each)[:count]]
    nets.forgets(model, gone)
    small = nets.cut(model, gone)
    np.testing.assert_allclose(
        nets.outputs(small, images(size=4)), nets.outputs(model, images(size=4)), rtol=1e-4, atol=1e-5
    )
    assert [node.name for node in small.graph] == [node.name for node in model.graph]
    return set(gone)
