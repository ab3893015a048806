"""What a space is: units that can be removed from a whole network, and all that shrinks with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.layers import Layer

Use = tuple[ir.Node, int]
"""A node, and which of its inputs is meant."""


@dataclass(frozen=True, eq=False)
class Part:
    """A constant whose axis shrinks.

    Attributes:
        value: The constant: an initializer, or computed from some.
        axis: The axis.
        unit: The unit of each of its entries, (size of the axis,); -1 where an entry is of no unit of this space. The
            weight of grouped layers is divided into blocks along its first axis, each with its own: (blocks, size).
        uses: Where the constant is read as this part.
    """

    value: ir.Value
    axis: int
    unit: np.ndarray
    uses: tuple[Use, ...]


@dataclass(frozen=True, eq=False)
class Count:
    """A number in the graph that counts entries: a size of Reshape or Split, the groups of a depthwise convolution.

    Attributes:
        node: The node that is told the number.
        where: The input, or the attribute, in which it stands.
        values: All numbers of that input or attribute.
        position: Which of them it is.
        unit: The unit of each entry that it counts, -1 for those of no unit of this space: (number,).
    """

    node: ir.Node
    where: int | str
    values: tuple[int, ...]
    position: int
    unit: np.ndarray


@dataclass(frozen=True, eq=False)
class Consumer:
    """A layer that mixes the units.

    Attributes:
        layer: The layer, with its weight W[g, n, :].
        unit: The unit of each column, -1 for those of no unit of this space: (G D,), group by group, D = C times the
            kernel in the order of W, so that W.swapaxes(0, 1).reshape(N, -1) has these columns.
    """

    layer: Layer
    unit: np.ndarray


def outputs_of(part: Part, layer: Layer) -> np.ndarray | None:
    """The unit of each output of a layer, (G, N), where a part is its weight along the axis that holds them."""
    layout, geometry, constant = layer.layout, layer.geometry, layer.constant
    if layout is None or geometry is None or constant is None or part.value is not constant.value:
        return None
    shape = geometry.groups, geometry.out_channels
    if geometry.depthwise and geometry.transposed:  # stored by its inputs: each makes N outputs
        return np.broadcast_to(part.unit.reshape(-1, 1), shape) if part.axis == 0 else None
    if part.axis != layout.output_axis:
        return None
    return np.broadcast_to(part.unit.reshape(-1, geometry.out_channels), shape)  # one row may stand for all groups


@dataclass(frozen=True, eq=False)
class Space:
    """Units that can be removed one by one from a whole network.

    Attributes:
        name: Unique: that of the first layer that makes them, with a number where that layer makes several spaces.
        kind: "channels", "hidden" for those between two matrix products, "head" for the inner dimensions of attention.
        size: How many units there are.
        groups: Units are numbered group by group; a cut keeps equally many of each group.
        producers: The layers whose outputs they are.
        within: What passes them on and shrinks with them: depthwise layers, other nodes.
        consumers: The layers that mix them.
        parts: The constants that shrink.
        counts: The numbers that change.
        values: The values that hold them.
        closed: Why nothing can be removed, or None.
        linear: Whether whatever lies between the layers treats all units of a group alike: these can be turned to
            another basis, see `lowrank.rotation`.
    """

    name: str
    kind: str
    size: int
    groups: int
    producers: tuple[Layer, ...]
    within: tuple[Layer | ir.Node, ...]
    consumers: tuple[Consumer, ...]
    parts: tuple[Part, ...] = field(repr=False)
    counts: tuple[Count, ...] = field(repr=False)
    values: tuple[ir.Value, ...] = field(repr=False)
    closed: str | None = None
    linear: bool = False

    def obstacle(self, kept: Sequence[int]) -> str | None:
        """Why these units cannot be the ones that stay, in a clause, or None."""
        if self.closed is not None:
            return f"nothing can be removed from it: {self.closed}"
        wanted = set(kept)
        if len(wanted) < len(kept) or not all(0 <= unit < self.size for unit in kept):
            return f"its units are 0 to {self.size - 1}, each kept once or not at all"
        if not wanted:
            return "at least one of its units must stay"
        each = self.size // self.groups
        if len({sum(unit // each == group for unit in wanted) for group in range(self.groups)}) > 1:
            return f"equally many units of each of its {self.groups} groups must stay"
        return None
