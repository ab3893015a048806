"""Small valid models of many kinds, and the files that commands take beside them: what the campaign mutates."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.graphs import info, model, rng, tensor, weights
from tests.hard_cases import CASES

INT64, BOOL, HALF = TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT16


def net(opset: int = 17, dtype: type = np.float32, sizes: tuple[int | str, ...] = (12, 12)) -> onnx.ModelProto:
    """conv -> relu -> conv -> pool -> classifier."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    w = {"w1": weights(16, 3, 3, 3, seed=1), "w2": weights(16, 16, 3, 3, seed=3), "wf": weights(10, 16, seed=4)}
    w |= {"b1": weights(16, 1, seed=2)[:, 0], "bf": weights(10, 1, seed=5)[:, 0]}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "wf", "bf"], ["logits"], name="fc", transB=1),
    ]
    held = {name: array.astype(dtype) for name, array in w.items()}
    shown = [info("x", ["N", 3, *sizes], kind)], [info("logits", ["N", 10], kind)]
    return model(nodes, *shown, held, opset=opset, ir_version={7: 3, 9: 4}.get(opset, 8))


def separable() -> onnx.ModelProto:
    """Depthwise and pointwise convolutions with a shortcut and BatchNormalization, as on phones."""
    w = {"stem": weights(8, 3, 3, 3), "up": weights(24, 8, 1, 1), "deep": weights(24, 1, 3, 3)}
    w |= {"down": weights(8, 24, 1, 1), "one": np.ones(8, np.float32), "zero": np.zeros(8, np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["s"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["s", "up"], ["u"], name="expand"),
        helper.make_node("Clip", ["u", "low", "high"], ["c"]),
        helper.make_node("Conv", ["c", "deep"], ["d"], name="deep", group=24, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["d", "down"], ["e"], name="project"),
        helper.make_node("BatchNormalization", ["e", "one", "zero", "zero", "one"], ["n"]),
        helper.make_node("Add", ["n", "s"], ["y"]),
    ]
    w |= {"low": np.float32(0), "high": np.float32(6)}
    return model(nodes, [info("x", ["N", 3, 16, 16])], [info("y", ["N", 8, 8, 8])], w)


def recurrent(op: str, gates: int) -> onnx.ModelProto:
    """A recurrent layer between two products."""
    w = {"in": weights(12, 16), "w": weights(1, gates * 8, 16), "r": weights(1, gates * 8, 8), "out": weights(8, 6)}
    nodes = [
        helper.make_node("MatMul", ["x", "in"], ["h"], name="in"),
        helper.make_node(op, ["h", "w", "r"], ["s"], name="memory", hidden_size=8),
        helper.make_node("Squeeze", ["s", "axis"], ["t"]),
        helper.make_node("MatMul", ["t", "out"], ["y"], name="out"),
    ]
    w["axis"] = np.array([1])
    return model(nodes, [info("x", ["T", 2, 12])], [info("y", ["T", 2, 6])], w)


def attention() -> onnx.ModelProto:
    """Token numbers in, a product of two activations inside."""
    w = {"table": weights(30, 16), "q": weights(16, 16, seed=1), "k": weights(16, 16, seed=2), "o": weights(16, 16)}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["e"]),
        helper.make_node("MatMul", ["e", "q"], ["a"], name="query"),
        helper.make_node("MatMul", ["e", "k"], ["b"], name="key"),
        helper.make_node("Transpose", ["b"], ["bt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["a", "bt"], ["s"], name="scores"),
        helper.make_node("Cast", ["attention_mask"], ["m"], to=1),
        helper.make_node("Mul", ["s", "m"], ["sm"]),
        helper.make_node("Softmax", ["sm"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "e"], ["v"], name="mix"),
        helper.make_node("MatMul", ["v", "o"], ["y"], name="last"),
    ]
    inputs = [info("input_ids", ["batch", "length"], INT64), info("attention_mask", ["batch", 1, "length"], INT64)]
    return model(nodes, inputs, [info("y", ["batch", "length", 16])], w)


def ends_in(*nodes: onnx.NodeProto, output: onnx.ValueInfoProto, **held: np.ndarray) -> onnx.ModelProto:
    """Two products, then what is given, from `s`."""
    w = {"a": weights(20, 24), "b": weights(24, 10, seed=1), **held}
    first = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="hidden"),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("Gemm", ["t", "b"], ["s"], name="scores"),
    ]
    return model([*first, *nodes], [info("x", ["N", 20])], [output], w)


def arg_max() -> onnx.ModelProto:
    return ends_in(helper.make_node("ArgMax", ["s"], ["y"], axis=1), output=info("y", ["N", 1], INT64))


def top_k() -> onnx.ModelProto:
    built = ends_in(
        helper.make_node("TopK", ["s", "k"], ["v", "i"], axis=1), output=info("v", ["N", 3]), k=np.array([3])
    )
    built.graph.output.append(info("i", ["N", 3], INT64))
    return built


def non_zero() -> onnx.ModelProto:
    nodes = helper.make_node("Relu", ["s"], ["r"]), helper.make_node("NonZero", ["r"], ["y"])
    return ends_in(*nodes, output=info("y", [2, "found"], INT64))


def boxes() -> onnx.ModelProto:
    """A detector: as many boxes as are left."""
    held = {"boxes": np.float32([[[0, 0, 1, 1], [0, 0, 1, 0.9], [0, 1, 1, 2], [2, 2, 3, 3], [0, 0, 1, 1]]])}
    held |= {"shape": np.array([1, 2, 5]), "most": np.array([5]), "iou": np.float32([0.5]), "least": np.float32([0])}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["s"], name="scores"),
        helper.make_node("Reshape", ["s", "shape"], ["r"]),
        helper.make_node("NonMaxSuppression", ["boxes", "r", "most", "iou", "least"], ["y"]),
    ]
    held["w"] = weights(20, 10)
    return model(nodes, [info("x", [1, 20])], [info("y", ["found", 3], INT64)], held)


def unit_rows() -> onnx.ModelProto:
    return ends_in(helper.make_node("LpNormalization", ["s"], ["y"], axis=1, p=2), output=info("y", ["N", 10]))


def sparse() -> onnx.ModelProto:
    built = ends_in(helper.make_node("MatMul", ["s", "few"], ["y"], name="sparse"), output=info("y", ["N", 8]))
    values, places = tensor("few", np.float32([1, -2, 3])), tensor("places", np.array([1, 20, 79]))
    built.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [10, 8]))
    return built


def sequence() -> onnx.ModelProto:
    node = helper.make_node("SplitToSequence", ["s", "parts"], ["y"], axis=1)
    output = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    return ends_in(node, output=output, parts=np.array([4, 6]))


def several_inputs() -> onnx.ModelProto:
    """An image, a vector and a number that chooses."""
    w = {"w": weights(8, 3, 3, 3), "v": weights(10, 8, seed=1), "o": weights(8, 5, seed=2)}
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], name="conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["vector", "v"], ["g"], name="dense"),
        helper.make_node("Where", ["which", "f", "g"], ["h"]),
        helper.make_node("MatMul", ["h", "o"], ["y"], name="last"),
    ]
    inputs = [info("image", ["N", 3, 9, 9]), info("vector", ["N", 10]), info("which", ["N", 1], BOOL)]
    return model(nodes, inputs, [info("y", ["N", 5])], w)


def batch_in_reshape() -> onnx.ModelProto:
    w = {"a": weights(20, 24), "b": weights(24, 10, seed=1), "one": np.array([1, 24])}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="hidden"),
        helper.make_node("Reshape", ["h", "one"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"], name="last"),
    ]
    return model(nodes, [info("x", ["N", 20])], [info("y", ["N", 10])], w)


def quantised() -> onnx.ModelProto:
    """Quantised as onnxruntime writes it: QDQ around a product."""
    w = {"w": np.clip(np.round(weights(20, 16) * 100), -127, 127).astype(np.int8), "o": weights(16, 4)}
    w |= {"s": np.float32(0.02), "z": np.int8(0), "sx": np.float32(0.05), "zx": np.uint8(128)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "sx", "zx"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        helper.make_node("MatMul", ["d", "wd"], ["h"], name="int8"),
        helper.make_node("MatMul", ["h", "o"], ["y"], name="float"),
    ]
    return model(nodes, [info("x", ["N", 20])], [info("y", ["N", 4])], w)


def einsum() -> onnx.ModelProto:
    return ends_in(helper.make_node("Einsum", ["s", "e"], ["y"], equation="ij,jk->ik"), output=info("y", ["N", 6]),
                   e=weights(10, 6))  # fmt: skip


def narrow(dtype: type) -> onnx.ModelProto:
    """Products alone: those run in every float type."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Gemm", ["h", "b", "c"], ["y"], name="last"),
    ]
    held = {"a": weights(20, 24), "b": weights(24, 10), "c": weights(10, 1)[:, 0]}
    held = {name: array.astype(dtype) for name, array in held.items()}
    return model(nodes, [info("x", [4, 20], kind)], [info("y", [4, 10], kind)], held)


def transposed_net() -> onnx.ModelProto:
    w = {"e": weights(8, 1, 3, 3), "d": weights(8, 12, 4, 4), "o": weights(1, 12, 3, 3)}
    nodes = [
        helper.make_node("Conv", ["x", "e"], ["a"], name="encode", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("LeakyRelu", ["a"], ["b"], alpha=0.1),
        helper.make_node("ConvTranspose", ["b", "d"], ["c"], name="decode", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "o"], ["y"], name="out", pads=[1, 1, 1, 1]),
    ]
    return model(nodes, [info("x", [1, 1, "H", "W"])], [info("y", [1, 1, None, None])], w)


MODELS: dict[str, Callable[[], onnx.ModelProto]] = CASES | {
    "net": net,
    **{f"opset {version}": lambda version=version: net(version) for version in (7, 9, 11, 13, 18, 21, 23)},
    "half": lambda: net(dtype=np.float16),
    "any size": lambda: net(sizes=("H", "W")),
    "double": lambda: narrow(np.float64),
    "bfloat16": lambda: narrow(ml_dtypes.bfloat16),
    "lstm": lambda: recurrent("LSTM", 4),
    "gru": lambda: recurrent("GRU", 3),
    **{
        build.__name__: build
        for build in (
            separable, attention, arg_max, top_k, non_zero, boxes, unit_rows, sparse, sequence, several_inputs,
            batch_in_reshape, quantised, einsum, transposed_net,
        )
    },
}  # fmt: skip


def feeds(built: onnx.ModelProto, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """An array for each input, of its type; a free size is `batch` where it comes first, else 12."""
    stored = {held.name for held in built.graph.initializer}
    made, named = {}, dict[str, int]()
    for value in built.graph.input:
        if value.name in stored:
            continue
        sizes = value.type.tensor_type.shape.dim
        free = [12 if i else batch for i in range(len(sizes))]
        shape = [
            s.dim_value or named.setdefault(s.dim_param or f"{value.name} {i}", free[i]) for i, s in enumerate(sizes)
        ]
        kind = value.type.tensor_type.elem_type
        whole = kind in (INT64, TensorProto.INT32, BOOL)
        drawn = rng(seed).integers(0, 2, shape) if whole else rng(seed).standard_normal(shape)
        made[value.name] = drawn.astype(helper.tensor_dtype_to_np_dtype(kind))
    return made


def samples(built: onnx.ModelProto, count: int = 40) -> dict[str, np.ndarray]:
    """x and y for `--data`: of the first input, channels last where it is an image."""
    first = next(iter(feeds(built, count).values()))
    shape = first.shape if first.shape[:1] == (count,) else (count, *first.shape[1:])
    x = rng(1).standard_normal(shape).astype(first.dtype if first.dtype.kind in "fi" else np.float32)
    if x.ndim == 4:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    return {"x": x, "y": np.arange(count) % 4}
