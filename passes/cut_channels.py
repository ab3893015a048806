"""Cut spaces: the constants that hold their units shrink, and so do the numbers that count them.

No node is added, dropped or renamed, and the weights of the units that stay are what they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_onnx.graph.constants import Constant, resolve_constant
from trp_onnx.graph.layers import layers_named
from trp_onnx.graph.model import interface_of
from trp_onnx.graph.spaces import Count, Part, Space, find_spaces
from trp_onnx.graph.spaces.space import Use
from trp_onnx.passes.factorise import Keep, in_memory
from trp_onnx.passes.put_constant import put_constant, read_instead

_Mask = NDArray[np.bool_]


class CutChannelsPass(ir.passes.InPlacePass):
    """Remove units of spaces from a whole network.

    It requires that the model has the spaces, that they are open, and that each keeps at least one unit, equally many
    of each group. It ensures that inputs and outputs stay what they are.
    """

    def __init__(
        self,
        kept: Mapping[str, Sequence[int]],
        *,
        keep: Keep = in_memory,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Configure the pass.

        Args:
            kept: The units that stay, by the names of their spaces; other spaces stay whole.
            keep: How to store constants that shrank; in memory by default.
            input_shapes: Shapes for inputs with dynamic sizes, see `find_spaces`.
        """
        super().__init__()
        self.kept, self.keep, self.input_shapes = kept, keep, input_shapes
        self._spaces: dict[str, Space] = {}
        self._interface: list[object] = []

    def requires(self, model: ir.Model) -> None:
        """Refuse a model without the spaces, or units that cannot be the ones that stay."""
        self._interface = interface_of(model)
        layers = list(layers_named(model, input_shapes=self.input_shapes).values())
        self._spaces = {space.name: space for space in find_spaces(model, layers, self.input_shapes)}
        for name, units in self.kept.items():
            if name not in self._spaces:
                raise ir.passes.PreconditionError(f"the model has no space '{name}': `trp-onnx inspect` lists them")
            why = self._spaces[name].obstacle(units)
            if why:
                raise ir.passes.PreconditionError(f"space '{name}' cannot be cut like this: {why}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run; `modified` says whether anything was removed."""
        cuts = {
            name: np.isin(np.arange(self._spaces[name].size), np.asarray(units, np.int64))
            for name, units in self.kept.items()
        }
        cuts = {name: stay for name, stay in cuts.items() if not stay.all()}
        cutting = _Cutting(model, self.keep)
        for name, stay in cuts.items():
            for part in self._spaces[name].parts:
                cutting.add_part(part, _staying(part.unit, stay))
            for count in self._spaces[name].counts:
                cutting.add_count(count, _staying(count.unit, stay))
            for value in self._spaces[name].values:
                value.shape = None
        cutting.carry_out()
        return ir.passes.PassResult(model, modified=bool(cuts))

    def ensures(self, model: ir.Model) -> None:
        """Inputs and outputs have the names, types and shapes that they had."""
        if interface_of(model) != self._interface:
            raise ir.passes.PostconditionError("the cut changed the model's inputs or outputs: please report it")


def _staying(unit: NDArray[np.int64], stay: _Mask) -> _Mask:
    """Which entries stay, given their units: those of no unit of the space do."""
    return np.asarray((unit < 0) | stay[unit])


class _Cutting:
    """What is to be cut of one model; several spaces may cut the same constant."""

    def __init__(self, model: ir.Model, keep: Keep) -> None:
        self._graph, self._keep = model.graph, keep
        self._opset = model.opset_imports.get("", 0)
        self._parts: dict[tuple[ir.Value, tuple[Use, ...]], dict[int, _Mask]] = {}
        self._counts: dict[tuple[ir.Node, int | str], dict[int, _Mask]] = {}
        self._values: dict[tuple[ir.Node, int | str], tuple[int, ...]] = {}

    def add_part(self, part: Part, stay: _Mask) -> None:
        """Entries of a constant stay or go."""
        axes = self._parts.setdefault((part.value, part.uses), {})
        axes[part.axis] = axes[part.axis] & stay if part.axis in axes else stay

    def add_count(self, count: Count, stay: _Mask) -> None:
        """Entries are counted that stay or go."""
        key = (count.node, count.where)
        self._values[key] = count.values
        positions = self._counts.setdefault(key, {})
        positions[count.position] = positions.get(count.position, True) & stay

    def carry_out(self) -> None:
        """Shrink all constants, and count anew."""
        made: dict[object, ir.Value] = {}
        for (value, uses), axes in self._parts.items():
            if all(stay.all() for stay in axes.values()):
                continue
            key = (value, *((axis, axes[axis].tobytes()) for axis in sorted(axes)))
            if key in made:
                read_instead(uses, made[key])
                continue
            constant = resolve_constant(value, self._opset)
            assert isinstance(constant, Constant)
            array = cut_array(constant.array(), axes)
            assert constant.dtype is not None
            made[key] = put_constant(self._graph, self._keep, value, uses, array, constant.dtype, "cut")
        for (node, where), positions in self._counts.items():
            numbers = list(self._values[node, where])
            for position, stay in positions.items():
                numbers[position] = int(stay.sum())
            self._recount(node, where, numbers)

    def _recount(self, node: ir.Node, where: int | str, numbers: Sequence[int]) -> None:
        if isinstance(where, str):
            single = node.attributes.get(where)
            if single is not None and single.type == ir.AttributeType.INT:
                node.attributes[where] = ir.AttrInt64(where, numbers[0])
            else:
                node.attributes[where] = ir.AttrInt64s(where, numbers)
            return
        node.resize_inputs(max(len(node.inputs), where + 1))
        if node.op_type == "Split":
            node.attributes.pop("num_outputs", None)
        if node.op_type == "Reshape" and 0 in numbers:  # which copies a size
            node.attributes.pop("allowzero", None)
        old = node.inputs[where]
        dtype = (old.dtype if old is not None else None) or ir.DataType.INT64
        array = np.array(numbers, np.int64)
        put_constant(self._graph, self._keep, old, [(node, where)], array, dtype, "cut")


def cut_array(array: np.ndarray, axes: Mapping[int, _Mask]) -> np.ndarray:
    """What stays of an array.

    Args:
        array: Of any shape.
        axes: Which entries of an axis stay, (size,); or one such row, with equally many, for each of the blocks in
            which the axes before it are divided: (blocks, size).
    """
    for axis, stay in sorted(axes.items(), key=lambda item: -item[1].ndim):  # blocks while they are all there
        if stay.ndim == 1:
            array = array.compress(stay, axis)
            continue
        shape = array.shape
        blocks = array.reshape(len(stay), -1, *shape[axis:])
        rows = [block.compress(row, 1) for block, row in zip(blocks, stay, strict=True)]
        array = np.stack(rows).reshape(*shape[:axis], rows[0].shape[1], *shape[axis + 1 :])
    return array
