"""Passes run in anybody's `onnx_ir.passes.Sequential`: they find layers themselves and refuse what does not fit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnx_ir.passes import PostconditionError, PreconditionError, Sequential, common

import trp_onnx
from tests import graphs, nets
from trp_onnx.passes import CheckedPass, FactorisePass, FoldBatchNormPass, ReplaceWeightsPass, SimplifyPass


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return graphs.conv_net(tmp_path / "net.onnx", channels=24)


@pytest.fixture
def plan(net: Path) -> trp_onnx.Plan:
    search = trp_onnx.SearchSpace(align=1)
    return trp_onnx.compress(net, net.with_name("small.onnx"), trp_onnx.Goal(macs=0.6), search=search).plan


def loaded(path: Path) -> ir.Model:
    return ir.load(path)


def answers(model: ir.Model | Path, path: Path) -> np.ndarray:
    if isinstance(model, ir.Model):
        ir.save(model, path)
    else:
        path = model
    return graphs.run(path, {"x": graphs.rng(3).standard_normal((2, 3, 12, 12)).astype(np.float32)})[0]


def test_a_plan_is_carried_out_in_a_sequence_of_others(net: Path, plan: trp_onnx.Plan, tmp_path: Path) -> None:
    proto = onnx.load(net)  # a weight that is a Constant node: what comes before the pass makes it an initializer
    (weight,) = (tensor for tensor in proto.graph.initializer if tensor.name == "w2")
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["w2"], value=weight))
    proto.graph.initializer.remove(weight)
    passes = Sequential(
        common.LiftConstantsToInitializersPass(), FactorisePass(plan), common.RemoveUnusedNodesPass(),
        common.CheckerPass(full_check=True),
    )  # fmt: skip
    result = passes(ir.from_proto(proto))
    assert result.modified
    names = [node.name for node in result.model.graph]
    assert {"conv2/v", "conv2/h"} <= set(names) and "conv2" not in names
    small = answers(net.with_name("small.onnx"), tmp_path / "unused.onnx")
    np.testing.assert_allclose(answers(result.model, tmp_path / "m.onnx"), small, rtol=1e-4, atol=1e-5)


def test_the_example_of_the_page(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).resolve().parent.parent / "docs" / "passes.md"
    (code,) = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(net.parent)
    net.rename("model.onnx")
    exec(code, {})
    assert {"conv2/v", "conv2/h", "fc/in", "fc/out"} <= {node.name for node in graphs.nodes_of(Path("small.onnx"))}


def test_by_hand(net: Path, tmp_path: Path) -> None:
    """At full rank nothing changes; the others stay."""
    model = FactorisePass({"conv2": ("spatial", (72,))})(loaded(net)).model
    assert [node.name for node in model.graph if node.op_type == "Conv"] == ["conv1", "conv2/v", "conv2/h"]
    np.testing.assert_allclose(answers(model, tmp_path / "m.onnx"), answers(net, net), rtol=1e-4, atol=1e-5)


def test_what_comes_before_may_change_all_but_the_layers(net: Path, plan: trp_onnx.Plan, tmp_path: Path) -> None:
    class Rename(ir.passes.InPlacePass):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            for node in model.graph:
                for value in node.outputs:
                    if not value.is_graph_output():
                        value.name = f"of_{node.name}"
            for name, value in list(model.graph.initializers.items()):
                value.name = f"weight {name}"
            return ir.passes.PassResult(model, True)

    model = Sequential(Rename(), common.TopologicalSortPass(), FactorisePass(plan))(loaded(net)).model
    small = answers(net.with_name("small.onnx"), tmp_path / "unused.onnx")
    np.testing.assert_allclose(answers(model, tmp_path / "m.onnx"), small, rtol=1e-4, atol=1e-5)


def test_a_plan_of_another_network(net: Path, plan: trp_onnx.Plan, tmp_path: Path) -> None:
    wider = loaded(graphs.conv_net(tmp_path / "wider.onnx", channels=32))
    with pytest.raises(PreconditionError, match=r"another network: the weight of 'conv[12]' has shape"):
        FactorisePass(plan)(wider)
    other = loaded(net)
    for node in other.graph:
        node.name = f"my_{node.name}"
    names = [node.name for node in other.graph]
    with pytest.raises(PreconditionError, match=r"no layer 'conv[12]', which the plan factorises"):
        FactorisePass(plan)(other)
    assert [node.name for node in other.graph] == names  # nothing was changed


@pytest.mark.parametrize(
    ("layer", "rank", "why"),
    [
        ("relu1", (4,), "no layer 'relu1'"),
        ("conv2", (4000,), r"no rank \[4000\] under scheme spatial: its full rank is \[72\]"),
        ("conv2", (4, 4), r"no rank \[4, 4\] under"),
        ("fc", (4,), r"spatial does not fit the kernel \[\] of 'fc'"),
    ],
)
def test_layers_that_cannot_become_what_is_asked(net: Path, layer: str, rank: tuple[int, ...], why: str) -> None:
    with pytest.raises(PreconditionError, match=why):
        FactorisePass({layer: ("spatial", rank)})(loaded(net))


def test_a_weight_that_is_no_constant(net: Path) -> None:
    model = loaded(net)
    model.graph.inputs.append(model.graph.initializers.pop("w2"))
    model.graph.inputs[-1].const_value = None
    with pytest.raises(PreconditionError, match="'conv2' cannot be factorised: weight 'w2' is an input of the graph"):
        FactorisePass({"conv2": ("spatial", (4,))})(model)


def test_inputs_and_outputs_stay(net: Path) -> None:
    """A split of ours that touches them is found out."""

    def split(layer: object, scheme: object, rank: object) -> object:
        model.graph.outputs[0].name = "another"
        return by_weight(layer, scheme, rank)  # type: ignore[arg-type]

    from trp_onnx.passes.factorise import by_weight

    model = loaded(net)
    with pytest.raises(PostconditionError, match="inputs or outputs"):
        FactorisePass({"conv2": ("spatial", (4,))}, split)(model)  # type: ignore[arg-type]


def test_layers_of_one_name(tmp_path: Path) -> None:
    """Nodes of two graphs may be called the same: one gets a number, and keeps it when the other is gone."""

    def conv(flow: str, weight: str, output: str) -> onnx.NodeProto:
        return helper.make_node("Conv", [flow, weight], [output], name="layer", pads=[1, 1, 1, 1])

    def branch(output: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(list(nodes), output, [], [graphs.info(output, None)])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Less", ["sum", "bound"], ["small"]),
        helper.make_node(
            "If", ["small"], ["a"], name="if",
            then_branch=branch("t", conv("x", "w1", "t")), else_branch=branch("e", conv("x", "w2", "e")),
        ),
        conv("a", "w3", "y"),
    ]  # fmt: skip
    weights = {f"w{i}": graphs.weights(24, 24, 3, 3, seed=i) for i in (1, 2, 3)} | {"bound": np.float32(0)}
    ends = [graphs.info("x", ["N", 24, 12, 12])], [graphs.info("y", ["N", 24, 12, 12])]
    path = graphs.save(graphs.model(nodes, *ends, weights), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=graphs.rng(1).standard_normal((40, 24, 12, 12)).astype(np.float32))
    for asymmetric in (False, True):
        out = tmp_path / f"{asymmetric}.onnx"
        search = trp_onnx.SearchSpace(align=1, asymmetric=asymmetric)
        goal = trp_onnx.Goal(macs=0.5)
        report = trp_onnx.compress(path, out, goal, data=tmp_path / "d.npz", search=search).report
        assert {layer.name: layer.scheme for layer in report.layers}.keys() == {"layer", "layer#2", "layer#3"}
        assert report.layers[2].scheme is not None
        assert any(node.name.startswith("layer#3/") for node in graphs.nodes_of(out))


def test_a_pass_that_changes_what_is_computed_is_undone(
    net: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Spoil(ir.passes.FunctionalPass):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            copy = model.clone()
            ReplaceWeightsPass({"conv2": (np.ones((1, 24, 24, 3, 3)), None)})(copy)
            return ir.passes.PassResult(copy, True)

    result = Sequential(CheckedPass(Spoil(), "spoiled"), CheckedPass(SimplifyPass(), "simplified"))(loaded(net))
    (said,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert said.startswith("not spoiled: the outputs would differ by")
    np.testing.assert_allclose(answers(result.model, tmp_path / "m.onnx"), answers(net, net), rtol=1e-5, atol=1e-6)


def test_weights_for_layers_that_are_not_there(net: Path) -> None:
    for name, shape in (("conv9", (1, 24, 24, 3, 3)), ("conv2", (1, 24, 24, 1, 1))):
        with pytest.raises(PreconditionError, match=name):
            ReplaceWeightsPass({name: (np.ones(shape), None)})(loaded(net))
    assert not FoldBatchNormPass()(loaded(net)).modified


def test_two_normalisations_behind_one_layer_are_folded() -> None:
    net = nets.Net("N", 3, 8, 8)
    flow = net.conv("x", 3, 4, "conv")
    for scale in (2.0, 3.0):
        flow = net.op("BatchNormalization", flow, *(net.const([value] * 4) for value in (scale, 0.5, 0.1, 1.5)))
    model = net.model(flow)
    assert [node.op_type for node in model.graph] == ["Conv"]
