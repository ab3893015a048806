"""Find the spaces of a network: follow labels through its graph, then put together what was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from trp_onnx.graph.cost import MICROSOFT
from trp_onnx.graph.layers import Layer
from trp_onnx.graph.observed import observe_shapes
from trp_onnx.graph.roles import bodies_of
from trp_onnx.graph.shapes import Shape, infer_shapes
from trp_onnx.graph.spaces import elementwise, mixing, moving  # noqa: F401  their rules
from trp_onnx.graph.spaces.linear import told_apart
from trp_onnx.graph.spaces.resolve import resolve
from trp_onnx.graph.spaces.rules import RULES, closed, named
from trp_onnx.graph.spaces.sizes import pass_on
from trp_onnx.graph.spaces.space import Space
from trp_onnx.graph.spaces.trace import Trace


def find_spaces(
    model: ir.Model,
    layers: Sequence[Layer],
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    shapes: Mapping[ir.Value, Shape] | None = None,
) -> list[Space]:
    """The spaces of a model, in the order in which their units are made; closed ones too.

    Args:
        model: A model whose local functions are inlined and whose nodes are sorted (see `normalise`).
        layers: Its layers, from `find_layers` or `layers_named`.
        input_shapes: Shapes for inputs with dynamic sizes.
        shapes: What `shapes_of` found of it, where that is known.

    Raises:
        ModelError: `input_shapes` names an input that does not exist or contradicts its declared shape.
    """
    shapes = infer_shapes(model, input_shapes) if shapes is None else shapes
    values = [value for node in model.graph for value in node.outputs]
    shapes = observe_shapes(model, input_shapes, shapes, values)
    trace = Trace(layers, shapes, model.opset_imports.get("", 1))
    _follow(trace, model.graph)
    for output in model.graph.outputs:
        trace.close_value(output, f"they are the output '{output.name}' of the network")
    return resolve(trace)


def _follow(trace: Trace, graph: ir.Graph) -> None:
    """Walk a graph, its subgraphs in place of the nodes that hold them."""
    stack = [iter(graph)]
    while stack:
        node = next(stack[-1], None)
        if node is None:
            stack.pop()
            continue
        bodies = bodies_of(node)
        if bodies:
            closed(trace, node, f"they go into the body of {named(node)}")
            stack += [iter(body) for body in reversed(bodies)]
        else:
            _visit(trace, node)
        if node.graph is not graph and node.graph is not None:
            _leave(trace, node)


def _leave(trace: Trace, node: ir.Node) -> None:
    for output in node.outputs:
        if output.is_graph_output():
            trace.close_value(output, f"'{output.name}' is an output of the subgraph in which it stands")


def _visit(trace: Trace, node: ir.Node) -> None:
    inputs = [value for value in node.inputs if value is not None]
    layer = trace.layers.get(node)
    if inputs and all(map(trace.is_constant, inputs)) and not (layer is not None and layer.layout is not None):
        trace.constants.update(node.outputs)
        return
    makes = layer is not None and layer.layout is not None
    if any(map(trace.told, inputs)):
        pass_on(trace, node)
    if not makes and not any(map(trace.of, inputs)):
        return
    follow = RULES.get(node.op_type) if node.domain in ("", "ai.onnx", MICROSOFT) else None
    if follow is None:
        why = layer.reason if layer is not None and layer.reason else "is not known to keep them apart"
        closed(trace, node, f"{named(node)} {why.removeprefix(node.op_type).lstrip()}")
        return
    try:
        labels = follow(trace, node)
    except (IndexError, ValueError):  # of an invalid model, which no runtime takes
        labels = closed(trace, node, f"the shapes around {named(node)} contradict one another")
    trace.put(node.outputs[0], labels)
    for label in told_apart(trace, node):
        trace.tell_apart(label.ids)
