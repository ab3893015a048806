"""Tensors as a file stores them: their lengths held against their shapes, and sparse ones made dense."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto

from trp_onnx.errors import ModelError
from trp_onnx.process.memory import check_room

_KEYS = {"location", "offset", "length", "checksum", "basepath"}  # the last one was of onnx's own tools
_LONGEST_NAME = 255  # bytes of a file's name on every common system

# Where the values of a type stand when they are not raw; int32_data holds all others.
_FIELDS: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.STRING: "string_data",
}
_COMPLEX = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}


def check_tensor(tensor: TensorProto) -> None:
    """Refuse a tensor whose data is not what its type and shape say; its data is not read.

    Raises:
        ModelError: Says which tensor and what.
    """
    name = f"tensor '{tensor.name}'"
    count = elements(tensor.dims, name)
    if tensor.data_type not in _TYPES:
        raise ModelError(f"{name} has type {tensor.data_type}, which ONNX does not have")
    text = tensor.data_type == TensorProto.STRING
    if tensor.data_location == TensorProto.EXTERNAL:
        if text:
            raise ModelError(f"{name} keeps strings in external data, which ONNX does not have")
        _check_location(tensor, name, (count * bits(tensor) + 7) // 8)
    elif tensor.HasField("raw_data") and not text:
        wanted, found = (count * bits(tensor) + 7) // 8, len(tensor.raw_data)
        if found != wanted:
            raise ModelError(f"{name} of shape {list(tensor.dims)} takes {wanted} bytes, but {found} are stored")
    else:
        found = len(getattr(tensor, _FIELDS.get(tensor.data_type, "int32_data")))
        fitting = {2 * count} if tensor.data_type in _COMPLEX else {count}
        if not text and bits(tensor) < 8:
            fitting.add((count * bits(tensor) + 7) // 8)  # packed
        if found not in fitting:
            raise ModelError(f"{name} of shape {list(tensor.dims)} takes {count} values, but {found} are stored")


def bits(tensor: TensorProto) -> int:
    """Of one element of a tensor of numbers."""
    return ir.DataType(tensor.data_type).bitwidth


def elements(dims: Sequence[int], what: str) -> int:
    """How many elements a shape has.

    Raises:
        ModelError: A size is negative, or the elements are more than any file holds.
    """
    if any(d < 0 for d in dims):
        raise ModelError(f"{what} has a negative size in its shape {list(dims)}")
    count = prod(dims)
    if count >= 2**48 or max(dims, default=0) >= 2**48:
        raise ModelError(f"{what} has the shape {list(dims)}, which no memory holds")
    return count


def _check_location(tensor: TensorProto, name: str, wanted: int) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    parts = location.replace("\\", "/").split("/")
    if not location or "\0" in location or max(len(part.encode()) for part in parts) > _LONGEST_NAME:
        raise ModelError(f"{name} keeps its data in a file named '{location}', which no file can be called")
    strange = entries.keys() - _KEYS
    if strange:
        raise ModelError(f"{name} says '{min(strange)}' of its external data, which ONNX does not know")
    for key in ("offset", "length"):
        value = entries.get(key, "0")
        if not (value.isascii() and value.isdecimal() and len(value) < 19):
            raise ModelError(f"{name} keeps its data in '{location}' at an {key} of '{value}', which is no number")
    if "length" in entries and int(entries["length"]) != wanted:
        raise ModelError(
            f"{name} of shape {list(tensor.dims)} takes {wanted} bytes, but {entries['length']} are in '{location}'"
        )


def dense(sparse: onnx.SparseTensorProto) -> TensorProto:
    """A sparse tensor with its zeros written out, under the same name.

    Raises:
        ModelError: Its parts do not fit each other, or it would not fit into memory.
    """
    values, indices, dims = sparse.values, sparse.indices, list(sparse.dims)
    name = f"sparse tensor '{values.name}'"
    count = elements(dims, name)
    for part in (values, indices):
        if part.data_location == TensorProto.EXTERNAL:
            raise ModelError(f"{name} keeps its data in another file: store it dense")
        check_tensor(part)
    if values.data_type == TensorProto.STRING or bits(values) < 8:
        raise ModelError(f"{name} is of a type that is not made dense: store it dense")
    check_room(count * bits(values) // 8, f"{name}, made dense,")
    entries, places = onnx.numpy_helper.to_array(values), onnx.numpy_helper.to_array(indices)
    shaped = places.shape in ((len(entries.reshape(-1)),), (len(entries.reshape(-1)), len(dims)))
    if entries.ndim != 1 or places.dtype != np.int64 or not shaped:
        raise ModelError(f"{name} has {entries.size} values, but indices of shape {list(places.shape)}")
    limits = np.array([count] if places.ndim == 1 else dims)
    if places.size and ((places < 0).any() or (places.reshape(len(places), -1) >= limits).any()):
        raise ModelError(f"{name} has an index outside its shape {dims}")
    filled = np.zeros(dims, entries.dtype)
    if places.ndim == 1:
        filled.reshape(-1)[places] = entries
    else:
        filled[tuple(places.T)] = entries
    return onnx.numpy_helper.from_array(filled, values.name)
