"""Random changes to training images that leave their class alone.

    crop      shift by up to an eighth of the size, black where nothing was (He et al. 2016 for CIFAR: 4 of 32)
    flip      left to right, half of the time
    resized   a random part, 25 to 100 % of the area at an aspect of 3/4 to 4/3, resized to the whole
              (Szegedy et al. 2015, with a larger smallest area: the network is trained already)
    color     brightness, contrast and saturation, each by a factor of 0.6 to 1.4

on stored images, uint8 or float, (b, H, W, C), before preprocessing. All that is random is drawn for the
whole batch at once: which process works on which part of it changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Augmentation:
    """What may happen to an image; see the module."""

    names: tuple[str, ...] = ()

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Uniform numbers for a batch: (count, 10)."""
        return rng.random((count, 10))

    def __call__(self, images: np.ndarray, choices: np.ndarray, part: np.ndarray) -> np.ndarray:
        """Augment some images of a batch; data that is no image comes back as it is.

        Args:
            images: (b, H, W, C).
            choices: From `draw`, for the whole batch.
            part: (b,) places of these images in it.
        """
        if images.ndim != 4 or not self.names:
            return images
        u = choices[part]
        if "resized" in self.names:
            images = np.stack([_resized(image, v[:4]) for image, v in zip(images, u, strict=True)])
        if "crop" in self.names:
            images = _shift(images, u[:, 4:6])
        if "flip" in self.names:
            images = np.where((u[:, 6] < 0.5)[:, None, None, None], images[:, :, ::-1], images)
        if "color" in self.names:
            images = _color(images, 0.6 + 0.8 * u[:, 7:10])
        return images


def _shift(images: np.ndarray, u: np.ndarray) -> np.ndarray:
    count, height, width, channels = images.shape
    up, left = -(-height // 8), -(-width // 8)
    padded = np.zeros((count, height + 2 * up, width + 2 * left, channels), images.dtype)
    padded[:, up : up + height, left : left + width] = images
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    rows, columns = (u * (2 * up + 1, 2 * left + 1)).astype(int).T
    shifted: np.ndarray = windows[np.arange(count), rows, columns]
    return shifted.transpose(0, 2, 3, 1)


def _resized(image: np.ndarray, u: np.ndarray) -> np.ndarray:
    from PIL import Image

    height, width = image.shape[:2]
    area = height * width * (0.25 + 0.75 * u[0])
    aspect = np.exp(np.log(4 / 3) * (2 * u[1] - 1))
    w = min(width, max(1, round(float(np.sqrt(area * aspect)))))
    h = min(height, max(1, round(float(np.sqrt(area / aspect)))))
    top, left = int(u[2] * (height - h + 1)), int(u[3] * (width - w + 1))
    part = image[top : top + h, left : left + w]
    planes = [
        np.asarray(Image.fromarray(part[..., c].astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
        for c in range(image.shape[2])
    ]
    resized = np.stack(planes, axis=-1)
    return (np.rint(resized) if image.dtype.kind in "ui" else resized).astype(image.dtype)


def _color(images: np.ndarray, factors: np.ndarray) -> np.ndarray:
    top = 255.0 if images.dtype.kind in "ui" else max(1.0, float(images.max(initial=0.0)))
    brightness, contrast, saturation = (factors[:, i, None, None, None] for i in range(3))
    x = images.astype(np.float32) * brightness
    x = (x - x.mean(axis=(1, 2, 3), keepdims=True)) * contrast + x.mean(axis=(1, 2, 3), keepdims=True)
    grey = x.mean(axis=3, keepdims=True)
    x = np.clip((x - grey) * saturation + grey, 0, top)
    changed: np.ndarray = np.rint(x) if images.dtype.kind in "ui" else x
    return changed.astype(images.dtype)
