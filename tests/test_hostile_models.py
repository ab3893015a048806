"""Models that are malformed, extreme or meant to harm: one sentence and exit code 1, whatever is wrong with them."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper

import trp_onnx
from tests import graphs
from tests.test_bad_input import cli

Change = Callable[[onnx.ModelProto], object]


def small(opset: int = 17) -> onnx.ModelProto:
    """conv -> relu -> conv -> pool -> fc."""
    w = {
        "w1": graphs.weights(16, 3, 3, 3, seed=1),
        "w2": graphs.weights(16, 16, 3, 3, seed=2),
        "wf": graphs.weights(10, 16, seed=3),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1], group=1),
        helper.make_node("GlobalAveragePool", ["c2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "wf"], ["y"], name="fc", transB=1),
    ]
    return graphs.model(nodes, [graphs.info("x", ["N", 3, 8, 8])], [graphs.info("y", ["N", 10])], w, opset=opset)


def weight(model: onnx.ModelProto, name: str = "w2") -> TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def node(model: onnx.ModelProto, name: str = "conv2") -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def attribute(model: onnx.ModelProto, name: str, value: object, of: str = "conv2") -> None:
    found = node(model, of)
    kept = [a for a in found.attribute if a.name != name]
    del found.attribute[:]
    found.attribute.extend([*kept, helper.make_attribute(name, value)])


def external(model: onnx.ModelProto, **entries: str) -> None:
    tensor = weight(model)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def retyped(model: onnx.ModelProto, kind: int) -> None:
    weight(model).data_type = kind


def typed(model: onnx.ModelProto, field: str, values: list[float]) -> None:
    weight(model).ClearField("raw_data")
    getattr(weight(model), field).extend(values)


def sparse(model: onnx.ModelProto, dims: list[int], indices: np.ndarray, values: int = 3) -> None:
    stored = helper.make_sparse_tensor(
        graphs.tensor("w2", np.ones(values, np.float32)), graphs.tensor("w2_indices", indices), dims
    )
    model.graph.initializer.remove(weight(model))
    model.graph.sparse_initializer.append(stored)


def function(name: str, calls: list[str], copies: int = 1) -> onnx.FunctionProto:
    nodes = []
    before = "a"
    for i, called in enumerate(calls * copies):
        nodes.append(helper.make_node(called, [before], [f"t{i}"], domain="local" if called != "Relu" else ""))
        before = f"t{i}"
    nodes.append(helper.make_node("Identity", [before], ["b"]))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, ["a"], ["b"], nodes, imports)


def calling(model: onnx.ModelProto, *functions: onnx.FunctionProto) -> None:
    model.functions.extend(functions)
    model.opset_import.append(helper.make_opsetid("local", 1))
    relu = node(model, "relu1")
    relu.domain, relu.op_type = "local", functions[0].name


HUGE = np.array([0, 1, 2], np.int64)

BROKEN: dict[str, tuple[Change, str]] = {
    "raw data too short": (lambda m: weight(m).ClearField("raw_data"), "takes 2304 values, but 0 are stored"),
    "raw data too long": (lambda m: setattr(weight(m), "raw_data", bytes(9999)), "takes 9216 bytes, but 9999"),
    "float data of a wrong length": (lambda m: typed(m, "float_data", [1.0, 2.0]), "but 2 are stored"),
    "values in another type's field": (lambda m: typed(m, "int32_data", [1] * 2304), "but 0 are stored"),
    "a negative size": (lambda m: weight(m).dims.__setitem__(0, -16), "negative size"),
    "a huge size": (lambda m: weight(m).dims.__setitem__(0, 2**60), "which no memory holds"),
    "sizes whose product overflows": (lambda m: weight(m).dims.extend([2**31, 2**31]), "which no memory holds"),
    "no sizes": (lambda m: weight(m).ClearField("dims"), "takes 4 bytes"),
    "a type that is not there": (lambda m: retyped(m, 77), "type 77, which ONNX does not have"),
    "an undefined type": (lambda m: retyped(m, 0), "which ONNX does not have"),
    "strings": (lambda m: retyped(m, TensorProto.STRING), "but 0 are stored"),
    "a location with a NUL": (lambda m: external(m, location="a\0b"), r"'a\x00b', which no file can be called"),
    "a long location": (lambda m: external(m, location="l" * 300), "which no file can be called"),
    "an empty location": (lambda m: external(m, location=""), "which no file can be called"),
    "no location": (lambda m: external(m), "which no file can be called"),
    "a negative offset": (lambda m: external(m, location="d", offset="-4"), "an offset of '-4'"),
    "a huge offset": (lambda m: external(m, location="d", offset="9" * 40), "which is no number"),
    "an offset in words": (lambda m: external(m, location="d", offset="four"), "an offset of 'four'"),
    "a wrong length": (lambda m: external(m, location="d", length="12"), "takes 9216 bytes, but 12"),
    "an unknown key": (lambda m: external(m, location="d", cheksum=""), "says 'cheksum' of its external data"),
    "an initializer twice": (lambda m: m.graph.initializer.append(weight(m)), "'w2' is there twice"),
    "an initializer without a name": (lambda m: setattr(weight(m), "name", ""), "an initializer has no name"),
    "a value made twice": (lambda m: node(m).output.__setitem__(0, "c1"), "'c1' is made twice"),
    "a missing value": (lambda m: node(m).input.__setitem__(0, "nobody"), "reads 'nobody', which nothing makes"),
    "a missing output": (lambda m: setattr(m.graph.output[0], "name", "z"), "output 'z' is made by no node"),
    "a circle": (lambda m: node(m, "conv1").input.__setitem__(0, "c2"), "in a circle"),
    "an input twice": (lambda m: m.graph.input.append(m.graph.input[0]), "input 'x' is there twice"),
    "no opset": (lambda m: m.ClearField("opset_import"), "holds no graph"),
    "opset 0": (lambda m: setattr(m.opset_import[0], "version", 0), "opset 0"),
    "an absurd opset": (lambda m: setattr(m.opset_import[0], "version", 2**62), "which does not exist"),
    "IR version 0": (lambda m: setattr(m, "ir_version", 0), "IR version 0"),
    "an absurd IR version": (lambda m: setattr(m, "ir_version", 2**40), "IR version"),
    "no nodes": (lambda m: m.graph.ClearField("node"), "holds no graph"),
    "no operator": (lambda m: setattr(node(m), "op_type", ""), "has no operator"),
    "a node that makes nothing": (lambda m: m.graph.node.append(helper.make_node("Relu", ["x"], [])), "makes nothing"),
    "a Conv of one input": (lambda m: node(m).input.pop(), "has 1 inputs"),
    "kernel_shape of floats": (lambda m: attribute(m, "kernel_shape", [3.0, 3.0]), "is of type FLOATS"),
    "kernel_shape of another kernel": (lambda m: attribute(m, "kernel_shape", [5, 5]), "its weight [3, 3]"),
    "group as a string": (lambda m: attribute(m, "group", "one"), "where INT is meant"),
    "strides of a wrong length": (lambda m: attribute(m, "strides", [1, 1, 1]), "strides [1, 1, 1]"),
    "strides of 0": (lambda m: attribute(m, "strides", [0, 1]), "each is from 1"),
    "dilations below 0": (lambda m: attribute(m, "dilations", [1, -1]), "each is from 1"),
    "pads of a wrong length": (lambda m: attribute(m, "pads", [1, 1]), "pads [1, 1]"),
    "pads that no tensor has": (lambda m: attribute(m, "pads", [2**40, 1, 1, 1]), "no tensor has room for"),
    "group 0": (lambda m: attribute(m, "group", 0), "0 groups"),
    "a negative group": (lambda m: attribute(m, "group", -4), "-4 groups"),
    "a group that does not divide": (lambda m: attribute(m, "group", 3), "do not divide its 16 channels"),
    "an attribute twice": (lambda m: node(m).attribute.append(node(m).attribute[0]), "twice"),
    "an attribute of no type": (lambda m: node(m).attribute[0].ClearField("type"), "is of no type"),
    "a vector as a kernel": (
        lambda m: weight(m).CopyFrom(graphs.tensor("w2", np.ones(16, np.float32))),
        "three sizes at least",
    ),
    "a sparse index outside": (lambda m: sparse(m, [16, 16, 3, 3], HUGE + 99999), "index outside"),
    "a sparse tensor of the wrong rank": (
        lambda m: sparse(m, [16, 16, 3, 3], np.zeros((3, 2), np.int64)),
        "indices of shape [3, 2]",
    ),
    "a sparse tensor beyond memory": (lambda m: sparse(m, [2**20, 2**20], HUGE), "of memory"),
    "a function that calls itself": (lambda m: calling(m, function("F", ["F"])), "calls itself"),
    "functions in a circle": (lambda m: calling(m, function("F", ["G"]), function("G", ["F"])), "calls itself"),
    "functions that double": (
        lambda m: calling(m, *(function(f"F{i}", [f"F{i + 1}"], 2) for i in range(24)), function("F24", ["Relu"])),
        "nodes when they are inlined",
    ),
    "functions that double without end": (
        lambda m: calling(m, *(function(f"F{i}", [f"F{i + 1}"], 2) for i in range(99)), function("F99", ["Relu"])),
        "over 10^15 nodes",
    ),
    "functions in a long row": (
        lambda m: calling(m, *(function(f"F{i}", [f"F{i + 1}"]) for i in range(2000)), function("F2000", ["Relu"])),
        "2001 deep",
    ),
    "a function of another opset": (
        lambda m: (calling(m, function("F", ["Relu"])), setattr(m.functions[0].opset_import[0], "version", 13)),
        "cannot be inlined: Opset mismatch",
    ),
    "a device configuration of nothing": (lambda m: node(m).device_configurations.add(), "that names none"),
    "an attribute of nothing": (
        lambda m: m.graph.node.add(op_type="Own", domain="own", output=["k"]).attribute.add(),
        "attribute '' of Own 'k' is of no type",
    ),
    "a constant of nothing": (
        lambda m: m.graph.node.add(op_type="Constant", output=["k"]).attribute.add(name="value", type=4),
        "attribute 'value' of Constant 'k' holds nothing",
    ),
    "a sequence of nothing": (
        lambda m: (m.graph.output[0].ClearField("type"), m.graph.output[0].type.sequence_type.SetInParent()),
        "model: SequenceTypeProto must have elem_type set",
    ),
    "a function twice": (lambda m: calling(m, function("F", ["Relu"]), function("F", ["Relu"])), "is there twice"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_model_is_one_sentence(tmp_path: Path, what: str) -> None:
    change, complaint = BROKEN[what]
    model = small()
    change(model)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    (tmp_path / "d").write_bytes(bytes(9216))
    for command in (["inspect", path], ["compress", path, "-o", tmp_path / "o.onnx", "--macs", 0.6]):
        code, message = cli(*command)
        assert code == 1, message
        assert complaint in message, message
        assert len(message.strip().splitlines()) == 1, message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "m.onnx"]


def test_a_call_that_gives_a_function_too_much(tmp_path: Path) -> None:
    model = small()
    calling(model, function("F", ["Relu"]))
    node(model, "relu1").input.append("x")
    code, message = cli("inspect", graphs.save(model, tmp_path / "m.onnx"))
    assert code == 1 and "functions cannot be inlined: Input mismatch" in message


def test_functions_whose_nodes_are_in_any_order(tmp_path: Path) -> None:
    model = small()
    called = function("F", ["Relu"])
    nodes = list(reversed(called.node))
    del called.node[:]
    called.node.extend(nodes)
    model.functions.append(called)  # nobody calls it, and it stays
    path = graphs.save(model, tmp_path / "m.onnx")
    for options in ((), ("--no-simplify",)):
        code, message = cli("compress", path, "-o", tmp_path / "o.onnx", "--macs", 0.6, "--align", 1, *options)
        assert code == 0, message


def nested(depth: int) -> bytes:
    """If in If in If, by hand: protobuf's own writer stops before its reader does."""

    def field(number: int, data: bytes) -> bytes:
        size, length = b"", len(data)
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + data

    graph = b""
    for _ in range(depth):
        branch = field(1, b"then_branch") + field(6, graph) + bytes([20 << 3 & 127 | 128, 1, AttributeProto.GRAPH])
        graph = field(1, field(2, b"y") + field(4, b"If") + field(5, branch))
    return bytes([8, 8]) + field(7, graph) + field(8, bytes([16, 17]))


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 100, b"\x1f\x8b" + os.urandom(500), gzip.compress(b"onnx"), b"ir_version: 8\n", nested(2000)],
    ids=["empty", "zeros", "garbage", "gzip", "text", "nested"],
)
def test_no_model_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    code, message = cli("inspect", path)
    assert code == 1 and "is not an ONNX" in message and len(message.strip().splitlines()) == 1, message


def test_places_that_hold_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero", tmp_path / ("n" * 300)):
        code, message = cli("inspect", path)
        assert code == 1 and len(message.strip().splitlines()) == 1, message
    with pytest.raises(trp_onnx.ModelError):
        trp_onnx.inspect("a\0b.onnx")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(small().SerializeToString().replace(b"conv2", b"con\xff\xfe"))
    code, message = cli("inspect", path)
    assert code == 1 and "UTF-8" in message and len(message.strip().splitlines()) == 1, message


@pytest.mark.parametrize("linear", [True, False])
def test_a_sparse_initializer_is_read_dense(tmp_path: Path, linear: bool) -> None:
    full = np.zeros((16, 16, 3, 3), np.float32)
    full[np.arange(16), np.arange(16), 1, 1] = np.linspace(1, 2, 16)
    full[0, 5, 2, 0] = -3
    places = np.flatnonzero(full)
    indices = places if linear else np.argwhere(full)
    expected = small()
    weight(expected).CopyFrom(graphs.tensor("w2", full))
    stored = helper.make_sparse_tensor(
        graphs.tensor("w2", full.reshape(-1)[places]), graphs.tensor("w2_indices", indices.astype(np.int64)), full.shape
    )
    model = small()
    model.graph.initializer.remove(weight(model))
    model.graph.sparse_initializer.append(stored)
    for name, built in (("dense", expected), ("sparse", model)):
        (tmp_path / f"{name}.onnx").write_bytes(built.SerializeToString())
        code, message = cli(
            "compress", tmp_path / f"{name}.onnx", "-o", tmp_path / f"{name}.out.onnx", "--macs", 0.7, "--align", 1
        )
        assert code == 0 and ("made dense" in message) == (name == "sparse"), message
    code, message = cli("export", tmp_path / "sparse.onnx", "-o", tmp_path / "ship", "-q")
    assert code == 0 and message.count("made dense") == 1
    assert any("made dense" in note for note in trp_onnx.export(tmp_path / "sparse.onnx", tmp_path / "ship").notes)
    assert any("made dense" in note for note in trp_onnx.inspect(tmp_path / "sparse.onnx").notes)
    x = {"x": graphs.rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    dense_out, sparse_out = (graphs.run(tmp_path / f"{name}.out.onnx", x)[0] for name in ("dense", "sparse"))
    np.testing.assert_array_equal(dense_out, sparse_out)


def test_a_sparse_constant_is_read_dense(tmp_path: Path) -> None:
    model = small()
    full = np.diag(np.arange(1, 11)).astype(np.float32)
    stored = helper.make_sparse_tensor(
        graphs.tensor("", np.arange(1, 11).astype(np.float32)),
        graphs.tensor("", np.flatnonzero(full).astype(np.int64)),
        [10, 10],
    )
    model.graph.node.append(helper.make_node("Constant", [], ["k"], sparse_value=stored))
    model.graph.node.append(helper.make_node("MatMul", ["y", "k"], ["z"], name="last"))
    model.graph.output[0].name = "z"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    names = {layer.name: layer for layer in trp_onnx.inspect(tmp_path / "m.onnx").layers}
    assert names["last"].channels == (10, 10)


def test_a_declared_size_of_0(tmp_path: Path) -> None:
    model = small()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 0
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    code, message = cli("compress", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", "--macs", 0.6, "--align", 1)
    assert code in (0, 1) and "Traceback" not in message


@pytest.mark.parametrize("shape", [(0, 16, 3, 3), (16, 0, 3, 3)])
def test_a_weight_of_no_channels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    model = small()
    weight(model).CopyFrom(graphs.tensor("w2", np.zeros(shape, np.float32)))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    code, message = cli("inspect", tmp_path / "m.onnx")
    assert code in (0, 1) and "Traceback" not in message
    code, message = cli("compress", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", "--macs", 0.6)
    assert code in (1, 3) and len([line for line in message.splitlines() if "error" in line]) == 1, message


def test_paths_that_double_at_every_node(tmp_path: Path) -> None:
    """2^60 paths through 60 nodes, to a weight and from the input."""
    nodes = [helper.make_node("Max", [f"v{i}", f"v{i}"], [f"v{i + 1}"]) for i in range(60)]
    nodes += [helper.make_node("Max", [f"k{i}", f"k{i}"], [f"k{i + 1}"]) for i in range(60)]
    nodes += [
        helper.make_node("MatMul", ["v60", "w"], ["h"], name="fc"),
        helper.make_node("MatMul", ["h", "k60"], ["y"], name="behind"),
        helper.make_node("MatMul", ["v0", "v60"], ["z"], name="product"),
    ]
    w = {"w": graphs.weights(32, 32), "k0": graphs.weights(32, 32, seed=1)}
    info = [graphs.info(name, [32, 32]) for name in ("v0", "y", "z")]
    path = graphs.save(graphs.model(nodes, info[:1], info[1:], w), tmp_path / "m.onnx")
    for simplify in (True, False):
        layers = {layer.name: layer for layer in trp_onnx.inspect(path, simplify=simplify).layers}
        assert layers["fc"].full_rank == 32
        assert layers["behind"].full_rank == 32
        assert "neither operand is constant" in (layers["product"].reason or "")


def test_functions_that_are_many_but_not_too_many(tmp_path: Path) -> None:
    model = small()
    calling(model, *(function(f"F{i}", [f"F{i + 1}"], 2) for i in range(6)), function("F6", ["Relu"]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert len(trp_onnx.inspect(tmp_path / "m.onnx").layers) == 3


def after_norm(**statistics: np.ndarray) -> onnx.ModelProto:
    """conv -> BatchNormalization, some of its statistics other ones."""
    w = {"w": graphs.weights(8, 3, 3, 3), "b": np.ones(8, np.float32)}
    w |= dict.fromkeys(("scale", "shift", "mean", "var"), np.ones(8, np.float32)) | statistics
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["y"], name="norm"),
    ]
    return graphs.model(nodes, [graphs.info("x", [1, 3, 8, 8])], [graphs.info("y", [1, 8, 6, 6])], w)


@pytest.mark.parametrize("name", ["scale", "shift", "mean", "var", "b"])
@pytest.mark.parametrize("shape", [(9,), (2, 8), ()])
def test_statistics_of_other_channels_stay_where_they_are(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    path = graphs.save(after_norm(**{name: np.ones(shape, np.float32)}), tmp_path / "m.onnx")
    assert cli("inspect", path, "--no-simplify")[0] == 0  # it need not run for that
    code, message = cli("compress", path, "-o", tmp_path / "o.onnx", "--macs", 0.6)
    assert code == 1 and len(message.strip().splitlines()) == 1, message


def test_statistics_that_are_left_out(tmp_path: Path) -> None:
    model = after_norm()
    node(model, "norm").input[3] = ""
    assert cli("inspect", graphs.save(model, tmp_path / "m.onnx"), "--no-simplify")[0] == 0


@pytest.mark.parametrize("value", ["input", "output"])
def test_a_declared_shape_of_other_axes_than_the_kernel(tmp_path: Path, value: str) -> None:
    model = small()
    info = model.graph.input[0] if value == "input" else model.graph.value_info.add()
    info.CopyFrom(graphs.info("x" if value == "input" else "c1", [1, 3, 8] if value == "input" else [1, 16, 8]))
    found = trp_onnx.inspect(model, simplify=False)
    first = next(layer for layer in found.layers if layer.name == "conv1")
    assert first.macs is None and "2 axes of a kernel" in str(first.reason)


def test_an_attribute_that_no_operator_has(tmp_path: Path) -> None:
    model = small()
    attribute(model, "axis", "1")
    code, message = cli("compress", graphs.save(model, tmp_path / "m.onnx"), "--vbmf", "--no-simplify")
    assert code == 1 and "Unrecognized attribute: axis" in message


def test_a_weight_that_is_an_output_too(tmp_path: Path) -> None:
    """Behind a node, so that it is computed; `quantize` stores the layer's own copy and leaves the output."""
    w = {"w": graphs.weights(20, 16)}
    nodes = [helper.make_node("Transpose", ["w"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"], name="layer")]
    shown = [graphs.info("y", ["N", 20]), graphs.info("t", [16, 20])]
    path = graphs.save(graphs.model(nodes, [graphs.info("x", ["N", 16])], shown, w), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=graphs.rng().standard_normal((40, 16)).astype(np.float32))
    code, message = cli("quantize", path, "-o", tmp_path / "q.onnx", "--data", tmp_path / "d.npz", "--max-drop", 50)
    assert code == 0, message
    feeds = {"x": np.ones((2, 16), np.float32)}
    assert np.array_equal(graphs.run(tmp_path / "q.onnx", feeds)[1], graphs.run(path, feeds)[1])


def test_bodies_that_read_what_is_quantised(tmp_path: Path) -> None:
    """Nodes are put in order by what bodies read, too."""
    branch = helper.make_graph([helper.make_node("Neg", ["h"], ["n"])], "b", [], [graphs.info("n", None)])
    w = {"w": graphs.weights(16, 16), "v": graphs.weights(16, 10), "always": np.array(True)}
    nodes = [
        helper.make_node("If", ["always"], ["i"], name="if", then_branch=branch, else_branch=branch),
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("MatMul", ["i", "v"], ["y"], name="last"),
    ]
    model = graphs.model(nodes, [graphs.info("x", ["N", 16])], [graphs.info("y", ["N", 10])], w)
    path = graphs.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=graphs.rng().standard_normal((40, 16)).astype(np.float32))
    code, message = cli("quantize", path, "-o", tmp_path / "q.onnx", "--data", tmp_path / "d.npz", "--max-drop", 50)
    assert code == 0, message
    onnx.checker.check_model(str(tmp_path / "q.onnx"))
