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

Data that is no image (not 4-d) is only scaled and normalised.
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from trp_onnx.errors import DataError, UsageError


@dataclass(frozen=True)
class Preprocessing:
    """See the module; every field may also be given as the text that the command line passes."""

    layout: str = "nchw"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    color: str = "rgb"
    resize: int | None = None
    crop: int | None = None
    label_offset: int = 0

    def __post_init__(self) -> None:
        for name, convert in (("scale", _number), ("mean", _numbers), ("std", _numbers)):
            object.__setattr__(self, name, convert(name, getattr(self, name)))
        for name, choices in (("layout", ("nchw", "nhwc")), ("color", ("rgb", "bgr"))):
            if getattr(self, name) not in choices:
                raise UsageError(f"preprocessing: {name} is {' or '.join(choices)}, not '{getattr(self, name)}'")
        for name in ("resize", "crop"):
            if getattr(self, name) is not None and (type(getattr(self, name)) is not int or getattr(self, name) < 1):
                raise UsageError(f"preprocessing: {name} is a number of pixels, not '{getattr(self, name)}'")
        if type(self.label_offset) is not int or self.label_offset < 0:
            raise UsageError(f"preprocessing: label_offset is a whole number from 0, not '{self.label_offset}'")
        if 0.0 in self.std:
            raise UsageError("preprocessing: std must not hold 0")

    @property
    def as_stored(self) -> bool:
        """Whether values stay what they are."""
        return (self.scale, self.mean, self.std) == (1.0, (0.0,), (1.0,))

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Stored samples -> model input.

        Args:
            batch: (B, H, W, C) images, or any other (B, ...) array.

        Returns:
            float32, (B, C, H, W) or (B, H, W, C) for images, the shape of `batch` otherwise.

        Raises:
            DataError: Images smaller than the crop, or mean and std for another number of channels.
        """
        if batch.ndim != 4:
            return self._normalise(batch)
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
        batch = self._normalise(batch)
        return np.ascontiguousarray(batch.transpose(0, 3, 1, 2)) if self.layout == "nchw" else batch

    def _normalise(self, batch: np.ndarray) -> np.ndarray:
        channels = batch.shape[-1]
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, channels):
                raise DataError(
                    f"preprocessing: {name} has {len(getattr(self, name))} values, the data {channels} channels"
                )
        x = batch.astype(np.float32) * np.float32(self.scale)
        return (x - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)


def read_preprocessing(path: Path | None, **overrides: Any) -> Preprocessing:
    """Preprocessing from a TOML file, with whatever is given (not None) in `overrides` on top.

    Raises:
        UsageError: The file cannot be read, or a key or a value is wrong.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"the preprocessing file '{path}' cannot be read: {error}") from error
    values |= {key: value for key, value in overrides.items() if value is not None}
    known = {field.name for field in dataclasses.fields(Preprocessing)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UsageError(f"preprocessing: unknown key '{unknown[0]}'; there are {', '.join(sorted(known))}")
    return Preprocessing(**values)


def _number(name: str, value: Any) -> float:
    try:
        if not isinstance(value, str):
            return float(value)
        over, slash, under = value.partition("/")
        if "/" in under:
            raise ValueError(value)
        return float(Fraction(over) / Fraction(under if slash else 1))  # 1/127.5 too, which is no Fraction's text
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UsageError(f"preprocessing: {name} takes numbers such as 0.5 or 1/255, not '{value}'") from error


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    if isinstance(value, str):
        value = value.split(",")
    items = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not items:
        raise UsageError(f"preprocessing: {name} is empty")
    return tuple(_number(name, item.strip() if isinstance(item, str) else item) for item in items)


def _resize(image: np.ndarray, shorter: int) -> np.ndarray:
    from PIL import Image

    if image.dtype != np.uint8:
        raise DataError("preprocessing: resize needs 8-bit images")
    height, width = image.shape[:2]
    factor = shorter / min(height, width)
    size = (round(width * factor), round(height * factor))
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    resized = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
    return resized[..., None] if resized.ndim == 2 else resized
