"""What each operator does with the labels of its inputs: a rule for each, found by its type.

A rule reads the labels of a node's inputs and returns those of its first output. Whatever has no rule closes
the units that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from trp_onnx.graph.spaces.trace import Label, Trace

Labels = Sequence[Label]

Rule = Callable[[Trace, ir.Node], Labels]
"""The labels of a node's first output."""

RULES: dict[str, Rule] = {}
"""By operator type; com.microsoft's operators of the same name follow the same rule."""


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register a rule for these operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return register


def named(node: ir.Node) -> str:
    """A node as reasons name it."""
    return f"{node.op_type} '{node.name or node.outputs[0].name}'"


def integers(trace: Trace, value: ir.Value | None) -> tuple[int, ...] | None:
    """The numbers of a constant that holds a few; None for anything else."""
    if value is None or value.const_value is None or value.const_value.size > _FEW:
        return None
    return tuple(int(number) for number in value.const_value.numpy().reshape(-1))


_FEW = 4096


def listed(trace: Trace, node: ir.Node, index: int, attribute: str) -> tuple[tuple[int, ...] | None, bool]:
    """Numbers that are an attribute in old opsets and an input in new ones, and whether there are any at all."""
    if attribute in node.attributes:
        return tuple(node.attributes.get_ints(attribute)), True
    value = node.inputs[index] if index < len(node.inputs) else None
    return integers(trace, value), value is not None


def ranks_known(trace: Trace, node: ir.Node) -> bool:
    """Whether the ranks of all values around a node are known."""
    return not any(value is not None and value.name and trace.shape(value) is None for value in _around(node))


def unknown(trace: Trace, node: ir.Node) -> Labels:
    """Close what a node reads because of a rank that is not known."""
    value = next(value for value in _around(node) if value is not None and trace.shape(value) is None)
    return closed(
        trace, node, f"the shape of '{value.name}' is not known: give the sizes of the inputs (--input-shape)"
    )


def _around(node: ir.Node) -> tuple[ir.Value | None, ...]:
    return (*node.inputs, *node.outputs)


def closed(trace: Trace, node: ir.Node, reason: str) -> Labels:
    """The units of all inputs stay, and no output has any."""
    for value in node.inputs:
        trace.close_value(value, reason)
    return ()
