"""Pillow's RGB pixels as arrays and back: four bytes each, as it keeps them, of which the last means nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

PixelBox = tuple[int, int, int, int]
Size = tuple[int, int]

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


def part_of(image: Image.Image, box: PixelBox) -> NDArray[np.uint8]:
    """(h, w, 4) uint8, a copy: of the box alone, since that of a large image would take longer than all the rest.

    Args:
        image: In mode RGB or L.
        box: (left, top, right, bottom) in pixels.
    """
    if image.mode != "RGB" or image.width * image.height > IN_ONE_PIECE:
        return array_of(image.crop(box).convert("RGB")).copy()
    left, top, right, bottom = box
    return array_of(image)[top:bottom, left:right].copy()


def scaled(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Antialiased bicubic resize of (H, W, 4) uint8 to (width, height), within two levels of Pillow's, rows first.

    Pillow clips and rounds between the passes as torch does, but from version 13 on picks their order by the shape.
    """
    found = torch.empty(size[1], size[0], 4, dtype=torch.uint8)
    source, target = _channels_last(torch.from_numpy(pixels)), _channels_last(found)
    # what interpolate(mode="bicubic", antialias=True) calls; but that has no `out`, and what it makes is planes, which
    # take as long again to become pixels
    torch.ops.aten._upsample_bicubic2d_aa.out(source, [size[1], size[0]], False, None, None, out=target)
    return found.numpy()


def _channels_last(pixels: torch.Tensor) -> torch.Tensor:
    """(1, C, H, W) of (H, W, C), in the memory that they are in."""
    return pixels.permute(2, 0, 1)[None]
