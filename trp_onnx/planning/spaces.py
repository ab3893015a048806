"""What spaces can be cut to: their units in the order in which they go, and what every width does.

Which units go is the surgeon's to say (see `lowrank.surgeon`), by the moments of what flows into the layers that read
the space. What that does to the network's outputs is measured at three widths (see `damage`): predictions are blind to
where the space stands.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trp_onnx.calibration.joint import Was
from trp_onnx.calibration.moments import Moments, mean_error
from trp_onnx.errors import UsageError
from trp_onnx.graph.bias import corrects_bias
from trp_onnx.graph.layers import Layer
from trp_onnx.graph.spaces import Space, outputs_of
from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.rotation import Rotation, can_rotate, rotate
from trp_onnx.lowrank.surgeon import NO_UNIT, Elimination, Reader, Units, eliminate, refit
from trp_onnx.planning.curve import DamageCurve
from trp_onnx.planning.damage import Cuts, Level
from trp_onnx.planning.moved import Move
from trp_onnx.planning.rules import Rule, SpaceRule, space_match
from trp_onnx.process.parallel import each

MEASURED_AT = (0.02, 0.1, 0.3)
"""Relative squared errors of the readers near which a space is cut to measure what that does: plans lie around them."""

LEAST_KEPT = 1 / 8
"""A space keeps at least this part of its units: nothing that is cut further is of use without training."""

_LEVELS = 32
"""At most so many widths of a space are weighed, evenly spaced: the error changes smoothly."""


@dataclass(frozen=True, eq=False)
class SpaceSite:
    """A space, and how far it can be cut.

    Attributes:
        space: The space.
        elimination: Its units in the order in which they go, and what that costs.
        levels: Units that may stay, rising; the last is all of them.
        basis: In which units are removed; None where they are what the network has.
        damage: What relative squared errors of what reads the space do to the network's outputs, where measured.
    """

    space: Space
    elimination: Elimination
    levels: tuple[int, ...]
    basis: Rotation | None = None
    damage: DamageCurve | None = None

    def stays(self, kept: int) -> Units:
        """Which units stay where so many of all groups do, ascending."""
        return self.elimination.kept(kept // self.space.groups)

    def error(self, kept: int) -> float:
        """Relative squared error of the outputs of the layers that read the space."""
        return float(self.elimination.errors[kept // self.space.groups])

    def harm(self, kept: int) -> float:
        """What a width does to the outputs, or else its error."""
        return self.error(kept) if self.damage is None else self.damage(self.error(kept))

    @cached_property
    def damages(self) -> Array:
        """What each level does to the outputs, or else the errors."""
        return np.array([self.harm(level) for level in self.levels])


def levels_of(space: Space, align: int) -> tuple[int, ...]:
    """The widths that are worth weighing: whole blocks of the kernels, and all units.

    Args:
        space: The space.
        align: Channels in a block.
    """
    each = space.size // space.groups
    step = align // math.gcd(align, space.groups)
    fewest = max(step, math.ceil(each * LEAST_KEPT / step) * step)
    whole = range(fewest, each, step)
    places = np.unique(np.rint(np.linspace(0, len(whole) - 1, min(len(whole), _LEVELS)))).astype(int) if whole else ()
    return (*(whole[int(place)] * space.groups for place in places), space.size)


def survey_spaces(
    spaces: Sequence[Space],
    moments: Mapping[str, Moments],
    align: int,
    rules: Sequence[Rule] = (),
) -> list[SpaceSite]:
    """What each open space loses at every width.

    Args:
        spaces: From `find_spaces`.
        moments: Of what flows into the layers that read them, by the layers' names; others go by their weights.
        align: Channels in a block of the kernels.
        rules: The map; a space that it speaks of has one level.

    Raises:
        UsageError: The map asks for units that a space does not have.
    """
    found = [(space, _levels(space, space_match(rules, space.name), align)) for space in spaces]
    wanted = [(space, levels) for space, levels in found if levels]
    eliminations = each(lambda pair: _eliminated(pair[0], readers_of(pair[0], moments)), wanted)
    return [
        SpaceSite(space, elimination, levels, basis)
        for (space, levels), (elimination, basis) in zip(wanted, eliminations, strict=True)
    ]


def _eliminated(space: Space, readers: Sequence[Reader]) -> tuple[Elimination, Rotation | None]:
    """Units of a space in the order in which they go, of a linear one in the basis that loses least."""
    if not (space.linear and all(can_rotate(reader, space.size, space.groups) for reader in readers)):
        return eliminate(readers, space.size, space.groups), None
    basis = rotate(readers, space.size, space.groups)
    turned = eliminate([basis.of(reader) for reader in readers], space.size, space.groups)
    if len(readers) > 1:  # whose best bases differ
        plain = eliminate(readers, space.size, space.groups)
        if plain.errors.mean() <= turned.errors.mean():
            return plain, None
    return turned, basis


def why_closed(space: Space) -> str | None:
    """Why no width of a space is weighed, or None."""
    return space.closed or (
        None if space.consumers else "its units are multiplied with others, and no layer reads them"
    )


def _levels(space: Space, rule: SpaceRule | None, align: int) -> tuple[int, ...]:
    """The widths that a space may have: one where the map says which, none where there is no choice.

    Raises:
        UsageError: The map asks for units that the space does not have.
    """
    why = why_closed(space)
    if rule is None or why is not None:
        levels = () if why is not None else levels_of(space, align)
        if rule is not None and not rule.keep and rule.units != space.size:
            raise UsageError(f"the space '{space.name}' cannot be cut: {why}")
        return levels if len(levels) > 1 else ()
    if rule.keep:
        return ()
    wanted = rule.units or max(space.groups, int((rule.ratio or 1.0) * space.size) // space.groups * space.groups)
    if wanted > space.size:
        raise UsageError(f"the space '{space.name}' has {space.size} units: it cannot keep {wanted}")
    if wanted % space.groups:
        raise UsageError(
            f"the space '{space.name}' keeps equally many units in each of {space.groups} groups: {wanted} are no "
            "multiple of that"
        )
    return (wanted,) if wanted < space.size else ()


def readers_of(space: Space, moments: Mapping[str, Moments]) -> list[Reader]:
    """The layers that read a space, as the surgeon sees them."""
    readers = []
    for consumer in space.consumers:
        layer = consumer.layer
        weight = layer.weight()
        flat = weight.reshape(*weight.shape[:2], -1)
        known = moments.get(layer.name)
        plain = np.broadcast_to(np.eye(flat.shape[2]), (flat.shape[0], flat.shape[2], flat.shape[2]))
        moment = plain if known is None else known.moment(centred=corrects_bias(layer))
        readers.append(Reader(flat, moment, np.asarray(consumer.unit).reshape(flat.shape[0], -1)))
    return readers


def cuts_to_measure(site: SpaceSite, moments: Mapping[str, Moments]) -> Cuts:
    """How the damage of a space is measured: at the widths whose errors are nearest to `MEASURED_AT`."""
    errors = np.array([site.error(level) for level in site.levels[:-1]])
    places = {int(np.argmin(np.abs(np.log(np.maximum(errors, 1e-12) / wanted)))) for wanted in MEASURED_AT}
    found = sorted((float(errors[place]), site.levels[place]) for place in places if errors[place] > 0)
    layers = tuple(consumer.layer for consumer in site.space.consumers)
    digest = hashlib.sha256()
    for error, kept in found:
        digest.update(f"{error} {site.stays(kept).tolist()}".encode())
    for layer in layers:
        digest.update(layer.name.encode())
        digest.update(np.ascontiguousarray(moments[layer.name].mean).data if layer.name in moments else b"")
    if site.basis is not None:
        digest.update(np.ascontiguousarray(site.basis.encode).data)

    def make() -> list[Level]:
        readers = readers_of(site.space, moments)
        return [Level(error, _moves(site, readers, moments, kept)) for error, kept in found]

    return Cuts(layers, digest.hexdigest(), make)


def _moves(
    site: SpaceSite, readers: Sequence[Reader], moments: Mapping[str, Moments], kept: int
) -> tuple[Move, ...]:  # fmt: skip
    """What cutting a space does to the layers that read it."""
    moves = []
    for consumer, reader in zip(site.space.consumers, readers, strict=True):
        layer = consumer.layer
        weight, known = layer.weight(), moments.get(layer.name)
        step = _refitted(reader, site.stays(kept), site.basis).reshape(weight.shape) - weight
        shift = mean_error(-step, known) if known is not None and corrects_bias(layer) else None
        moves.append(Move((layer,), step, shift))
    return tuple(moves)


def _refitted(reader: Reader, units: Units, basis: Rotation | None) -> Array:
    """The weight that reads some units or components only, (G, N, D), as the network reads units."""
    if basis is None:
        return refit(reader, units)
    return basis.inverse.of_weight(refit(basis.of(reader), units), reader.unit)


def columns_gone(spaces: Sequence[Space], kept: Mapping[str, Sequence[int]]) -> dict[str, NDArray[np.bool_]]:
    """Which columns of the layers that read spaces go with the units that do not stay: (G, D), by layer name."""
    found: dict[str, NDArray[np.bool_]] = {}
    for space in spaces:
        goes = np.ones(space.size + 1, dtype=bool)
        goes[[*kept[space.name], NO_UNIT]] = False
        for consumer in space.consumers:
            assert consumer.layer.geometry is not None
            mine = goes[np.asarray(consumer.unit)].reshape(consumer.layer.geometry.groups, -1)
            found[consumer.layer.name] = found.get(consumer.layer.name, np.zeros_like(mine)) | mine
    return found


def was_before(layers: Sequence[Layer], spaces: Sequence[Space], kept: Mapping[str, Sequence[int]]) -> dict[str, Was]:
    """What layers are before spaces are cut, and which of their outputs will be left, by name."""
    free = [layer for layer in layers if layer.reason is None and layer.geometry is not None]
    stored: dict[int, list[Layer]] = {}
    for layer in free:
        assert layer.constant is not None
        stored.setdefault(id(layer.constant.value), []).append(layer)
    rows: dict[str, NDArray[np.bool_]] = {}
    for space in spaces:
        stays = np.zeros(space.size + 1, dtype=bool)
        stays[[*kept[space.name], NO_UNIT]] = True
        for part, layer in [(one, layer) for one in space.parts for layer in stored.get(id(one.value), ())]:
            units = outputs_of(part, layer)
            if units is not None:
                rows[layer.name] = stays[units] & rows.get(layer.name, np.True_)
    return {layer.name: Was.of(layer, rows.get(layer.name)) for layer in free}
