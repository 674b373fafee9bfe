"""RandAugment `rand-m9-mstd0.5-inc1`, as timm's create_transform sets it up with bicubic interpolation.

Pillow takes ten to twenty times as long for an affine operation, and for sharpness, as for the others. Shears and
translations move whole rows or columns, so that four pixels make one and not sixteen: they are computed here, and so is
sharpness. Pixels are Pillow's, to the last bit but for single levels where float32 rounds otherwise than its doubles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from attar.data.rgbx import array_of, image_of
from attar.types import IMAGENET

_MAGNITUDE, _MAGNITUDE_STD, _MAX_LEVEL = 9.0, 0.5, 10.0
_NUM_OPERATIONS, _OPERATION_PROBABILITY = 2, 0.5
_FILL = tuple(round(255 * mean) for mean in IMAGENET[0])
_FILL_CELL = np.array([*_FILL, 255], dtype=np.uint8).view(np.uint32)[0]

Operation = Callable[[Image.Image, float, int], Image.Image]


def rand_augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Two of the 15 operations, with replacement, each with probability 0.5 and at a level N(9, 0.5) within [0, 10]."""
    for _ in range(_NUM_OPERATIONS):
        name = _NAMES[int(rng.integers(len(_NAMES)))]
        if rng.random() < _OPERATION_PROBABILITY:
            level = min(max(rng.normal(_MAGNITUDE, _MAGNITUDE_STD), 0.0), _MAX_LEVEL)
            image = OPERATIONS[name](image, level, 1 if rng.random() < 0.5 else -1)
    return image


def _signed(level: float, reach: float, sign: int) -> float:
    return sign * (level / _MAX_LEVEL) * reach


def _factor(level: float, sign: int) -> float:
    """Of a blend away from or towards a degenerate image, in [0.1, 1.9]; 1 is no change."""
    return max(0.1, 1.0 + _signed(level, 0.9, sign))


# --- colours -----------------------------------------------------------------------------------------------------


def _enhanced(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, level, sign: enhancer(image).enhance(_factor(level, sign))


def _mapped(image: Image.Image, value: Callable[[int], int]) -> Image.Image:
    return image.point([value(v) for v in range(256)] * 3)


def _posterized(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Keep 4 bits at level 0 and none at level 10, which Pillow's own posterize refuses (and timm with it)."""
    bits = 4 - int(level / _MAX_LEVEL * 4)
    return _mapped(image, lambda v: v & (0xFF00 >> bits))


def _solarized_above(image: Image.Image, level: float, sign: int) -> Image.Image:
    return ImageOps.solarize(image, 256 - int(level / _MAX_LEVEL * 256))


def _brightened_below(image: Image.Image, level: float, sign: int) -> Image.Image:
    added = int(level / _MAX_LEVEL * 110)
    return _mapped(image, lambda v: min(255, v + added) if v < 128 else v)


def _sharpened(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Pillow's Sharpness: away from or towards the mean of nine pixels in which the middle one counts five times."""
    if min(image.size) < 3:  # all rim
        return image
    pixels = array_of(image).copy()  # (H, W, 4)
    values = torch.from_numpy(pixels).short()
    sums = values[:-2] + values[1:-1] + values[2:]
    sums = sums[:, :-2] + sums[:, 1:-1] + sums[:, 2:]
    inside = values[1:-1, 1:-1]
    smooth = sums.add_(inside, alpha=4).float().mul_(1 / 13).add_(0.5).floor_()  # never near a whole number: 13 is odd
    blend = (inside - smooth).mul_(_factor(level, sign)).add_(smooth)
    pixels[1:-1, 1:-1] = _bytes(blend)  # Pillow leaves the rim as it is
    return image_of(pixels)


# --- places ------------------------------------------------------------------------------------------------------


def _rotated(image: Image.Image, level: float, sign: int) -> Image.Image:
    return image.rotate(_signed(level, 30.0, sign), resample=Image.Resampling.BICUBIC, fillcolor=_FILL)


def _sheared(image: Image.Image, level: float, sign: int, *, axis: int) -> Image.Image:
    lines = image.size[axis]  # rows that move along x, columns that move along y
    return _moved(image, _signed(level, 0.3, sign) * (np.arange(lines) + 0.5), axis=axis)


def _translated(image: Image.Image, level: float, sign: int, *, axis: int) -> Image.Image:
    lines, length = image.size[axis], image.size[1 - axis]
    return _moved(image, np.full(lines, _signed(level, 0.45, sign) * length), axis=axis)


def _moved(image: Image.Image, shifts: NDArray[np.floating[Any]], *, axis: int) -> Image.Image:
    """Each row (axis 1) or column (axis 0) shows what lies `shifts` pixels further on, and the fill beyond the image.

    Pillow's affine transform with its bicubic filter (a = -1), whose other direction falls on whole pixels here.
    """
    cells = array_of(image).view(np.uint32)[..., 0]  # (H, W), a pixel in each
    length = cells.shape[axis]
    whole = np.floor(shifts)
    around = _gathered(cells, whole.astype(np.int64), axis=axis)
    moved = _bicubic(torch.from_numpy(around.view(np.uint8)), shifts - whole, axis=axis)
    found = moved.view(np.uint32)[..., 0]
    middles = np.arange(length) + 0.5
    places = middles[:, None] + shifts if axis == 0 else middles + shifts[:, None]
    found[(places < 0) | (places >= length)] = _FILL_CELL
    return image_of(moved)


def _gathered(cells: NDArray[np.uint32], whole: NDArray[np.int64], *, axis: int) -> NDArray[np.uint32]:
    """(H + 3, W, 1) or (H, W + 3, 1): from the pixel before each line's first to the two after its last, moved."""
    length = cells.shape[axis]
    steps = np.arange(-1, length + 2)
    if whole[0] == whole[-1]:
        same: NDArray[np.uint32] = cells.take(np.clip(steps + whole[0], 0, length - 1), axis=axis)
        return same[..., None]
    if axis == 0:
        places = np.clip(steps[:, None] + whole, 0, length - 1) * cells.shape[1] + np.arange(cells.shape[1])
    else:
        places = np.clip(steps + whole[:, None], 0, length - 1) + np.arange(len(cells))[:, None] * length
    found: NDArray[np.uint32] = cells.reshape(-1).take(places)
    return found[..., None]


def _bicubic(around: Tensor, fractions: NDArray[np.floating[Any]], *, axis: int) -> NDArray[np.uint8]:
    """Between the second and the third of four neighbours along an axis: (H, W, 4) uint8.

    Args:
        around: (H + 3, W, 4) or (H, W + 3, 4) uint8.
        fractions: How far between, in [0, 1), of each line.
    """
    length = around.shape[axis] - 3
    values = around.float()
    step = values.narrow(axis, 1, length + 2) - values.narrow(axis, 0, length + 2)
    d = torch.from_numpy(fractions).float()
    d = d[:, None, None] if axis == 1 else d[:, None].expand(-1, 4)  # (H, 1, 1), or (W, 4)
    found = values.narrow(axis, 1, length).contiguous()
    # Keys' polynomials for a = -1, of the steps between neighbours: exact where these are equal
    found.addcmul_(step.narrow(axis, 0, length), d - 2 * d**2 + d**3)
    found.addcmul_(step.narrow(axis, 1, length), d)
    found.addcmul_(step.narrow(axis, 2, length), d**3 - d**2)
    return _bytes(found)


def _bytes(values: Tensor) -> NDArray[np.uint8]:
    """As Pillow makes floats to bytes: what lies outside is clipped, and fractions are cut off."""
    return values.clamp_(0, 255).numpy().astype(np.uint8)  # torch's own cast takes seven times as long


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, level, sign: ImageOps.autocontrast(image),
    "Equalize": lambda image, level, sign: ImageOps.equalize(image),
    "Invert": lambda image, level, sign: ImageOps.invert(image),
    "Rotate": _rotated,
    "PosterizeIncreasing": _posterized,
    "SolarizeIncreasing": _solarized_above,
    "SolarizeAdd": _brightened_below,
    "ColorIncreasing": _enhanced(ImageEnhance.Color),
    "ContrastIncreasing": _enhanced(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhanced(ImageEnhance.Brightness),
    "SharpnessIncreasing": _sharpened,
    "ShearX": lambda image, level, sign: _sheared(image, level, sign, axis=1),
    "ShearY": lambda image, level, sign: _sheared(image, level, sign, axis=0),
    "TranslateXRel": lambda image, level, sign: _translated(image, level, sign, axis=1),
    "TranslateYRel": lambda image, level, sign: _translated(image, level, sign, axis=0),
}
"""timm's 15 increasing operations on an RGB image: `OPERATIONS[name](image, level in [0, 10], sign)`."""
_NAMES = tuple(OPERATIONS)
