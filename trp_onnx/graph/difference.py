"""How far two models are from each other, whose large weights are lent to the runtime and never copied."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.constants import let_go
from trp_onnx.graph.session import Arrays, relative_error, run_model

BIG_TENSOR = 1024
"""Bytes from which a tensor is a weight, not a shape or a scalar."""


def largest_difference(before: ir.Model, after: ir.Model, feeds: Mapping[str, np.ndarray]) -> float:
    """Largest relative error of an output, |a - b|_2 / |a|_2; inf where shapes or special values differ.

    Raises:
        ModelError: A model does not run on the feeds.
    """
    expected, actual = _outputs(before, feeds), _outputs(after, feeds)
    return max((relative_error(a, actual[name]) for name, a in expected.items()), default=0.0)


def _outputs(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> Arrays:
    skeleton = model.clone()
    weights = take_weights_out(skeleton)
    try:
        return run_model(ir.to_proto(skeleton), {**feeds, **{name: tensor.numpy() for name, tensor in weights.items()}})
    finally:
        for tensor in weights.values():
            let_go(tensor)


def take_weights_out(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Turn every large initializer into an input; returns the tensors by name."""
    weights: dict[str, ir.TensorProtocol] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes < BIG_TENSOR:
            continue
        weights[name] = tensor
        value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
        del model.graph.initializers[name]
        value.const_value = None
        model.graph.inputs.append(value)
    return weights
