"""Image files to 8-bit RGB arrays."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from trp_onnx.errors import DataError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

_STEP = 257  # from 16 bits to 8: 65535 / 255


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder by name, in order; pipes, sockets and devices are none.

    Raises:
        DataError: The folder cannot be read.
    """
    try:
        return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    except OSError as error:
        raise DataError(f"the folder '{folder}' cannot be read: {error.strerror}") from error


def read_image(path: Path) -> np.ndarray:
    """An image, (H, W, 3) uint8: 16 bits are brought to 8, transparency is dropped, of an animation the first frame.

    Raises:
        DataError: It is no image, damaged, too large, or of floats.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return _to_rgb(picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"'{path}' is refused: images of more than {Image.MAX_IMAGE_PIXELS:,} pixels are not read"
        ) from error
    except DataError as error:
        raise DataError(f"'{path}' {error}") from error
    except Exception as error:  # damaged files raise anything
        raise DataError(f"'{path}' cannot be read as an image") from error


def _to_rgb(picture: object) -> np.ndarray:
    from PIL import Image

    assert isinstance(picture, Image.Image)
    if picture.mode == "F":
        raise DataError("holds floats, which no range is known of: save it in an .npz")
    if not picture.mode.startswith("I"):
        return np.asarray(picture.convert("RGB"))
    grey = np.asarray(picture).astype(np.int64)
    if grey.min() < 0 or grey.max() > 0xFFFF:
        raise DataError("holds values beyond 16 bits: save it in an .npz")
    return np.repeat(((grey + _STEP // 2) // _STEP).astype(np.uint8)[..., None], 3, axis=2)
