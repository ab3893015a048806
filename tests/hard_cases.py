"""Graphs for each hard way in which a model can hold a weight. `CASES` maps a name to a builder of a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.graphs import info, model, tensor, weights

W4 = weights(32, 24, 3, 3)
MAP = [1, 24, 10, 10]
OUT = [1, 32, 8, 8]
W2 = weights(48, 40)


def _single(
    node: onnx.NodeProto, x: list[int], y: list[int] | None, arrays: dict[str, np.ndarray], **more: object
) -> onnx.ModelProto:
    return model([node], [info("x", x)], [info("y", y)], arrays, **more)


def conv_1d() -> onnx.ModelProto:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="layer", strides=[2])
    return _single(node, [1, 24, 33], [1, 32, 15], {"w": weights(32, 24, 5)})


def conv_3d() -> onnx.ModelProto:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="layer")
    return _single(node, [1, 12, 6, 6, 6], [1, 16, 4, 4, 4], {"w": weights(16, 12, 3, 3, 3)})


def conv_grouped() -> onnx.ModelProto:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="layer", group=2, pads=[0, 1, 2, 1])
    return _single(node, [1, 32, 8, 8], [1, 40, 8, 8], {"w": weights(40, 16, 3, 3)})


def conv_depthwise() -> onnx.ModelProto:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="layer", group=16, auto_pad="SAME_UPPER")
    return _single(node, [1, 16, 9, 9], [1, 16, 9, 9], {"w": weights(16, 1, 7, 7)})


def conv_transpose() -> onnx.ModelProto:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="layer", strides=[2, 2], output_padding=[1, 1])
    return _single(node, [1, 24, 7, 7], [1, 20, 16, 16], {"w": weights(24, 20, 3, 3)})


def gemm() -> onnx.ModelProto:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer", transA=1, alpha=0.5, beta=2.0)
    return _single(node, [48, 3], [3, 40], {"w": W2, "b": weights(40, 1)[:, 0]})


def matmul_left() -> onnx.ModelProto:
    return _single(helper.make_node("MatMul", ["w", "x"], ["y"], name="layer"), [2, 40, 5], [2, 48, 5], {"w": W2})


def matmul_batched() -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    return _single(node, [3, 5, 48], [3, 5, 40], {"w": weights(3, 48, 40)})


def constant_node() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=tensor("w", W4)),
        helper.make_node("Conv", ["x", "w"], ["y"], name="layer"),
    ]
    return model(nodes, [info("x", MAP)], [info("y", OUT)])


def initializer_that_is_an_input() -> onnx.ModelProto:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="layer")
    return model(
        [node], [info("x", MAP), info("w", list(W4.shape))], [info("y", OUT)], {"w": W4}, opset=8, ir_version=3
    )


def _behind(nodes: list[onnx.NodeProto], arrays: dict[str, np.ndarray]) -> onnx.ModelProto:
    layer = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    return model([*nodes, layer], [info("x", [4, 48])], [info("y", [4, 40])], arrays)


def behind_identity() -> onnx.ModelProto:
    return _behind([helper.make_node("Identity", ["w0"], ["w"])], {"w0": W2})


def behind_reshape() -> onnx.ModelProto:
    node = helper.make_node("Reshape", ["w0", "shape"], ["w"])
    return _behind([node], {"w0": W2.reshape(6, 8, 40), "shape": np.array([48, -1])})


def behind_transpose_and_cast() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Transpose", ["w0"], ["w1"], perm=[1, 0]),
        helper.make_node("Cast", ["w1"], ["w"], to=TensorProto.FLOAT),
    ]
    return _behind(nodes, {"w0": W2.T.astype(np.float16)})


def behind_bfloat16_cast() -> onnx.ModelProto:
    import ml_dtypes

    return _behind(
        [helper.make_node("Cast", ["w0"], ["w"], to=TensorProto.FLOAT)], {"w0": W2.astype(ml_dtypes.bfloat16)}
    )


def behind_dequantize() -> onnx.ModelProto:
    quantised = np.clip(np.round(W2 * 200), -127, 127).astype(np.int8)
    node = helper.make_node("DequantizeLinear", ["w0", "scale", "zero"], ["w"])
    return _behind([node], {"w0": quantised, "scale": np.float32(1 / 200), "zero": np.int8(0)})


def shared_weight() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="layer", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["y"], name="again", pads=[1, 1, 1, 1], strides=[2, 2]),
    ]
    return model(nodes, [info("x", [1, 24, 10, 10])], [info("y", [1, 24, 5, 5])], {"w": weights(24, 24, 3, 3)})


def if_body() -> onnx.ModelProto:
    def branch(name: str, seed: int) -> onnx.GraphProto:
        node = helper.make_node("Conv", ["x", "w"], ["z"], name=name)
        array = tensor("w", weights(32, 24, 3, 3, seed=seed))
        return helper.make_graph([node], name, [], [info("z", OUT)], [array])

    node = helper.make_node(
        "If", ["flag"], ["y"], name="choose", then_branch=branch("layer", 0), else_branch=branch("other", 1)
    )
    return model([node], [info("x", MAP), info("flag", [], TensorProto.BOOL)], [info("y", OUT)])


def loop_body() -> onnx.ModelProto:
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["next"], name="layer"),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("state", [4, 40])],
        [info("go_on", [], TensorProto.BOOL), info("next", [4, 40])],
        [tensor("w", weights(40, 40))],
    )
    node = helper.make_node("Loop", ["count", "", "x"], ["y"], name="repeat", body=body)
    return model([node], [info("x", [4, 40])], [info("y", [4, 40])], {"count": np.array(3)})


def scan_body() -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node("MatMul", ["row", "w"], ["out"], name="layer")],
        "body", [info("row", [1, 48])], [info("out", [1, 40])],
    )  # fmt: skip
    node = helper.make_node("Scan", ["x"], ["y"], name="rows", body=body, num_scan_inputs=1)
    return model([node], [info("x", [5, 1, 48])], [info("y", [5, 1, 40])], {"w": W2})


def local_function() -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function(
        "own", "Block", ["a", "weight"], ["b"],
        [helper.make_node("Conv", ["a", "weight"], ["c"], name="layer"), helper.make_node("Relu", ["c"], ["b"])],
        opsets,
    )  # fmt: skip
    node = helper.make_node("Block", ["x", "w"], ["y"], name="block", domain="own")
    built = model([node], [info("x", MAP)], [info("y", OUT)], {"w": W4})
    built.functions.append(function)
    built.opset_import.append(helper.make_opsetid("own", 1))
    return built


def float16() -> onnx.ModelProto:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="layer")
    half = TensorProto.FLOAT16
    return model([node], [info("x", MAP, half)], [info("y", OUT, half)], {"w": W4.astype(np.float16)})


def batch_norm() -> onnx.ModelProto:
    positive = np.abs(weights(32, 1, seed=7)[:, 0]) + 0.5
    arrays = {"w": W4, "scale": positive, "shift": positive, "mean": positive, "var": positive}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="layer"),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["y"], name="norm"),
    ]
    return model(nodes, [info("x", MAP)], [info("y", OUT)], arrays)


def batch_norm_after_gemm() -> onnx.ModelProto:
    positive = np.abs(weights(40, 1, seed=7)[:, 0]) + 0.5
    arrays = {"w": W2, "b": positive, "scale": positive, "shift": positive, "mean": positive, "var": positive}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["c"], name="layer", beta=0.5, alpha=2.0),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["y"], name="norm"),
    ]
    return model(nodes, [info("x", [3, 48])], [info("y", [3, 40])], arrays)


def batch_norm_after_grouped_transpose() -> onnx.ModelProto:
    positive = np.abs(weights(24, 1, seed=7)[:, 0]) + 0.5
    arrays = {"w": weights(32, 12, 3, 3), "scale": positive, "shift": positive, "mean": positive, "var": positive}
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["c"], name="layer", group=2, strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["y"], name="norm"),
    ]
    return model(nodes, [info("x", [1, 32, 6, 6])], [info("y", [1, 24, 13, 13])], arrays)


CASES: dict[str, Callable[[], onnx.ModelProto]] = {
    build.__name__: build
    for build in (
        conv_1d, conv_3d, conv_grouped, conv_depthwise, conv_transpose, gemm, matmul_left, matmul_batched,
        constant_node, initializer_that_is_an_input, behind_identity, behind_reshape, behind_transpose_and_cast,
        behind_bfloat16_cast, behind_dequantize, shared_weight, if_body, loop_body, scan_body, local_function,
        float16, batch_norm, batch_norm_after_gemm, batch_norm_after_grouped_transpose,
    )
}  # fmt: skip
