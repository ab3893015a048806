"""What is kept of one geometry: the times at the ranks that were timed, and how far to trust them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from trp_onnx.latency.parts import Parts
from trp_onnx.latency.width import WAYS, Way
from trp_onnx.lowrank.schemes import Rank

_ALLOWED, _ALLOWED_OF_NETWORK = 0.03, 0.005
"""The doubt that is good enough: as part of a layer's time, and of its network's."""


def allowed_doubt(share: float) -> float:
    """What the parts of a geometry may be off by, when its layers take such a share of their network's time."""
    return max(_ALLOWED, _ALLOWED_OF_NETWORK / max(share, 1e-9))


@dataclass(frozen=True)
class Entry:
    """Measurements of one geometry.

    Attributes:
        knots: For each way the ranks that were timed and their time over the dense layer's.
        inside, pace, doubt: See `Parts`; the doubt is that of the worst measurement.
    """

    knots: dict[str, list[tuple[Rank, float]]]
    inside: float | None
    pace: float
    doubt: float

    @classmethod
    def read(cls, document: Any) -> Entry | None:
        """From the cache; None where there is none, or a damaged one."""
        try:
            return msgspec.convert(document, cls)
        except msgspec.ValidationError:
            return None

    def with_parts(self, points: Sequence[tuple[Way, Rank]], found: Parts) -> Entry:
        """With what was found at some ranks."""
        knots = {name: list(timed) for name, timed in self.knots.items()}
        for (way, rank), part in zip(points, found.parts, strict=True):
            knots.setdefault(way.name, []).append((rank, part))
        inside = self.inside if found.inside is None else found.inside
        return Entry(knots, inside, found.pace, max(self.doubt, found.doubt))

    def has(self, way: Way, rank: Rank) -> bool:
        """Whether a rank was timed."""
        return any(known == rank for known, _ in self.knots.get(way.name, ()))

    def points(self) -> list[tuple[Way, Rank]]:
        """All that were timed."""
        return [(WAYS[name], rank) for name, timed in self.knots.items() for rank, _ in timed]

    def only(self, ways: Collection[str]) -> Entry:
        """Without the other ways."""
        return Entry({n: k for n, k in self.knots.items() if n in ways}, self.inside, self.pace, self.doubt)


NOTHING = Entry({}, None, 0.0, 0.0)
"""Of a geometry that was not timed yet, or that the provider has no kernel for."""
