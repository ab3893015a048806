"""From stored images to what a model was trained on.

    x = (crop(resize(image)) * scale - mean) / std

in the model's colour order and layout. One schema for the flags, the TOML file and the Python API:

    layout = "nchw"                    # or nhwc: what the model takes
    scale = "1/255"                    # a number or a fraction
    mean = [0.485, 0.456, 0.406]       # after scaling, in the model's colour order
    std = [0.229, 0.224, 0.225]
    color = "rgb"                      # or bgr
    resize = 256                       # shorter side, bilinear; left out: none
    crop = 224                         # centre crop; left out: none
    label_offset = 0                   # outputs before the first class (1 for a background class)
    input = "image"                    # of several inputs the one that this is for; left out: the one of float images

Data that is no image (not 4-d) is only scaled and normalised.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from trp_onnx.data.layout import CHANNELS
from trp_onnx.errors import DataError, UsageError
from trp_onnx.files.documents import read_toml
from trp_onnx.schema import conform, converted

_AREA = 2**28
_LARGEST, _SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
Number = Annotated[float, Meta(ge=-_LARGEST, le=_LARGEST)]
Pixels = Annotated[int, Meta(ge=1, le=2**14)]


@dataclass(frozen=True)
class Preprocessing:
    """See the module.

    Raises:
        UsageError: A value is of the wrong kind or out of its range.
    """

    layout: Literal["nchw", "nhwc"] = "nchw"
    scale: Number = 1.0
    mean: Annotated[tuple[Number, ...], Meta(min_length=1)] = (0.0,)
    std: Annotated[tuple[Annotated[float, Meta(ge=_SMALLEST, le=_LARGEST)], ...], Meta(min_length=1)] = (1.0,)
    color: Literal["rgb", "bgr"] = "rgb"
    resize: Pixels | None = None
    crop: Pixels | None = None
    label_offset: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    input: str | None = None

    def __post_init__(self) -> None:
        conform(self)
        if self.scale == 0:
            raise UsageError("scale must not be 0, which makes all samples equal")

    @property
    def as_stored(self) -> bool:
        """Whether values stay what they are."""
        return (self.scale, self.mean, self.std) == (1.0, (0.0,), (1.0,))

    @property
    def leaves_alone(self) -> bool:
        """Whether nothing is asked for that would change an image."""
        return self.as_stored and self.resize is None and self.crop is None and self.color == "rgb"

    def __call__(self, batch: np.ndarray, layout: str | None = None, *, images: bool = True) -> np.ndarray:
        """Stored samples -> model input.

        Args:
            batch: (B, H, W, C) images, or any other (B, ...) array.
            layout: What the model takes, where that is known better than by the field.
            images: Whether a 4-d batch is one of images.

        Returns:
            float32, (B, C, H, W) or (B, H, W, C) for images, the shape of `batch` otherwise.

        Raises:
            DataError: Images smaller than the crop, mean and std for another number of channels, or values that float32
                does not hold.
        """
        layout = layout or self.layout
        if batch.ndim != 4 or not images:
            return self._normalise(batch, 1 if batch.ndim == 4 and layout == "nchw" else -1)
        if self.resize is not None:
            batch = np.stack([_resize(image, self.resize) for image in batch])
        if self.crop is not None:
            height, width = batch.shape[1:3]
            if min(height, width) < self.crop:
                raise DataError(f"images of {height}x{width} are smaller than the crop of {self.crop}")
            top, left = (height - self.crop) // 2, (width - self.crop) // 2
            batch = batch[:, top : top + self.crop, left : left + self.crop]
        if self.color == "bgr":
            batch = batch[..., ::-1]
        batch = self._normalise(batch, -1)
        return np.ascontiguousarray(batch.transpose(0, 3, 1, 2)) if layout == "nchw" else batch

    def _normalise(self, batch: np.ndarray, axis: int) -> np.ndarray:
        channels = batch.shape[axis]
        shape = [-1 if a == axis % batch.ndim else 1 for a in range(batch.ndim)]
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, channels):
                raise DataError(
                    f"preprocessing: {name} has {len(getattr(self, name))} values, the data {channels} channels"
                )
        mean, std = (np.asarray(values, np.float32).reshape(shape) for values in (self.mean, self.std))
        try:
            with np.errstate(over="raise"):
                normalised: np.ndarray = (batch.astype(np.float32) * np.float32(self.scale) - mean) / std
        except FloatingPointError as error:
            raise DataError(
                "the data has values that are too large for float32, as they are or after --scale"
            ) from error
        return normalised


def read_preprocessing(path: Path | None, **overrides: Any) -> Preprocessing:
    """Preprocessing from a TOML file, with whatever is given (not None) in `overrides` on top.

    Raises:
        UsageError: The file cannot be read, or a key or a value is wrong.
    """
    values = {} if path is None else read_toml(path, "the preprocessing file", UsageError)
    values |= {key: value for key, value in overrides.items() if value is not None}
    if "scale" in values:
        values["scale"] = _number(values["scale"])
    for name in ("mean", "std"):
        if name in values:
            given = values[name].split(",") if isinstance(values[name], str) else values[name]
            values[name] = [_number(one) for one in given] if isinstance(given, (list, tuple)) else [given]
    return converted(values, Preprocessing, "preprocessing")


def _number(value: object) -> object:
    """A fraction as a number; what is none stays as it is."""
    over, slash, under = value.partition("/") if isinstance(value, str) else ("", "", "")
    with suppress(ValueError, OverflowError, ZeroDivisionError):
        divisor = float(under if slash else 1)
        return float(over) / divisor if isfinite(divisor) else value
    return value


def _resize(image: np.ndarray, shorter: int) -> np.ndarray:
    from PIL import Image

    if image.dtype != np.uint8:
        raise DataError("preprocessing: resize needs 8-bit images")
    if image.shape[-1] not in CHANNELS:
        raise DataError(f"preprocessing: resize needs 1, 3 or 4 channels, the images have {image.shape[-1]}")
    height, width = image.shape[:2]
    factor = shorter / min(height, width)
    size = (round(width * factor), round(height * factor))
    if size[0] * size[1] > _AREA:
        raise DataError(f"preprocessing: images of {height}x{width} are too large at a shorter side of {shorter}")
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    resized = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
    return resized[..., None] if resized.ndim == 2 else resized
