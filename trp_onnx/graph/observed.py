"""Shapes that inference leaves open (a Reshape by computed sizes, an operator it does not know), read off a run.

A Shape node behind each such value lets sizes come out and no tensors; weights are lent, not copied.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from trp_onnx.errors import ModelError
from trp_onnx.graph.constants import let_go
from trp_onnx.graph.roles import bodies_of
from trp_onnx.graph.session import feeds_for, run_model
from trp_onnx.graph.shapes import Shape, infer_shapes, skeleton, weights_of
from trp_onnx.graph.sizes import input_dims

logger = logging.getLogger(__name__)


def observe_shapes(
    model: ir.Model,
    input_shapes: Mapping[str, Sequence[int]] | None,
    shapes: Mapping[ir.Value, Shape],
    wanted: Iterable[ir.Value],
) -> dict[ir.Value, Shape]:
    """Inferred shapes, completed by those of a run on generated inputs.

    Values of subgraphs are no outputs of any run: they are inferred again, from what surrounds them.

    Args:
        model: The model of `infer_shapes`.
        input_shapes: Likewise.
        shapes: What came out of it.
        wanted: Values whose shapes are asked for; known ones among them cost nothing.

    Returns:
        What is known now: `shapes` alone where an input's size is open or the model does not run.
    """
    known = dict(shapes)
    open_ = {value for value in wanted if None in known.get(value, (None,))}
    sized = all(dims is not None and None not in dims for dims in input_dims(model, input_shapes).values())
    if not open_ or not sized:
        return known
    outer = {value: None for node in model.graph for value in node.outputs if value.name}
    inner = any(value not in outer for value in open_)
    if inner:
        open_ |= set(_around_subgraphs(model.graph))
    asked = [value for value in outer if value in open_ and None in known.get(value, (None,))]
    try:
        seen = _run(model, input_shapes, asked) if asked else {}
    except ModelError as error:
        logger.info("no shapes from a run: %s", error)
        return known
    if inner and seen:
        return infer_shapes(model, input_shapes, seen)
    return known | seen


def _around_subgraphs(graph: ir.Graph) -> Iterator[ir.Value]:
    """Values that subgraphs read: inputs of the nodes that hold them, and what their own nodes take from outside."""
    for node in graph:
        inner = [node] if bodies_of(node) else []
        while inner:
            user = inner.pop()
            yield from (value for value in user.inputs if value is not None)
            inner += [below for body in bodies_of(user) for below in body]


def _run(
    model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None, asked: Sequence[ir.Value]
) -> dict[ir.Value, Shape]:
    """The shapes that values have in a run.

    Raises:
        ModelError: The model does not run.
    """
    import onnx

    feeds = feeds_for(model, input_shapes)
    proto = skeleton(model, {name: array.shape for name, array in feeds.items()}, {})
    weights = {value.name or "": value.const_value for value in weights_of(model)}
    del proto.graph.output[:]
    names = [f"shape {index} of trp-onnx" for index in range(len(asked))]
    for name, value in zip(names, asked, strict=True):
        proto.graph.node.append(onnx.helper.make_node("Shape", [value.name or ""], [name]))
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None))
    try:
        lent = {name: tensor.numpy() for name, tensor in weights.items() if tensor is not None}
        found = run_model(proto, {**feeds, **lent}, mapped=True)
    finally:
        lent = {}
        for tensor in weights.values():
            if tensor is not None:
                let_go(tensor)
    return {v: tuple(int(d) for d in np.asarray(found[n])) for n, v in zip(names, asked, strict=True)}
