"""Turn the units of linear spaces to components: other weights in the layers around, and the network computes the same.

A constant that makes units, or is added to them, gets the rows `E b`; a weight that reads them the columns `W E^-1`
(see `lowrank.rotation`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.constants import Constant, resolve_constant
from trp_onnx.graph.layers import layers_named
from trp_onnx.graph.model import interface_of
from trp_onnx.graph.spaces import Part, Space, find_spaces
from trp_onnx.graph.spaces.space import Use
from trp_onnx.lowrank.rotation import Rotation
from trp_onnx.passes.factorise import Keep, in_memory
from trp_onnx.passes.put_constant import put_constant


class TurnSpacesPass(ir.passes.InPlacePass):
    """Change the basis of linear spaces.

    It requires that the model has the spaces and that they are linear, and ensures that inputs and outputs stay what
    they are.
    """

    def __init__(
        self,
        bases: Mapping[str, Rotation],
        *,
        keep: Keep = in_memory,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Configure the pass.

        Args:
            bases: By the names of spaces.
            keep: How to store constants; in memory by default.
            input_shapes: Shapes for inputs with dynamic sizes, see `find_spaces`.
        """
        super().__init__()
        self.bases, self.keep, self.input_shapes = bases, keep, input_shapes
        self._spaces: dict[str, Space] = {}
        self._interface: list[object] = []

    def requires(self, model: ir.Model) -> None:
        """Refuse a model without the spaces, or with others under their names."""
        self._interface = interface_of(model)
        layers = list(layers_named(model, input_shapes=self.input_shapes).values())
        self._spaces = {space.name: space for space in find_spaces(model, layers, self.input_shapes)}
        for name, basis in self.bases.items():
            space = self._spaces.get(name)
            if space is None or not space.linear or (space.groups, space.size) != basis.shape:
                raise ir.passes.PreconditionError(f"the model has no linear space '{name}' of {basis.shape[1]} units")

    def ensures(self, model: ir.Model) -> None:
        """Inputs and outputs have the names, types and shapes that they had."""
        if interface_of(model) != self._interface:
            raise ir.passes.PostconditionError("turning changed the model's inputs or outputs: please report it")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run; `modified` says whether there was anything to turn."""
        parts: dict[tuple[ir.Value, tuple[Use, ...]], list[tuple[Part, Rotation, bool]]] = {}
        for name, basis in self.bases.items():
            space = self._spaces[name]
            for part in space.parts:
                parts.setdefault((part.value, part.uses), []).append((part, basis, _is_read(space, part)))
        for (value, uses), turns in parts.items():
            constant = resolve_constant(value, model.opset_imports.get("", 0))
            assert isinstance(constant, Constant) and constant.dtype is not None
            array = constant.array().astype(np.float64)
            for part, basis, read in turns:
                array = _turned(array, part, basis, read=read)
            put_constant(model.graph, self.keep, value, uses, array, constant.dtype, "turned")
        return ir.passes.PassResult(model, modified=bool(parts))


def _is_read(space: Space, part: Part) -> bool:
    """Whether a part is the columns of a weight that reads units: all others make them or are added to them."""
    layers = [consumer.layer for consumer in space.consumers]
    return any(
        layer.constant is not None and layer.layout is not None
        and layer.constant.value is part.value and layer.layout.output_axis != part.axis
        for layer in layers
    )  # fmt: skip


def _turned(array: np.ndarray, part: Part, basis: Rotation, *, read: bool) -> np.ndarray:
    """An array with one of its axes turned, in each of its blocks."""
    if part.unit.ndim > 1:
        blocks = array.reshape(len(part.unit), -1, *array.shape[1:])
        pairs = zip(blocks, part.unit, strict=True)
        turned = [_turned(block, replace(part, unit=unit), basis, read=read) for block, unit in pairs]
        return np.concatenate(turned).reshape(array.shape)
    rows = np.moveaxis(array, part.axis, 0)
    turn = basis.of_columns if read else basis.of_outputs
    return np.moveaxis(turn(rows, part.unit), 0, part.axis)
