"""Constants in place of others that are read in some places: those that are cut, and those that are turned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.spaces.space import Use
from trp_onnx.passes.factorise import Keep
from trp_onnx.passes.free_names import free_name


def put_constant(
    graph: ir.Graph, keep: Keep, value: ir.Value | None, uses: Sequence[Use], array: np.ndarray, dtype: ir.DataType,
    suffix: str,
) -> ir.Value:  # fmt: skip
    """A constant in place of another, which stays where others read it.

    Args:
        graph: The main graph, whose initializers all graphs read.
        keep: How to store it.
        value: The other; None where there was none.
        uses: Where it is read.
        array: The new constant.
        dtype: Its type.
        suffix: What the name of a further constant ends in.
    """
    alone = value is not None and value.is_initializer() and not value.is_graph_output()
    if alone and value is not None and {(use.node, use.idx) for use in value.uses()} <= set(uses):
        value.const_value = keep(value.name or "", array, dtype)
        value.shape = ir.Shape(array.shape)
        return value
    name = free_name(f"{value.name if value is not None else uses[0][0].name}/{suffix}", graph.initializers)
    made = ir.tape.Tape(graph).initializer(keep(name, array, dtype))
    read_instead(uses, made)
    return made


def read_instead(uses: Iterable[Use], value: ir.Value) -> None:
    """Let inputs of nodes read another value."""
    for node, index in uses:
        node.replace_input_with(index, value)
