"""The first and the last layers of a network, by what flows through it. No name is looked at.

    stem    a layer that a signal reaches on no path through another layer
    last    a layer behind which no other layer stands, on no path to an output

A signal starts at inputs of floats, and of 8 and 16 bit (images, sound); ids, masks and lengths are none, so that a
network that begins with an embedding has no stem: every layer of it is an inner one. A residual network has one
stem, a network of several inputs one for each; a detector has one last layer for each head. What only tells sizes
(Shape, Size) or places (the indices of Gather) carries nothing on.

One pass forward and one backward over all nodes, subgraphs in place of the node that holds them.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

_NO_SIGNAL = (
    ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT32, ir.DataType.UINT64, ir.DataType.BOOL, ir.DataType.STRING,
)  # fmt: skip
_SIZES = ("Shape", "Size")
_BY_INDEX = ("Gather", "GatherElements", "GatherND")

_Event = tuple[ir.Node, bool, list[ir.Graph]]
"""A node whose subgraphs come next (True), or a node itself, its subgraphs done (False); and those subgraphs."""


def ends_of(model: ir.Model, layers: Collection[ir.Node]) -> tuple[set[ir.Node], set[ir.Node]]:
    """The stems and the last ones among the layers of a model whose nodes are sorted."""
    events = _events(model.graph)
    return _stems(model, layers, events), _lasts(layers, events)


def bodies_of(node: ir.Node) -> list[ir.Graph]:
    """The subgraphs that a node holds."""
    if not node.attributes:
        return []
    return [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH and not a.is_ref()]


def _events(graph: ir.Graph) -> list[_Event]:
    found: list[_Event] = []
    stack: list[_Event] = [(node, True, bodies_of(node)) for node in reversed(graph)]
    while stack:
        node, entering, bodies = stack.pop()
        found.append((node, entering and bool(bodies), bodies))
        if entering and bodies:
            stack.append((node, False, bodies))
            stack += [(inner, True, bodies_of(inner)) for body in reversed(bodies) for inner in reversed(body)]
    return found


def _stems(model: ir.Model, layers: Collection[ir.Node], events: list[_Event]) -> set[ir.Node]:
    behind_layer: dict[ir.Value, bool] = {
        value: False
        for value in model.graph.inputs
        if value.const_value is None and value.dtype not in _NO_SIGNAL
    }  # fmt: skip

    def signal(values: Collection[ir.Value | None]) -> bool | None:
        """Whether what the values carry has been through a layer; None where they carry no signal."""
        found = [behind_layer[value] for value in values if value is not None and value in behind_layer]
        return any(found) if found else None

    stems = set()
    for node, entering, bodies in events:
        if node.op_type in _SIZES:
            continue
        carried = signal(node.inputs[:1] if node.op_type in _BY_INDEX else node.inputs)
        reached = [value for body in bodies for value in (body.inputs if entering else body.outputs)]
        if not entering:
            carried = signal((*node.inputs, *reached)) if reached else carried
            reached = list(node.outputs)
        if carried is None:
            continue
        if not entering and node in layers:
            if not carried:
                stems.add(node)
            carried = True
        behind_layer |= dict.fromkeys(reached, carried)
    return stems


def _lasts(layers: Collection[ir.Node], events: list[_Event]) -> set[ir.Node]:
    before_layer: set[ir.Value] = set()
    lasts = set()
    for node, entering, bodies in reversed(events):
        if node.op_type in _SIZES:
            continue
        leads_on = any(value in before_layer for value in node.outputs)
        if entering:
            leads_on |= any(value in before_layer for body in bodies for value in body.inputs)
        elif leads_on:
            before_layer.update(value for body in bodies for value in body.outputs)
        elif node in layers:
            lasts.add(node)
        if (leads_on or node in layers) and (entering or not bodies):
            before_layer.update(value for value in node.inputs if value is not None)
    return lasts
