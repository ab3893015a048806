"""Multiply-accumulates of single nodes, from the shapes of what goes in and comes out.

Counted is every operator that sums products: convolutions, matrix products, recurrent cells, attention. What works
element by element (activations, additions, normalisation, pooling, resizing) counts 0, as is usual in the field.
The formulas follow the ONNX operator specification (`ai.onnx`, `ai.onnx.ml`) and ONNX Runtime's documentation of its
contrib operators (`com.microsoft`):

    Conv                  output entries x C / group x kernel
    ConvTranspose         input entries x N / group x kernel
    Gemm, MatMul          output entries x length of the summed axis; operands may both be activations
    Einsum                from left to right, two operands at a time: the product of all sizes that meet
    LSTM, GRU, RNN        steps x batch x (entries of W + entries of R): gates and directions stand in those
    attention             batch x queries x keys x (width of Q + width of V over all heads), masked or not, plus the
                          projections where the operator holds them
    LinearRegressor, ...  rows x coefficients

Quantised and fused forms cost what the plain ones do. An operator whose domain nobody here knows counts as unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import onnx_ir as ir

from trp_onnx.graph.shapes import Shape

_Sizes = tuple[int, ...]


class _UnknownSizeError(Exception):
    """A size that the formula needs is not known."""


class _Seen:
    """A node and the sizes around it, as the formulas read them."""

    def __init__(self, node: ir.Node, shapes: Mapping[ir.Value, Shape]) -> None:
        self.node, self._shapes = node, shapes

    def has(self, index: int) -> bool:
        """Whether the node has this input."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def input(self, index: int) -> _Sizes:
        """Sizes of an input."""
        return self._of(self.node.inputs[index] if index < len(self.node.inputs) else None)

    def output(self, index: int = 0) -> _Sizes:
        """Sizes of an output."""
        return self._of(self.node.outputs[index] if index < len(self.node.outputs) else None)

    def number(self, name: str, default: int) -> int:
        """An integer attribute."""
        return self.node.attributes.get_int(name, default)

    def _of(self, value: ir.Value | None) -> _Sizes:
        shape = None if value is None else shape_of(value, self._shapes)
        if shape is None or None in shape:
            raise _UnknownSizeError
        return tuple(d for d in shape if d is not None)


_Formula = Callable[[_Seen], int]


def shape_of(value: ir.Value, shapes: Mapping[ir.Value, Shape]) -> Shape | None:
    """The shape of a value: a constant's own, else the inferred one; None where its rank is not known."""
    if value.const_value is not None:
        return tuple(int(d) for d in value.const_value.shape.numpy())
    return shapes.get(value)


def multiplies(node: ir.Node) -> bool:
    """Whether a node sums products, or may: nobody knows what operators of foreign domains do."""
    if node.domain in _KNOWN_DOMAINS:
        return node.op_type in FORMULAS or node.op_type in _NO_FORMULA
    if node.domain == MICROSOFT:
        return node.op_type not in _ELEMENTWISE
    return node.domain != _TRAINING


def understood(node: ir.Node) -> bool:
    """Whether there is a formula for a node."""
    return node.domain in (*_KNOWN_DOMAINS, MICROSOFT) and _formula(node) is not None


def macs_of(node: ir.Node, shapes: Mapping[ir.Value, Shape]) -> int | None:
    """Multiply-accumulates of one run of a node that `multiplies`; None when a size or its formula is not known.

    Args:
        node: The node; bodies of If, Loop and Scan are not looked into.
        shapes: Of the values around it, from `infer_shapes`.
    """
    formula = _formula(node)
    if formula is None or node.domain not in (*_KNOWN_DOMAINS, MICROSOFT):
        return None
    try:
        return formula(_Seen(node, shapes))
    except (_UnknownSizeError, IndexError):  # fewer axes than the operator asks for: an invalid model
        return None


def trips_of(loop: ir.Node, shapes: Mapping[ir.Value, Shape]) -> int | None:
    """How often a Loop or Scan runs its body, or None when that depends on values or on sizes that are not known."""
    if loop.op_type == "Scan":
        return _scanned(loop, shapes)
    if loop.op_type != "Loop":
        return None
    most = _constant(loop.inputs[0])
    going_on = True if loop.inputs[1] is None else _constant(loop.inputs[1])
    (body,) = (a.as_graph() for a in loop.attributes.values() if a.type == ir.AttributeType.GRAPH)
    again: ir.Value | None = body.outputs[0]
    while again is not None and (node := again.producer()) is not None and node.op_type == "Identity":
        again = node.inputs[0]
    if most is None or not going_on or not (again is body.inputs[1] or _constant(again)):
        return None
    return max(0, most)


def _scanned(scan: ir.Node, shapes: Mapping[ir.Value, Shape]) -> int | None:
    count = scan.attributes.get_int("num_scan_inputs", 1)
    first = scan.inputs[-count] if 0 < count <= len(scan.inputs) else None
    shape = None if first is None else shape_of(first, shapes)
    axis = scan.attributes.get_ints("scan_input_axes", (0,))[0]
    return shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None


def _constant(value: ir.Value | None) -> int | None:
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return int(value.const_value.numpy().reshape(-1)[0])


def _formula(node: ir.Node) -> _Formula | None:
    if node.domain == MICROSOFT and node.op_type in _MICROSOFT_FORMULAS:
        return _MICROSOFT_FORMULAS[node.op_type]
    return FORMULAS.get(node.op_type)


def _conv(weight: int) -> _Formula:
    return lambda seen: prod(seen.output()) * prod(seen.input(weight)[1:])


def _conv_transpose(seen: _Seen) -> int:
    return prod(seen.input(0)) * prod(seen.input(1)[1:])


def _matmul(seen: _Seen) -> int:
    return prod(seen.output()) * seen.input(0)[-1]


def _gemm(seen: _Seen) -> int:
    return prod(seen.output()) * seen.input(0)[-2 if seen.number("transA", 0) else -1]


def _fused_matmul(seen: _Seen) -> int:
    """`transBatchA` puts A's first axis before its last one, `transA` turns the last two around."""
    a = seen.input(0)
    if not seen.number("transA", 0) or len(a) < 2:
        return prod(seen.output()) * a[-1]
    return prod(seen.output()) * (a[0] if seen.number("transBatchA", 0) else a[-2])


def _blockwise_matmul(seen: _Seen) -> int:
    """The weight is packed: its sizes stand in attributes."""
    return prod(seen.input(0)) * seen.number("N", 0)


def _recurrent(seen: _Seen) -> int:
    return prod(seen.input(0)[:2]) * (prod(seen.input(1)) + prod(seen.input(2)))


def _einsum(seen: _Seen) -> int:
    equation = seen.node.attributes.get_string("equation", "").replace(" ", "")
    left, arrow, kept = equation.partition("->")
    terms = [_labels(term, seen.input(i)) for i, term in enumerate(left.split(","))]
    sizes: dict[str, int] = {}
    for labels, shape in terms:
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    once = {label for label in sizes if sum(labels.count(label) for labels, _ in terms) == 1}
    # Without an arrow the labels that stand once are kept; those of an ellipsis always are.
    result = {label for label in sizes if (label in kept if arrow else label in once) or label.startswith("...")}
    total, met = 0, set(terms[0][0])
    for index, (labels, _) in enumerate(terms[1:], 1):
        met |= set(labels)
        total += prod(sizes[label] for label in met)
        needed = result.union(*(later for later, _ in terms[index + 1 :]))
        met &= needed
    return total


def _labels(term: str, shape: _Sizes) -> tuple[list[str], _Sizes]:
    """One label for each axis; the axes of an ellipsis are counted from its end."""
    before, dots, after = term.partition("...")
    hidden = len(shape) - len(before) - len(after)
    if hidden < 0 or (hidden and not dots):
        raise _UnknownSizeError
    return [*before, *(f"...{i}" for i in range(hidden, 0, -1)), *after], shape


def _attention(seen: _Seen) -> int:
    """ai.onnx: Q (B, S, H d) or (B, H, S, d), K and V likewise, the past (B, H, P, d)."""
    q, k, v = seen.input(0), seen.input(1), seen.input(2)
    past = seen.input(4)[2] if seen.has(4) else 0
    if len(q) == 4:
        batch, heads, queries, width = q
        return batch * heads * queries * (k[2] + past) * (width + v[3])
    heads, kv_heads = seen.number("q_num_heads", 1), seen.number("kv_num_heads", 1)
    return q[0] * q[1] * (k[1] + past) * (q[2] + v[2] // kv_heads * heads)


def _projecting_attention(past: int) -> _Formula:
    """com.microsoft: X (B, S, D), W (D, Q + K + V) with `qkv_hidden_sizes`, the past (2, B, H, P, d)."""

    def formula(seen: _Seen) -> int:
        batch, length, _ = seen.input(0)
        weight = seen.input(1)
        sizes = seen.node.attributes.get_ints("qkv_hidden_sizes", (weight[1] // 3,) * 3)
        keys = length + (seen.input(past)[3] if seen.has(past) else 0)
        return batch * length * (prod(weight) + keys * (sizes[0] + sizes[2]))

    return formula


def _multi_head_attention(seen: _Seen) -> int:
    """com.microsoft: Q (B, S, D), or Q, K and V packed (B, S, H, 3, d); K and V (B, L, D), (B, H, L, d) or packed."""
    query = seen.input(0)
    past = seen.input(6)[2] if seen.has(6) else 0
    if len(query) == 5:
        batch, length, heads, _, width = query
        return batch * length * (length + past) * heads * 2 * width
    batch, length, width = query
    key = seen.input(1)
    if len(key) == 5:  # K and V packed: (B, L, H, 2, d)
        return batch * length * (key[1] + past) * (width + key[2] * key[4])
    value = seen.input(2)
    keys, wide = (key[2], value[1] * value[3]) if len(key) == 4 else (key[1], value[2])
    return batch * length * (keys + past) * (width + wide)


def _grouped_query_attention(seen: _Seen) -> int:
    """com.microsoft: Q (B, S, H d), or packed (B, S, (H + 2 K) d); keys are those of `present_key` (B, K, T, d)."""
    batch, length, wide = seen.input(0)
    heads, kv_heads = seen.number("num_heads", 1), seen.number("kv_num_heads", 1)
    width = wide // heads if seen.has(1) else wide // (heads + 2 * kv_heads)
    return batch * length * seen.output(1)[2] * 2 * heads * width


def _linear_model(seen: _Seen) -> int:
    rows, *_ = seen.input(0) if len(seen.input(0)) > 1 else (1,)
    coefficients = seen.node.attributes.get_floats("coefficients", ())
    return rows * len(coefficients)


def _support_vectors(seen: _Seen) -> int:
    rows, *_ = seen.input(0) if len(seen.input(0)) > 1 else (1,)
    return rows * len(seen.node.attributes.get_floats("support_vectors", ()))


MICROSOFT = "com.microsoft"
_TRAINING = "ai.onnx.preview.training"
_KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview")

FORMULAS: dict[str, _Formula] = {
    "Conv": _conv(1),
    "ConvInteger": _conv(1),
    "DeformConv": _conv(1),
    "QLinearConv": _conv(3),
    "ConvTranspose": _conv_transpose,
    "CausalConvWithState": _conv(1),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Einsum": _einsum,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Attention": _attention,
    "LinearClassifier": _linear_model,
    "LinearRegressor": _linear_model,
    "SVMClassifier": _support_vectors,
    "SVMRegressor": _support_vectors,
}
"""By operator type; com.microsoft's operators of the same name share them."""

_MICROSOFT_FORMULAS: dict[str, _Formula] = {
    "Attention": _projecting_attention(4),
    "QAttention": _projecting_attention(8),
    "MultiHeadAttention": _multi_head_attention,
    "GroupQueryAttention": _grouped_query_attention,
    "DynamicQuantizeLSTM": _recurrent,
    "DynamicQuantizeMatMul": _matmul,
    "MatMulIntegerToFloat": _matmul,
    "MatMulInteger16": _matmul,
    "FusedMatMul": _fused_matmul,
    "TransposeMatMul": _fused_matmul,
    "FusedMatMulActivation": _fused_matmul,
    "FusedGemm": _gemm,
    "GemmFastGelu": _matmul,
    "GemmFloat8": _gemm,
    "QGemm": _gemm,
    "MatMulNBits": _blockwise_matmul,
    "MatMulBnb4": _blockwise_matmul,
    "MatMulFpQ4": _matmul,
    "FusedConv": _conv(1),
    "ConvTransposeWithDynamicPads": _conv_transpose,
    "NhwcConv": _conv(1),
    "NhwcFusedConv": _conv(1),
}

_NO_FORMULA = frozenset({"LinearAttention", "FlexAttention"})
"""They sum products, in an order that the specification leaves open."""

_ELEMENTWISE_NAMES = """
    BiasAdd BiasDropout BiasGelu BiasSoftmax BiasSplitGelu BifurcationDetector BitmaskBiasDropout BitmaskDropout
    BranchwiseRMSNorm ComplexMul ComplexMulConj CropAndResize DequantizeBFP DequantizeLinear DequantizeWithOrder
    DynamicTimeWarping EmbedLayerNormalization ExpandDims FastGelu GatedAdd GatedRMSNorm GatherBlockQuantized GatherND
    GatherPacked Gelu GemmaRotaryEmbedding GridSample GroupNorm Inverse Irfft IsAllFinite MRotaryEmbedding
    MaxpoolWithMask MulInteger MurmurHash3 NGramHashMapping NGramRepeatBlock NhwcMaxPool Pad QEmbedLayerNormalization
    QLinearAdd QLinearAveragePool QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearReduceMean
    QLinearSigmoid QLinearSoftmax QLinearWhere QOrderedGelu QOrderedLayerNormalization QuantizeBFP QuantizeLinear
    QuantizeWithOrder QuickGelu RMSNormRotary Range ReduceSumInteger RelativePositionBias RemovePadding RestorePadding
    Rfft RotaryEmbedding SampleOp ScaledSiLU SimplifiedLayerNormalization SkipGroupNorm SkipLayerNormalization
    SkipSimplifiedLayerNormalization SwiGLU Tokenizer TorchEmbedding Trilu UnfoldTensor Unique
"""
_ELEMENTWISE = frozenset(_ELEMENTWISE_NAMES.split())
"""com.microsoft's operators that sum no products; Fourier transforms and inverses count 0 as they do in ai.onnx."""
