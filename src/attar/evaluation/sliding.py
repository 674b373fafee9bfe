"""Sliding windows over an image that is larger than a backbone's input (spec evaluation §1.5; mmsegmentation)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attar.errors import ConfigError, ShapeError

Window = tuple[slice, slice]
"""Rows and columns of an image."""

_PIXELS = 2**21  # that a model is shown at once: 512 windows of 64 px, 7 of 518 px


def windows(height: int, width: int, *, crop: int, stride: int) -> list[Window]:
    """Windows that cover an image, row by row; the last of a row or column is shifted back to fit.

    An image that is smaller than a window in one direction is taken whole in that direction.

    Args:
        height: Of the image in pixels.
        width: Likewise.
        crop: Side of a window in pixels.
        stride: Pixels from one window to the next.

    Raises:
        ConfigError: If the stride would leave pixels out.

    Example:
        >>> [columns.start for _, columns in windows(518, 690, crop=518, stride=345)]
        [0, 172]
    """
    if not 1 <= stride <= crop:
        raise ConfigError(f"windows of {crop} px every {stride} px leave pixels out. Give a stride from 1 to {crop}.")
    columns = _starts(width, crop, stride)
    return [
        (slice(top, min(top + crop, height)), slice(left, min(left + crop, width)))
        for top in _starts(height, crop, stride)
        for left in columns
    ]


def slide(predict: Callable[[Tensor], Tensor], images: Tensor, *, crop: int, stride: int) -> Tensor:
    """What `predict` says of each pixel, averaged over the windows that cover it.

    Args:
        predict: From windows (n, C, h, w), several at a time, to (n, K, h, w): logits, or depth with K = 1.
        images: (B, C, H, W).
        crop: Side of a window in pixels.
        stride: Pixels from one window to the next.

    Returns:
        (B, K, H, W) float32. Logits are averaged, not shares, as in mmsegmentation.

    Raises:
        ShapeError: If `predict` answers in another size than it was asked in.
    """
    height, width = images.shape[-2:]
    places = windows(height, width, crop=crop, stride=stride)  # all of one size
    at_a_time = max(1, _PIXELS // (len(images) * min(crop, height) * min(crop, width)))
    total: Tensor | None = None
    count = torch.zeros(height, width, device=images.device)
    for start in range(0, len(places), at_a_time):
        some = places[start : start + at_a_time]
        parts = torch.cat([images[..., rows, columns] for rows, columns in some])
        found = predict(parts).float()
        if found.shape[-2:] != parts.shape[-2:]:
            raise ShapeError(
                f"a window of {tuple(parts.shape[-2:])} px was answered with a map of {tuple(found.shape[-2:])}."
                " Resize the logits to the window first."
            )
        if total is None:
            total = found.new_zeros(len(images), found.shape[1], height, width)
        for (rows, columns), one in zip(some, torch.split(found, len(images)), strict=True):
            total[..., rows, columns] += one
            count[rows, columns] += 1
    assert total is not None, "an image without a window"
    return total / count


def _starts(length: int, crop: int, stride: int) -> list[int]:
    steps = max(length - crop + stride - 1, 0) // stride + 1
    return [max(min(step * stride + crop, length) - crop, 0) for step in range(steps)]
