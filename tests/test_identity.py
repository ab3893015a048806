"""At full rank every scheme is the identity; at rank r the weight error is the tail of the spectrum."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

import trp_onnx
from tests import graphs
from tests.easy import compress
from trp_onnx.lowrank.schemes import SCHEMES, Geometry

SLOW = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5, np.float16: 2e-2}
ONNX_TYPE = {
    np.float64: TensorProto.DOUBLE,
    np.float32: TensorProto.FLOAT,
    np.float16: TensorProto.FLOAT16,
}


def full_rank(scheme: str, n: int, c: int, kernel: tuple[int, ...], groups: int = 1) -> tuple[int, ...]:
    return SCHEMES[scheme].full_rank(Geometry(groups, n, c, kernel))


def compress_at(path: Path, scheme: str, rank: tuple[int, ...], **options: object) -> tuple[Path, trp_onnx.Report]:
    out = path.with_name("out.onnx")
    rule = trp_onnx.LayerRule("layer", scheme=scheme, rank=rank)
    report = compress(path, out, config=[rule], align=1, simplify=False, **options)
    return out, report


def check_identity(path: Path, scheme: str, rank: tuple[int, ...], tolerance: float) -> None:
    out, report = compress_at(path, scheme, rank)
    assert report.outputs[0].relative_error <= tolerance
    parts = SCHEMES[scheme].parts
    names = [node.name for node in graphs.nodes_of(out)]
    assert [f"layer/{part}" for part in parts] == [name for name in names if name.startswith("layer")]


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, object]:
    dims = draw(st.integers(1, 3))
    small = 3 if dims == 3 else 5

    def per_axis(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    groups = draw(st.sampled_from([1, 1, 2, 3]))
    transposed = draw(st.booleans())
    stride = per_axis(1, 3)
    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    # ONNX Runtime refuses dilation under SAME padding.
    dilation = per_axis(1, 1 if auto_pad.startswith("SAME") else 2)
    geometry: dict[str, object] = {
        "transposed": transposed,
        "dims": dims,
        "groups": groups,
        "c": draw(st.integers(1, 4)),
        "n": draw(st.integers(1, 4)),
        "kernel": per_axis(1, small),
        "strides": stride,
        "dilations": dilation,
        "bias": draw(st.booleans()),
        "dtype": draw(st.sampled_from([np.float32, np.float32, np.float16])),
        "size": tuple(draw(st.integers(9, 12)) for _ in range(dims)),
        "auto_pad": auto_pad,
        "pads": per_axis(0, 2) + per_axis(0, 2),
        "batch": draw(st.integers(1, 2)),
        "output_padding": tuple(draw(st.integers(0, s - 1)) for s in stride) if transposed else None,
        "seed": draw(st.integers(0, 1000)),
    }
    return geometry


def conv_model(g: dict[str, object], path: Path) -> Path:
    groups, c, n, kernel, dtype = g["groups"], g["c"], g["n"], g["kernel"], g["dtype"]
    transposed = g["transposed"]
    shape = (groups * c, n, *kernel) if transposed else (groups * n, c, *kernel)
    generator = graphs.rng(g["seed"])
    arrays = {"w": (generator.standard_normal(shape) / np.sqrt(c * np.prod(kernel))).astype(dtype)}
    if g["bias"]:
        arrays["b"] = generator.standard_normal(groups * n).astype(dtype)
    attributes = {"strides": g["strides"], "dilations": g["dilations"], "group": groups, "kernel_shape": kernel}
    if g["auto_pad"] == "NOTSET":
        pads = g["pads"]
        if transposed:  # a padding that eats the whole output is no valid model
            pads = tuple(min(p, (k - 1) * d // 2) for p, k, d in zip(pads, kernel * 2, g["dilations"] * 2, strict=True))
        attributes["pads"] = pads
    else:
        attributes["auto_pad"] = g["auto_pad"]
    if g["output_padding"] and g["auto_pad"] == "NOTSET":
        attributes["output_padding"] = g["output_padding"]
    node = helper.make_node(
        "ConvTranspose" if transposed else "Conv", ["x", *arrays], ["y"], name="layer", **attributes
    )
    kind = ONNX_TYPE[dtype]
    x = graphs.info("x", [g["batch"], groups * c, *g["size"]], kind)
    y = graphs.info("y", [None] * (len(kernel) + 2), kind)
    return graphs.save(graphs.model([node], [x], [y], arrays), path)


@SLOW
@given(convolutions())
@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_full_rank_convolution_is_the_identity(tmp_path: Path, scheme: str, g: dict[str, object]) -> None:
    if not SCHEMES[scheme].fits(g["kernel"]):
        g["kernel"] = tuple(1 if scheme == "svd" else max(2, k) for k in g["kernel"])
        if not SCHEMES[scheme].fits(g["kernel"]):  # spatial on a 1-d kernel
            g |= {key: (*g[key], *g[key]) for key in ("kernel", "strides", "dilations", "size")}
            g["pads"] = (g["pads"][0], 1, g["pads"][1], 0)
            g["output_padding"] = g["output_padding"] and g["output_padding"] * 2
    path = conv_model(g, tmp_path / "m.onnx")
    try:
        graphs.run(path, _ones(path))
    except ort_errors.Fail:
        reject()  # not every drawn geometry is a model; the dense one decides
    rank = full_rank(scheme, g["n"], g["c"], g["kernel"], g["groups"])
    check_identity(path, scheme, rank, TOLERANCE[g["dtype"]])


@pytest.mark.parametrize("scheme", ["spatial", "spatial-mirror", "channel", "channel-mirror", "tucker2"])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_full_rank_float64_convolution_is_the_identity(tmp_path: Path, scheme: str, op: str) -> None:
    # The CPU provider has no such kernel: this runs in onnx's reference implementation.
    node = helper.make_node(op, ["x", "w"], ["y"], name="layer", strides=[2, 1], pads=[1, 0, 0, 1])
    kind = TensorProto.DOUBLE
    x, y = graphs.info("x", [1, 4, 7, 6], kind), graphs.info("y", [None] * 4, kind)
    path = graphs.save(
        graphs.model([node], [x], [y], {"w": graphs.weights(4, 4, 3, 3, dtype=np.float64)}), tmp_path / "m.onnx"
    )
    check_identity(path, scheme, full_rank(scheme, 4, 4, (3, 3)), 1e-12)


def _ones(path: Path) -> dict[str, np.ndarray]:
    import onnx

    value = onnx.load(path).graph.input[0]
    shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
    return {"x": np.ones(shape, helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))}


@SLOW
@given(
    m=st.integers(1, 5), c=st.integers(2, 9), n=st.integers(2, 9),
    trans_a=st.booleans(), trans_b=st.booleans(), left=st.booleans(), bias=st.booleans(),
    alpha=st.sampled_from([1.0, 0.5, -2.0]), beta=st.sampled_from([1.0, 0.25]),
    opset=st.sampled_from([7, 9, 13, 17]), dtype=st.sampled_from([np.float32, np.float64]),
)  # fmt: skip
def test_full_rank_gemm_is_the_identity(
    tmp_path: Path, m: int, c: int, n: int, trans_a: bool, trans_b: bool, left: bool, bias: bool,
    alpha: float, beta: float, opset: int, dtype: type,
) -> None:  # fmt: skip
    rows, cols = (n, m) if left else (m, n)
    a = (c, rows) if trans_a else (rows, c)
    b = (cols, c) if trans_b else (c, cols)
    weight_shape, input_shape = (a, b) if left else (b, a)
    arrays = {"w": graphs.weights(*weight_shape, dtype=dtype)}
    names = ["w", "x"] if left else ["x", "w"]
    if bias or opset < 11:
        arrays["bias"] = graphs.weights(1, cols, seed=3, dtype=dtype)
        names.append("bias")
    node = helper.make_node(
        "Gemm", names, ["y"], name="layer", transA=int(trans_a), transB=int(trans_b), alpha=alpha, beta=beta
    )
    kind = ONNX_TYPE[dtype]
    built = graphs.model(
        [node], [graphs.info("x", list(input_shape), kind)], [graphs.info("y", [rows, cols], kind)], arrays, opset=opset
    )
    path = graphs.save(built, tmp_path / "m.onnx")
    check_identity(path, "svd", (min(n, c),), TOLERANCE[dtype])


@SLOW
@given(
    batch=st.lists(st.integers(1, 3), max_size=2), extra=st.lists(st.integers(1, 3), max_size=1),
    m=st.integers(1, 4), c=st.integers(2, 7), n=st.integers(2, 7), left=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)  # fmt: skip
def test_full_rank_matmul_is_the_identity(
    tmp_path: Path, batch: list[int], extra: list[int], m: int, c: int, n: int, left: bool, dtype: type
) -> None:
    weight = graphs.weights(*batch, *((n, c) if left else (c, n)), dtype=dtype)
    shape = [*extra, *batch, *((c, m) if left else (m, c))]
    node = helper.make_node("MatMul", ["w", "x"] if left else ["x", "w"], ["y"], name="layer")
    kind = ONNX_TYPE[dtype]
    built = graphs.model([node], [graphs.info("x", shape, kind)], [graphs.info("y", None, kind)], {"w": weight})
    path = graphs.save(built, tmp_path / "m.onnx")
    check_identity(path, "svd", (min(n, c),), TOLERANCE[dtype])


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_bfloat16_layers_are_factorised_in_their_own_type(tmp_path: Path, op: str) -> None:
    weight = graphs.weights(12, 8).astype(ml_dtypes.bfloat16)
    node = helper.make_node(op, ["x", "w"], ["y"], name="layer")
    kind = TensorProto.BFLOAT16
    built = graphs.model([node], [graphs.info("x", [4, 12], kind)], [graphs.info("y", [4, 8], kind)], {"w": weight})
    path = graphs.save(built, tmp_path / "m.onnx")
    out, report = compress_at(path, "svd", (8,))
    assert report.outputs[0].relative_error < 0.05
    assert {array.dtype for array in graphs.initializers(out).values()} == {np.dtype(ml_dtypes.bfloat16)}


@pytest.mark.parametrize("upper", [True, False])
def test_transposed_convolution_with_output_shape(tmp_path: Path, upper: bool) -> None:
    node = helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], name="layer", strides=[2, 3], output_shape=[15, 22],
        auto_pad="SAME_UPPER" if upper else "SAME_LOWER",
    )  # fmt: skip
    built = graphs.model(
        [node], [graphs.info("x", [1, 4, 8, 8])], [graphs.info("y", [1, 5, 15, 22])], {"w": graphs.weights(4, 5, 4, 3)}
    )
    path = graphs.save(built, tmp_path / "m.onnx")
    for scheme in ("spatial", "channel-mirror", "tucker2"):
        check_identity(path, scheme, full_rank(scheme, 5, 4, (4, 3)), 1e-5)


def dense_of(factors: tuple[np.ndarray, ...]) -> np.ndarray:
    """Multiply a chain of factors out again."""
    dense = factors[0]
    for factor in factors[1:]:
        dense = np.einsum("gnr...,grc...->gnc...", factor, dense)
    return dense


def unfolding(scheme: str, w: np.ndarray) -> np.ndarray:
    """The matrices as the papers print them, written down independently of the product."""
    n, c, kh, kw = w.shape
    return {
        "spatial": w.transpose(1, 2, 0, 3).reshape(c * kh, n * kw),
        "spatial-mirror": w.transpose(1, 3, 0, 2).reshape(c * kw, n * kh),
        "channel": w.reshape(n, c * kh * kw),
        "channel-mirror": w.transpose(1, 0, 2, 3).reshape(c, n * kh * kw),
    }[scheme]


@SLOW
@given(n=st.integers(1, 8), c=st.integers(1, 8), kh=st.integers(2, 4), kw=st.integers(2, 4), seed=st.integers(0, 99))
@pytest.mark.parametrize("scheme", ["spatial", "spatial-mirror", "channel", "channel-mirror"])
def test_the_error_at_every_rank_is_the_tail_of_the_spectrum(
    scheme: str, n: int, c: int, kh: int, kw: int, seed: int
) -> None:
    w = graphs.rng(seed).standard_normal((n, c, kh, kw))
    s = np.linalg.svd(unfolding(scheme, w), compute_uv=False)
    weight = w[None]
    claimed = SCHEMES[scheme].errors(weight)
    for rank in range(1, len(s) + 1):
        tail = np.sqrt(np.sum(s[rank:] ** 2))
        measured = np.linalg.norm(dense_of(SCHEMES[scheme].split(weight, (rank,))) - weight)
        assert abs(measured - tail) <= 1e-6 * np.linalg.norm(w)
        assert abs(np.sqrt(claimed[rank]) * np.linalg.norm(w) - tail) <= 1e-6 * np.linalg.norm(w)


@SLOW
@given(n=st.integers(1, 7), c=st.integers(1, 7), k=st.integers(2, 4), groups=st.integers(1, 3), seed=st.integers(0, 99))
def test_tucker_errors_are_those_of_its_factors_at_every_pair_of_ranks(
    n: int, c: int, k: int, groups: int, seed: int
) -> None:
    weight = graphs.rng(seed).standard_normal((groups, n, c, k, k))
    scheme = SCHEMES["tucker2"]
    claimed = scheme.errors(weight)
    by_input, by_output = scheme.unfold(weight)
    tails = [
        np.append(np.cumsum((np.linalg.svd(m, compute_uv=False) ** 2).sum(0)[::-1])[::-1], 0)
        for m in (by_input, by_output)
    ]
    total = np.sum(weight**2)
    for rank in np.ndindex(*claimed.shape):
        if 0 in rank:
            continue
        measured = np.sum((dense_of(scheme.split(weight, rank)) - weight) ** 2)
        assert abs(measured - claimed[rank] * total) <= 1e-9 * total
        assert measured <= tails[0][rank[0]] + tails[1][rank[1]] + 1e-9 * total  # the HOSVD bound


@pytest.mark.parametrize("scheme", ["spatial", "channel", "tucker2"])
def test_the_reported_weight_error_is_that_of_the_written_file(tmp_path: Path, scheme: str) -> None:
    path = conv_model(
        {"transposed": False, "groups": 1, "c": 6, "n": 8, "kernel": (3, 3), "strides": (1, 1), "dilations": (1, 1),
         "bias": True, "dtype": np.float32, "size": (9, 9), "auto_pad": "NOTSET", "pads": (1, 1, 1, 1), "batch": 1,
         "output_padding": None, "seed": 0},
        tmp_path / "m.onnx",
    )  # fmt: skip
    rank = (4, 5) if scheme == "tucker2" else (5,)
    out, report = compress_at(path, scheme, rank)
    stored = graphs.initializers(out)
    factors = tuple(stored[f"layer/{part}.weight"][None].astype(np.float64) for part in SCHEMES[scheme].parts)
    dense = graphs.initializers(path)["w"][None]
    assert report.layers[0].relative_error == pytest.approx(graphs.distance(dense, dense_of(factors)), abs=1e-6)
    assert report.layers[0].macs_after == sum(f.size * 81 for f in factors)


@pytest.mark.parametrize("rows,cols", [(64, 576), (300, 40), (128, 128)])
def test_gram_spectra_equal_those_of_a_full_svd(rows: int, cols: int) -> None:
    from trp_onnx.lowrank import linalg

    matrix = graphs.rng(1).standard_normal((rows, cols)) @ np.diag(0.9 ** np.arange(cols))
    s = np.linalg.svd(matrix, compute_uv=False)
    assert np.allclose(np.sqrt(linalg.tail_energy(linalg.singular_values(matrix))[:-1]),
                       np.sqrt(np.cumsum(s[::-1] ** 2)[::-1]), atol=1e-6 * np.linalg.norm(s))  # fmt: skip
    left, right = linalg.factor_pair(matrix, 10)
    assert np.linalg.norm(matrix - left @ right) == pytest.approx(np.linalg.norm(s[10:]), rel=1e-9)
    assert np.allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1))  # sigma is balanced
