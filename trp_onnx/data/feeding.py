"""Where data meets the model: samples of a data set, or arrays that a user gives, as the inputs of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from trp_onnx.data import Dataset, read_npz
from trp_onnx.errors import DataError
from trp_onnx.graph.session import Arrays
from trp_onnx.graph.sizes import channels_of, declared_sizes, describe_inputs, real_inputs
from trp_onnx.process.memory import check_room

_TYPES = {
    "tensor(float)": ir.DataType.FLOAT, "tensor(float16)": ir.DataType.FLOAT16, "tensor(double)": ir.DataType.DOUBLE,
    "tensor(int64)": ir.DataType.INT64, "tensor(int32)": ir.DataType.INT32, "tensor(int16)": ir.DataType.INT16,
    "tensor(int8)": ir.DataType.INT8, "tensor(uint8)": ir.DataType.UINT8, "tensor(uint16)": ir.DataType.UINT16,
    "tensor(uint32)": ir.DataType.UINT32, "tensor(uint64)": ir.DataType.UINT64, "tensor(bool)": ir.DataType.BOOL,
}  # fmt: skip


def bound(dataset: Dataset, model: ir.Model) -> Dataset:
    """A data set that knows which samples a model takes: arrays of exactly that shape go in as they are.

    Raises:
        DataError: The model has several inputs, or none.
    """
    value = only_input(model)
    return dataset.bound(like_of(model), whole=_is_whole(value))


def take(dataset: Dataset, model: ir.Model, indices: np.ndarray) -> Arrays:
    """Chosen samples, (b,), as the model takes them; a short batch is filled up.

    Raises:
        DataError: See `bound` and `as_feed`; or a sample cannot be read or holds NaN or infinity.
    """
    return as_feed(model, bound(dataset, model).take(indices)[0])


def only_input(model: ir.Model) -> ir.Value:
    """The one input that samples go into.

    Raises:
        DataError: There are several, or none.
    """
    inputs = real_inputs(model)
    if len(inputs) != 1:
        raise DataError(f"the model has {len(inputs)} inputs; only models with one can take such data")
    return inputs[0]


def like_of(model: ir.Model) -> tuple[int | None, ...] | None:
    """Shape of one sample, None where a size is free; None where nothing is declared, or of several inputs."""
    inputs = real_inputs(model)
    declared = declared_sizes(model)[inputs[0].name or ""] if len(inputs) == 1 else None
    if not declared:
        return None
    like = tuple(size if isinstance(size, int) else None for size in declared[1:])
    return (channels_of(inputs[0]), *like[1:]) if like and like[0] is None else like


def as_feed(model: ir.Model, x: np.ndarray) -> Arrays:
    """Samples in the type and size of the model's one input; a short batch is filled up.

    Raises:
        DataError: The model has several inputs, takes samples of another shape or type, or more of them than fit.
    """
    value = only_input(model)
    expected = [d if isinstance(d, int) else None for d in value.shape or ()]
    fits = value.shape is None or (
        len(expected) == x.ndim
        and all(want in (None, have) for want, have in zip(expected[1:], x.shape[1:], strict=True))
    )
    if not fits:
        want = "x".join("?" if d is None else str(d) for d in expected[1:])
        have = "x".join(map(str, x.shape[1:]))
        raise DataError(
            f"the model takes samples of {want or 'single numbers'} at input '{value.name}', the data gives "
            f"{have or 'single numbers'}: see --crop, --resize and --layout"
        )
    if expected and expected[0] is not None and len(x) < expected[0]:
        check_room(expected[0] * x[0].nbytes, f"a batch of {expected[0]} samples, as the model declares it,", DataError)
        x = np.concatenate([x, np.repeat(x[-1:], expected[0] - len(x), axis=0)])
    return {value.name or "": _as_type(x, value, "the data")}


def read_inputs(model: ir.Model, path: Path) -> Arrays:
    """What `--inputs` gives: one array for each input, in its type.

    Raises:
        DataError: The file cannot be read, or an array is missing, not known, empty, not finite, or of another shape or
            type than its input.
    """
    arrays = read_npz(path)
    inputs = {value.name or "": value for value in real_inputs(model)}
    for name in inputs:
        if name not in arrays:
            raise DataError(f"'{path}' has no array for input '{name}': {describe_inputs(model)}")
    for name in arrays:
        if name not in inputs:
            raise DataError(f"'{path}' has an array '{name}', but {describe_inputs(model)}")
    return {name: _given(model, value, arrays[name], path) for name, value in inputs.items()}


def interface_of(session: Any) -> ir.Model:
    """The inputs of an `.ort` file, which only the runtime reads, as a model that has nothing else.

    Raises:
        DataError: An input is no array of numbers.
    """
    inputs = []
    for given in session.get_inputs():
        if given.type not in _TYPES:
            raise DataError(f"input '{given.name}' is of type {given.type}: it takes no arrays of numbers")
        inputs.append(ir.Value(name=given.name, shape=ir.Shape(given.shape), type=ir.TensorType(_TYPES[given.type])))
    return ir.Model(ir.Graph(inputs, [], nodes=[], opset_imports={"": 17}), ir_version=8)


def _given(model: ir.Model, value: ir.Value, array: np.ndarray, path: Path) -> np.ndarray:
    declared = declared_sizes(model)[value.name or ""]
    what = f"'{path}', input '{value.name}'"
    if declared is not None:
        fits = len(declared) == array.ndim and all(
            not isinstance(want, int) or want == have for want, have in zip(declared, array.shape, strict=True)
        )
        if not fits:
            shape = ",".join(map(str, array.shape))
            raise DataError(f"'{path}' gives '{value.name}' the shape ({shape}), but {describe_inputs(model)}")
    if array.size == 0 and 0 not in (declared or ()):
        raise DataError(f"'{path}' holds no sample: '{value.name}' is of shape {list(array.shape)}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"'{path}' holds NaN or infinity in '{value.name}'")
    return _as_type(array, value, what)


def _as_type(x: np.ndarray, value: ir.Value, what: str) -> np.ndarray:
    """An array in the type of an input, where that loses nothing but float digits."""
    if value.dtype == ir.DataType.STRING:
        if x.dtype.kind not in "US":
            raise DataError(f"{what} has type {x.dtype}, the model takes strings at '{value.name}'")
        return x.astype(str).astype(object)
    kind = value.dtype or ir.DataType.FLOAT
    dtype = kind.numpy()
    if x.dtype.kind not in "uifb":
        raise DataError(f"{what} has type {x.dtype}, the model takes {dtype} at '{value.name}'")
    if not _is_whole(value):
        try:
            with np.errstate(over="raise"):
                return x.astype(dtype)
        except FloatingPointError as error:
            raise DataError(f"{what} has values that are too large for {dtype}, which the model takes") from error
    if x.dtype.kind == "f" and not np.array_equal(x, np.trunc(x)):
        raise DataError(
            f"{what} has fractions (type {x.dtype}), the model takes whole numbers ({dtype}) at '{value.name}'"
        )
    low, high = (0, 1) if kind == ir.DataType.BOOL else (kind.min, kind.max)
    if x.size and (x.min() < low or x.max() > high):
        raise DataError(f"{what} has values from {x.min()} to {x.max()}, the model takes {dtype} at '{value.name}'")
    return x.astype(dtype)


def _is_whole(value: ir.Value) -> bool:
    return value.dtype is not None and (value.dtype.is_integer() or value.dtype == ir.DataType.BOOL)
