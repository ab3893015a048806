"""Another basis for units that nothing but linear operators read and make: components, of which few carry most.

Where nothing lies between producers and readers that tells units apart, `x' = E x` in the producers and `W' = W E^-1`
in the readers compute the same for any invertible E of each group. With M the sum of `W^T W` over the readers and S
that of their moments, this module takes

    E = V^T S^-1/2,    V the eigenvectors of S^1/2 M S^1/2.

For one reader that is the singular value decomposition of `W S^1/2`: the components are uncorrelated, their columns
orthogonal, and to keep r of them costs the tail of the spectrum, the least that rank r can. In this basis components
are units like any other: `surgeon` removes them, for several readers and several groups too, whose components may go
together, and refits those that stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.separable import Separable
from trp_onnx.lowrank.surgeon import Reader, Units, folded, unfolded


@dataclass(frozen=True)
class Rotation:
    """A basis for each group of units.

    Attributes:
        encode: E, (groups, m, m) for groups of m units: component j of a group takes the place of its unit j.
        decode: E^-1.
    """

    encode: Array
    decode: Array

    @property
    def shape(self) -> tuple[int, int]:
        """Groups, and units of all of them."""
        return len(self.encode), len(self.encode) * self.encode.shape[1]

    def of_outputs(self, rows: Array, unit: Units) -> Array:
        """What a producer computes, from rows of its weight or bias: (rows, ...), with the unit of each, or none."""
        return _turned(rows, unit, self.encode)

    def of_columns(self, columns: Array, unit: Units) -> Array:
        """What a reader has in place of its columns: (columns, ...), with the unit of each, or none."""
        return _turned(columns, unit, np.swapaxes(self.decode, 1, 2))

    @property
    def inverse(self) -> Rotation:
        """Back to units."""
        return Rotation(self.decode, self.encode)

    def of_weight(self, weight: Array, unit: Units) -> Array:
        """A reader's weight (G, N, D), of which the units of columns are (G, D), as one of components."""
        return np.stack([self.of_columns(block.T, each).T for block, each in zip(weight, unit, strict=True)])

    def of(self, reader: Reader) -> Reader:
        """The reader of components: its outputs are the same."""
        if isinstance(reader.moment, Separable):
            turned = self.of(folded(reader))
            assert isinstance(turned.moment, np.ndarray)
            weight = unfolded(turned.weight, reader.weight.shape)
            return Reader(weight, Separable(turned.moment, reader.moment.axes), reader.unit)
        moments = []
        for moment, unit in zip(reader.moment, reader.unit, strict=True):
            moments.append(_turned(_turned(moment, unit, self.encode).T, unit, self.encode).T)
        return Reader(self.of_weight(reader.weight, reader.unit), np.stack(moments), reader.unit)


def _turned(rows: Array, unit: Units, by: Array) -> Array:
    """Rows of units as rows of components, one matrix for each group: (rows, ...)."""
    found = np.array(rows, np.float64)
    for group, matrix in enumerate(by):
        for tap in _taps(unit, group, len(matrix)):
            found[tap] = np.tensordot(matrix, found[tap], axes=1)
    return found


def can_rotate(reader: Reader, size: int, groups: int = 1) -> bool:
    """Whether a reader sees all units of each group that it sees together and equally often."""
    each = size // groups
    counts = [np.bincount(unit[unit >= 0], minlength=size).reshape(groups, each) for unit in reader.unit]
    return all((count == count[:, :1]).all() for count in counts)


def rotate(readers: Sequence[Reader], size: int, groups: int = 1) -> Rotation:
    """The basis in which the units of a linear space are best cut.

    Args:
        readers: All that read units of the space, see `can_rotate`.
        size: How many units there are; those of one group are numbered side by side.
        groups: How many groups keep equally many units.
    """
    each = size // groups
    grams, moments = np.zeros((groups, each, each)), np.zeros((groups, each, each))
    for reader in readers:
        plain = folded(reader, whitened=True) if isinstance(reader.moment, Separable) else reader
        assert isinstance(plain.moment, np.ndarray)
        energy = float(np.square(plain.weight).sum()) or 1.0
        power = float(np.trace(plain.moment, axis1=1, axis2=2, dtype=np.float64).sum())
        for weight, moment, unit in zip(plain.weight, plain.moment, plain.unit, strict=True):
            for group in range(groups):
                for tap in _taps(unit, group, each):
                    columns = weight[:, tap]
                    grams[group] += columns.T @ columns / energy
                    moments[group] += moment[np.ix_(tap, tap)] / power
    encode, decode = np.empty_like(grams), np.empty_like(grams)
    for group in range(groups):
        values, vectors = np.linalg.eigh(moments[group])
        values = np.maximum(values, np.finfo(np.float64).eps * values[-1] or 1.0)
        root, back = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
        turned = np.linalg.eigh(root @ grams[group] @ root)[1][:, ::-1]
        encode[group], decode[group] = turned.T @ back, root @ turned
    return Rotation(encode, decode)


def _taps(unit: Units, group: int, each: int) -> Units:
    """For each tap the places of a group's units, in order: (taps, m); none where the group is not read."""
    inside = np.flatnonzero((unit >= group * each) & (unit < (group + 1) * each))
    ordered = inside[np.argsort(unit[inside], kind="stable")]
    return ordered.reshape(each, -1).T
