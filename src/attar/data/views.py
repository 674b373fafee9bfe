"""Views of an image as pure functions: the DeiT recipe for training, resize and centre crop for evaluation.

A training view depends on `(seed, sample, view)` and on nothing else. Each step draws from a stream of its own,
named `(seed, "view", sample, view, step)`, so switching one step off changes no other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attar.config.distill import ViewsConfig
from attar.data.decode import Box, EncodedImage, open_image
from attar.data.randaugment import rand_augment
from attar.data.rgbx import PixelBox, Size, array_of
from attar.types import IMAGENET, unit_interval
from attar.utils.seeding import numpy_generator

TRAINING_VIEWS, EVALUATION_VIEWS = "torch-1", "pil-1"
"""Parts of every cache key that depends on pixels; to be changed whenever those of training or evaluation change."""

_ATTEMPTS = 10
_MEAN, _STD = IMAGENET
_ERASE_AREA, _ERASE_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)


@dataclass(frozen=True)
class View:
    """One view as bytes.

    Attributes:
        pixels: (3, S, S) uint8, RGB.
        erased: What random erasing puts into it: (top, left, values (3, h, w) float32), or nothing.
    """

    pixels: Tensor
    erased: tuple[int, int, Tensor] | None = None

    def values(self) -> Tensor:
        """(3, S, S) float32, RGB in [0, 1], except for the unclipped noise in an erased box."""
        values = unit_interval(self.pixels)
        if self.erased is not None:
            top, left, noise = self.erased
            values[:, top : top + noise.shape[1], left : left + noise.shape[2]] = noise
        return values


def training_view(
    image: EncodedImage, *, seed: int, sample: int, view: int, img_size: int, config: ViewsConfig
) -> View:
    """Random crop, flip, RandAugment and random erasing, as in DeiT.

    Args:
        image: The image; it is decoded after the crop is drawn, at reduced scale where that is enough.
        seed: Names the run.
        sample: Row of the image in the sorted index.
        view: Which view of that image.
        img_size: Height and width S of the view, in pixels.
        config: Which steps happen, and their ranges.

    Raises:
        DecodeError: If the pixels cannot be decoded.
    """

    def stream(step: str) -> np.random.Generator:
        return numpy_generator(seed, "view", sample, view, step)

    box = random_crop_box(image.size, stream("crop"), scale=config.crop_scale, ratio=config.crop_ratio)
    pixels = image.cut(box, (img_size, img_size))
    if config.flip and stream("flip").random() < config.flip:
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if config.randaugment:
        pixels = rand_augment(pixels, stream("randaugment"))
    erased = random_erase((img_size, img_size), stream("erase"), probability=config.erase) if config.erase else None
    return View(_planes(pixels), erased)


def _planes(pixels: Image.Image) -> Tensor:
    """(3, H, W) uint8."""
    return torch.from_numpy(np.array(array_of(pixels)[..., :3].transpose(2, 0, 1), order="C"))


@dataclass(frozen=True)
class EvaluationView:
    """How a frozen model sees an image: a pure function of image and row.

    By default the short side is resized to `img_size / crop_pct` and the centre is cropped, in one resampling. The
    geometry is that of torchvision's Resize and CenterCrop, and so are the pixels, up to rounding, unless the file is a
    JPEG large enough to be decoded at reduced scale.

    Attributes:
        img_size: Height and width S of the view, in pixels.
        crop_pct: Share of the resized short side that the crop keeps, in (0, 1]; 0.875 is 224 of 256 pixels.
        squash: Resize the whole image to a square instead, whatever its proportions.
        border: Pixels cut off on every side first (ObjectNet's photos have a red frame).
        number: Which random view to take instead (a crop of 8 to 100 % of the area, flipped half of the time, as linear
            probes train on); None for the centre.
        seed: Names the random views.
    """

    img_size: int
    crop_pct: float = 1.0
    squash: bool = False
    border: int = 0
    number: int | None = None
    seed: int = 0

    def __call__(self, image: EncodedImage, *, row: int = 0) -> Tensor:
        """(3, S, S) uint8, RGB.

        Raises:
            DecodeError: If the pixels cannot be decoded.
        """
        image = _without_border(image, self.border) if self.border else image
        pixels = image.resized(self._box(image.size, row), (self.img_size, self.img_size))
        if self.number is not None and self._stream(row, "flip").random() < 0.5:
            pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return _planes(pixels)

    def _box(self, size: Size, row: int) -> Box:
        if self.number is not None:
            return random_crop_box(size, self._stream(row, "crop"), scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        if self.squash:
            return 0, 0, *size
        return centre_crop_box(size, img_size=self.img_size, crop_pct=self.crop_pct)

    def _stream(self, row: int, step: str) -> np.random.Generator:
        return numpy_generator(self.seed, "evaluation view", row, self.number or 0, step)


def _without_border(image: EncodedImage, border: int) -> EncodedImage:
    """The image less `border` pixels on every side, which no filter sees any more."""
    width, height = image.size
    border = min(border, (min(width, height) - 1) // 2)
    inside = image.resized((border, border, width - border, height - border), (width - 2 * border, height - 2 * border))
    return open_image(np.asarray(inside), name=image.name)


def random_crop_box(
    size: Size, rng: np.random.Generator, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> PixelBox:
    """Where torchvision's RandomResizedCrop would cut: (left, top, right, bottom) in whole pixels.

    Args:
        size: (width, height) of the image, in pixels.
        rng: Its stream.
        scale: Bounds of the crop's share of the area, drawn uniformly.
        ratio: Bounds of width over height, drawn uniformly in the logarithm.
    """
    width, height = size
    for _ in range(_ATTEMPTS):
        area = rng.uniform(*scale) * width * height
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return left, top, left + w, top + h
    return _central_box(size, ratio)


def _central_box(size: Size, ratio: tuple[float, float]) -> PixelBox:
    """The largest centred box whose shape is within `ratio`; at least one pixel."""
    w, h = size
    if w / h < ratio[0]:
        h = max(1, round(w / ratio[0]))
    elif w / h > ratio[1]:
        w = max(1, round(h * ratio[1]))
    left, top = (size[0] - w) // 2, (size[1] - h) // 2
    return left, top, left + w, top + h


def centre_crop_box(size: Size, *, img_size: int, crop_pct: float) -> Box:
    """What torchvision's Resize and CenterCrop keep: (left, top, right, bottom) in pixels of the image."""
    short = round(img_size / crop_pct)
    width, height = size
    resized = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    left, top = (round((side - img_size) / 2) for side in resized)
    per_x, per_y = width / resized[0], height / resized[1]
    right, bottom = min((left + img_size) * per_x, width), min((top + img_size) * per_y, height)
    return left * per_x, top * per_y, right, bottom


# --- random erasing ----------------------------------------------------------------------------------------------


def random_erase(size: Size, rng: np.random.Generator, *, probability: float) -> tuple[int, int, Tensor] | None:
    """One random box filled with noise (timm's RandomErasing in mode `pixel`): top, left and (3, h, w) float32.

    The noise is ImageNet's mean + std * N(0, 1) for each value, unclipped: N(0, 1) after normalisation.

    Args:
        size: (width, height) of the view, in pixels.
        rng: Its stream.
        probability: How often a box is erased.
    """
    if rng.random() >= probability:
        return None
    width, height = size
    for _ in range(_ATTEMPTS):
        area = rng.uniform(*_ERASE_AREA) * height * width
        aspect = math.exp(rng.uniform(math.log(_ERASE_ASPECT[0]), math.log(_ERASE_ASPECT[1])))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return top, left, torch.from_numpy(_noise(rng, h, w))
    return None


def _noise(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    mean, std = (np.asarray(c, dtype=np.float32)[:, None, None] for c in (_MEAN, _STD))
    return mean + std * rng.standard_normal((3, height, width), dtype=np.float32)
