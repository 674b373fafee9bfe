"""Pillow's RGB pixels as arrays and back: four bytes each, as it keeps them, of which the last means nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

IN_ONE_PIECE = 4_000_000
"""Pixels; a larger image may lie in several pieces of memory, of 16 MB each."""


def array_of(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W, 4) uint8 of an image in mode RGB: its own memory where Pillow lends it, so nothing to write to.

    It does from version 11.2 on, for images of `IN_ONE_PIECE` pixels at most.

    Example:
        >>> array_of(Image.new("RGB", (5, 2), (7, 8, 9)))[1, 4, :3].tolist()
        [7, 8, 9]
    """
    assert image.mode == "RGB", f"mode {image.mode} has no four bytes a pixel"
    return np.frombuffer(_lent(image), dtype=np.uint8).reshape(image.height, image.width, 4)


def _lent(image: Image.Image) -> Any:
    if hasattr(image, "__arrow_c_array__"):
        try:
            return pa.array(image).flatten().buffers()[1]
        except ValueError:  # in several pieces
            pass
    return image.tobytes("raw", "RGBX")


def image_of(pixels: NDArray[np.uint8]) -> Image.Image:
    """An image in mode RGB with a copy of these pixels, (H, W, 4) uint8 in one piece."""
    return Image.frombytes("RGB", (pixels.shape[1], pixels.shape[0]), pixels.data, "raw", "RGBX")
