"""Weights that stay in their files while a model runs: inputs of the session, mapped, and lent to it for each run.

A protobuf ends at 2 GB, and a session copies what it gets as initializers, `add_external_initializers` included; an
input it reads where it is. So a model whose weights are apart (see `model.to_proto`) is a protobuf of kilobytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

_EXTERNAL = 1  # TensorProto.EXTERNAL


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
    """A copy of a model with the weights that are apart among its inputs, and these, mapped; one without as it is."""
    import onnx

    if not any(map(_apart, model.graph.initializer)):
        return model, {}
    taken = onnx.ModelProto()
    taken.CopyFrom(model)
    kept = [tensor for tensor in model.graph.initializer if not _apart(tensor)]
    del taken.graph.initializer[:]
    taken.graph.initializer.extend(kept)
    weights = dict(_mapped(model))
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            taken.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return taken, weights


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
        size = int(np.prod(tensor.dims, dtype=np.int64)) * dtype.itemsize
        yield tensor.name, files[path][start : start + size].view(dtype).reshape(tensor.dims)


def _apart(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == _EXTERNAL)
