"""Labels: which units the entries of a value belong to, and what is found while they are followed through a graph.

A layer that mixes its inputs gives each of its outputs a new id. The ids flow on: channel-wise operators keep them,
Add joins those of its operands, Concat puts them side by side, Reshape reshapes them with the value. What shrinks with
an id is a `Place`; where ids cannot be removed, they are closed with a reason. Nothing is decided meanwhile: `resolve`
does when all is seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_onnx.graph.layers import Layer
from trp_onnx.graph.shapes import Shape
from trp_onnx.graph.spaces.space import Use

Ids = NDArray[np.int64]

NONE = -1
"""The id of entries that no layer here made, or that are not to be told apart."""


@dataclass(frozen=True, eq=False)
class Label:
    """The ids of a value's entries, which differ along some of its axes only.

    Attributes:
        axes: These axes, ascending.
        ids: Of the shape that the value has along them.
        inner: Which of them shrinks where a cut leaves several: those before it are rows of equally many.
    """

    axes: tuple[int, ...]
    ids: Ids
    inner: int = 0

    def moved(self, axes: Sequence[int]) -> Label:
        """The same ids on other axes, in the order of this label's."""
        order = sorted(range(len(axes)), key=lambda i: axes[i])
        return Label(tuple(sorted(axes)), self.ids.transpose(order), order.index(self.inner))

    def shifted(self, by: int) -> Label:
        """The same with so many axes before it."""
        return replace(self, axes=tuple(axis + by for axis in self.axes))


Dims = list[tuple[Label, int] | None]
"""What a vector of sizes tells: the labelled axis whose size an entry is, None for anything else."""


@dataclass(frozen=True, eq=False)
class ShrinkPart:
    """A constant whose axis goes with the place."""

    value: ir.Value
    axis: int
    uses: tuple[Use, ...]


@dataclass(frozen=True, eq=False)
class ShrinkCount:
    """A number that counts the entries along an axis of the place."""

    node: ir.Node
    where: int | str
    values: tuple[int, ...]
    position: int


@dataclass(frozen=True, eq=False)
class Forbid:
    """The axis must not shrink."""

    reason: str


Target = ShrinkPart | ShrinkCount | Forbid | None


@dataclass(frozen=True, eq=False)
class Place:
    """Where ids are seen.

    Attributes:
        ids: Of as many axes as a label has.
        inner: As in `Label`.
        targets: What happens where an axis shrinks, by axis.
        strict: Whether the inner axis alone can shrink.
        apart: Whether units that stand here are told apart from those that do not.
    """

    ids: Ids
    inner: int
    targets: tuple[Target, ...]
    strict: bool = False
    apart: bool = True


_ROWS = "they go together with entries that stay"


class Trace:
    """What is known while a graph is walked."""

    def __init__(self, layers: Iterable[Layer], shapes: Mapping[ir.Value, Shape], opset: int) -> None:
        self.layers = {layer.node: layer for layer in layers}
        self.shapes, self.opset = shapes, opset
        self.labels: dict[ir.Value, tuple[Label, ...]] = {}
        self.constants: set[ir.Value] = set()
        self._dims: dict[ir.Value, Dims] = {}
        self.size = 0
        self.edges: list[tuple[Ids, Ids]] = []
        self.closings: list[tuple[Ids, str]] = []
        self.places: list[Place] = []
        self.produced: list[tuple[Layer, Ids]] = []
        self.consumed: list[tuple[Layer, Ids]] = []
        self.passed: list[tuple[Layer | ir.Node, Ids]] = []
        self.apart: list[Ids] = []
        self.weights: dict[ir.Value, tuple[Layer, Ids, Ids]] = {}

    # what is known

    def of(self, value: ir.Value | None) -> tuple[Label, ...]:
        """The labels of a value."""
        return self.labels.get(value, ()) if value is not None else ()

    def put(self, value: ir.Value, labels: Iterable[Label]) -> None:
        """Label a value."""
        kept = tuple(label for label in labels if (label.ids != NONE).any())
        if kept:
            self.labels[value] = kept

    def told(self, value: ir.Value | None) -> Dims:
        """The labelled axes whose sizes stand in a vector; empty where there are none."""
        return self._dims.get(value, []) if value is not None else []

    def tell(self, value: ir.Value, dims: Dims) -> None:
        """A vector of sizes."""
        if any(dims):
            self._dims[value] = dims

    def shape(self, value: ir.Value | None) -> Shape | None:
        """The shape of a value; None where its rank is not known."""
        if value is None:
            return None
        if value.const_value is not None:
            return tuple(int(d) for d in value.const_value.shape.numpy())
        return self.shapes.get(value)

    def is_constant(self, value: ir.Value | None) -> bool:
        """Whether a value is the same in every run."""
        return value is not None and (value.const_value is not None or value in self.constants)

    # what is found

    def fresh(self, *shape: int) -> Ids:
        """New ids."""
        count = int(np.prod(shape))
        self.size += count
        return np.arange(self.size - count, self.size, dtype=np.int64).reshape(shape)

    def join(self, a: Ids, b: Ids, reason: str) -> None:
        """The same units go from both; what meets entries of no unit is closed for this reason."""
        a, b = np.broadcast_arrays(a, b)
        both = (a != NONE) & (b != NONE)
        self.edges.append((a[both], b[both]))
        self.close(np.concatenate([a[~both], b[~both]]), reason)

    def close(self, ids: Ids, reason: str) -> None:
        """These units stay."""
        ids = ids[ids != NONE].ravel()
        if ids.size:
            self.closings.append((ids, reason))

    def tell_apart(self, ids: Ids) -> None:
        """Something is done to these units that is not done to all units alike."""
        ids = ids[ids != NONE].ravel()
        if ids.size:
            self.apart.append(ids)

    def close_value(self, value: ir.Value | None, reason: str) -> None:
        """The units of a value stay."""
        for label in self.of(value):
            self.close(label.ids, reason)

    def whole(self, label: Label, axis: int) -> Label | None:
        """Join what differs along an axis alone, which so stays as it is; None where the label has no other."""
        index = label.axes.index(axis)
        first = label.ids.take([0], index)
        self.join(first, label.ids, _ROWS)
        if len(label.axes) == 1:
            return None
        inner = label.inner - (label.inner > index) if label.inner != index else len(label.axes) - 2
        return Label(tuple(a for a in label.axes if a != axis), np.take(label.ids, 0, index), inner)

    def forbid(self, label: Label, axes: Iterable[int], reason: str) -> None:
        """These axes of a label must not shrink."""
        wanted = set(axes)
        if len(label.axes) == 1 and label.axes[0] in wanted:
            self.close(label.ids, reason)
            return
        targets = tuple(Forbid(reason) if axis in wanted else None for axis in label.axes)
        if any(targets):
            self.place(label, targets, apart=False)

    def place(self, label: Label, targets: Sequence[Target], **how: Any) -> None:
        """What shrinks with a label."""
        self.places.append(Place(label.ids, label.inner, tuple(targets), **how))

    def attach(self, label: Label, value: ir.Value, use: Use, axes: Mapping[int, int], what: str) -> None:
        """A value that is read beside a labelled one.

        Args:
            label: Of the labelled value.
            value: The other: a constant shrinks along, of anything else the axis must not.
            use: Where it is read.
            axes: Those of its axes that are not broadcast, by the label's axes.
            what: The node, for the reason.
        """
        if not axes:
            return
        if not self.is_constant(value):
            self.forbid(label, axes, f"{what} combines it with '{value.name}', whose entries stay")
            return
        if label.axes[label.inner] in axes:  # one entry stands for all rows
            for index in range(len(label.axes)):
                if index != label.inner:
                    self.join(label.ids.take([0], index), label.ids, _ROWS)
        targets = [ShrinkPart(value, axes[axis], (use,)) if axis in axes else None for axis in label.axes]
        self.place(label, targets)
        self.passed.append((self.layers.get(use[0], use[0]), label.ids.ravel()))
