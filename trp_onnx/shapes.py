"""Shapes of every value of a model, for counting MACs.

onnx's own shape inference, run on a copy whose symbolic batch is 1 and whose other dynamic sizes the
caller gives. A size that stays unknown is None; nobody guesses.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from trp_onnx.sizes import Shape, input_dims, real_inputs

__all__ = ["Shape", "infer_shapes"]


def infer_shapes(model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None = None) -> dict[ir.Value, Shape]:
    """Inferred shapes of the values of a model, subgraphs included; the model itself is not changed.

    Raises:
        ModelError: See `input_dims`.
    """
    from onnx_ir.passes.common import ShapeInferencePass

    dims = input_dims(model, input_shapes)
    copy = model.clone()
    symbols: dict[str, int] = {}
    for value in real_inputs(copy):
        chosen = dims[value.name or ""]
        if chosen is None:
            continue
        if value.shape is not None:
            for old, new in zip(value.shape, chosen, strict=True):
                if isinstance(old, ir.SymbolicDim) and old.value is not None and new is not None:
                    symbols[str(old.value)] = new
        value.shape = ir.Shape(chosen)
    # Annotations of the exporter may repeat the symbols; inference would keep them as they are.
    for value in _values(copy):
        if value.shape is not None and not value.shape.frozen and not value.is_initializer():
            value.shape = ir.Shape(
                symbols.get(str(d.value), d) if isinstance(d, ir.SymbolicDim) else d for d in value.shape
            )
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(copy)
    return {
        original: tuple(d if isinstance(d, int) else None for d in inferred.shape)
        for original, inferred in zip(_values(model), _values(copy), strict=True)
        if inferred.shape is not None
    }


def _values(model: ir.Model) -> list[ir.Value]:
    """All values in a fixed order, the same for a model and its clone."""
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    inner = [
        attribute.as_graph()
        for node in nodes
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH
    ]
    return list(
        itertools.chain(
            model.graph.inputs,
            model.graph.initializers.values(),
            *(graph.inputs for graph in inner),
            *(graph.initializers.values() for graph in inner),
            *(node.outputs for node in nodes),
        )
    )
