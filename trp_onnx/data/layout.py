"""Where the channels of a sample stand, and where the model wants them.

An array of exactly the model's shape goes in as it is. What is turned is images: image files, uint8 arrays, and arrays
that fit the model in no other way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CHANNELS = (1, 3, 4)

Like = tuple[int | None, ...]
"""Shape of a sample as a model takes it, None where it is free."""

_AXIS = {"nhwc": 2, "nchw": 0}


@dataclass(frozen=True)
class Reading:
    """How a sample is read.

    Attributes:
        stored: "nchw" or "nhwc"; None for what is no image.
        taken: What the model takes.
    """

    stored: str | None
    taken: str

    @property
    def turns(self) -> bool:
        """Whether the channels change their place."""
        return self.stored not in (None, self.taken)


def read_files(like: Like | None, layout: str) -> Reading:
    """Of image files, which are (H, W, 3) of any size."""
    other = _other(layout)
    wanted = like if like is not None and len(like) == 3 else (None, None, None)
    contradicts = wanted[_AXIS[layout]] not in (None, 3) and wanted[_AXIS[other]] in (None, 3)
    return Reading("nhwc", other if contradicts else layout)


def read_array(sample: Sequence[int], like: Like | None, layout: str, *, integers: bool, resized: bool) -> Reading:
    """Of an array.

    Args:
        sample: Shape of one stored sample.
        like: What the model takes; None where no model is known.
        layout: What the user says that it takes.
        integers: Whether the array is uint8: images.
        resized: Whether samples are resized or cropped before they go in: they are images, whose sizes say nothing.
    """
    if len(sample) != 3:
        return Reading(None, layout)
    sides = [name for name in _AXIS if sample[_AXIS[name]] in CHANNELS]
    images = integers or resized or bool(sides)
    guess = Reading((*sides, "nhwc")[0] if images else None, layout)
    if like is None or len(like) != 3:
        return guess
    if not resized and not (integers and sides) and _fits(sample, like):
        stored = layout if layout in sides else next(iter(sides), None)
        return Reading(stored, stored or layout)
    for stored in sides or _AXIS:
        for taken in (layout, _other(layout)) if sides else (layout,):
            turned = _turned(sample, stored, taken)
            channels = _AXIS[taken]
            if like[channels] in (None, turned[channels]) if resized else _fits(turned, like):
                return Reading(stored, taken)
    return guess


def _turned(sample: Sequence[int], stored: str, taken: str) -> Sequence[int]:
    if stored == taken:
        return sample
    return (sample[2], *sample[:2]) if stored == "nhwc" else (*sample[1:], sample[0])


def _fits(sample: Sequence[int], like: Like) -> bool:
    return all(want in (None, have) for have, want in zip(sample, like, strict=True))


def _other(layout: str) -> str:
    return "nhwc" if layout == "nchw" else "nchw"
