"""Weights that stay where they are while a model runs: inputs of the session, and lent to it for each run.

A protobuf ends at 2 GB, and a session copies what it gets as initializers, `add_external_initializers` included; an
input it reads where it is. So a model whose weights are apart in files (see `model.to_proto`) is a protobuf of
kilobytes, and one in memory gives up its largest weights until the rest can be serialised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

_EXTERNAL = 1  # TensorProto.EXTERNAL

MOST = 2**31 - 2**26
"""Bytes of weights that a protobuf holds, with room for its graph."""


class LendingSession:
    """An InferenceSession that gets the weights with each run."""

    def __init__(self, session: Any, weights: Mapping[str, np.ndarray]) -> None:
        """The session has the weights among its inputs."""
        self._session, self._weights = session, weights

    def get_inputs(self) -> list[Any]:
        """Those that are to be fed."""
        return [value for value in self._session.get_inputs() if value.name not in self._weights]

    def get_outputs(self) -> list[Any]:
        """As the session has them."""
        return list(self._session.get_outputs())

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[Any]:
        """Run once."""
        return list(self._session.run(outputs, {**feeds, **self._weights}))


def take_out(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A copy of a model with weights among its inputs, and these; a model that has no such weights as it is.

    They are those that are apart, mapped, and the largest others where all of them are more than a protobuf holds.
    """
    import onnx

    graph = model.graph
    weights = dict(_mapped(model)) | {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in _too_many(model)}
    if not weights:
        return model, {}
    taken = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    taken.graph.name = graph.name
    for kind in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(taken.graph, kind).extend(getattr(graph, kind))
    taken.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name not in weights)
    given = {value.name for value in graph.input}
    taken.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in graph.initializer
        if tensor.name in weights and tensor.name not in given
    )
    return taken, weights


def _too_many(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The largest weights in memory, as many as are more than a protobuf holds."""
    held = [tensor for tensor in model.graph.initializer if not _apart(tensor)]
    sizes = {tensor.name: _bytes(tensor) for tensor in held}
    excess, found = sum(sizes.values()) - MOST, []
    for tensor in sorted(held, key=lambda tensor: -sizes[tensor.name]):
        if excess <= 0:
            break
        found.append(tensor)
        excess -= sizes[tensor.name]
    return found


def _mapped(model: onnx.ModelProto) -> Iterator[tuple[str, np.ndarray]]:
    """The weights of a model that are apart, mapped, with their names."""
    import onnx

    files: dict[str, np.ndarray] = {}
    for tensor in filter(_apart, model.graph.initializer):
        place = {entry.key: entry.value for entry in tensor.external_data}
        path, start = place["location"], int(place.get("offset", 0))
        if path not in files:
            files[path] = np.memmap(Path(path), np.uint8, "r")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        yield tensor.name, files[path][start : start + _bytes(tensor)].view(dtype).reshape(tensor.dims)


def _bytes(tensor: onnx.TensorProto) -> int:
    """What its elements take as an array."""
    import onnx

    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return int(math.prod(tensor.dims)) * int(dtype.itemsize)


def _apart(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == _EXTERNAL)
