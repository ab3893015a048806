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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trp_onnx.data.layout import CHANNELS
from trp_onnx.errors import DataError, UsageError
from trp_onnx.files.documents import read_toml

_PIXELS, _AREA = 2**14, 2**28
_LARGEST, _SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
_SHOWN = 60  # characters of a wrong value in a message


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
                raise UsageError(f"preprocessing: {name} is {' or '.join(choices)}, not '{brief(getattr(self, name))}'")
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 1 <= value <= _PIXELS):
                raise UsageError(
                    f"preprocessing: {name} is a number of pixels from 1 to {_PIXELS}, not '{brief(value)}'"
                )
        if type(self.label_offset) is not int or not 0 <= self.label_offset < 2**31:
            raise UsageError(f"preprocessing: label_offset is a whole number from 0, not '{brief(self.label_offset)}'")
        if 0.0 in self.std:
            raise UsageError("preprocessing: std must not hold 0")
        if min(self.std) < _SMALLEST:
            raise UsageError(f"preprocessing: std takes positive numbers that float32 holds, not {min(self.std):g}")
        if self.scale == 0:
            raise UsageError("preprocessing: scale must not be 0, which makes all samples equal")

    @property
    def as_stored(self) -> bool:
        """Whether values stay what they are."""
        return (self.scale, self.mean, self.std) == (1.0, (0.0,), (1.0,))

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
    known = {field.name for field in dataclasses.fields(Preprocessing)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UsageError(f"preprocessing: unknown key '{brief(unknown[0])}'; there are {', '.join(sorted(known))}")
    return Preprocessing(**values)


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError(value)
        over, slash, under = value.partition("/") if isinstance(value, str) else (value, "", 1)
        parts = float(over), float(under if slash else 1)
        number = parts[0] / parts[1]
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise UsageError(f"preprocessing: {name} takes numbers such as 0.5 or 1/255, not '{brief(value)}'") from error
    if not all(abs(part) <= _LARGEST for part in (*parts, number)):
        raise UsageError(f"preprocessing: {name} takes finite numbers that float32 holds, not '{brief(value)}'")
    return number


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    if isinstance(value, str):
        value = value.split(",")
    items = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not items:
        raise UsageError(f"preprocessing: {name} is empty")
    return tuple(_number(name, item.strip() if isinstance(item, str) else item) for item in items)


def brief(value: object) -> str:
    """A value in a message, whatever it is."""
    try:
        text = str(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, lists in lists in lists
        return f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


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
