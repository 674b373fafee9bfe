"""Whole images through a model of a fixed input size: sliding windows, mirrored too where a protocol says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.data.decode import EncodedImage
from attar.data.geometry import Geometry
from attar.data.pairs import Pair
from attar.errors import DataError
from attar.evaluation.dense.targets import Rows, Target
from attar.evaluation.sliding import slide
from attar.models.backbone import evaluating
from attar.utils.progress import track

See = Callable[[Tensor], Tensor]
"""From windows (n, 3, S, S) to maps (n, K, S, S)."""


@torch.no_grad()
def judge_part(
    model: nn.Module, pairs: Sequence[Pair], target: Target, geometry: Geometry, *, device: torch.device, name: str
) -> Rows:
    """What each image of a part contributes to the figure; images in which nothing counts are left out.

    Raises:
        DataError: If no image is left.
    """
    with evaluating(model):
        return judge_pairs(lambda window: model(window)[0], pairs, target, geometry, device=device, name=name)


@torch.no_grad()
def judge_pairs(
    see: See, pairs: Sequence[Pair], target: Target, geometry: Geometry, *, device: torch.device, name: str
) -> Rows:
    """As `judge_part`, of any function from windows to maps."""
    found = []
    for pair in track(pairs, f"judging {name}", total=len(pairs), unit="images"):
        truth = target.read(pair)
        found.append(target.rows(predict(see, pair.open(), geometry, size=truth.shape, device=device).cpu(), truth))
    rows = [row for row in found if row is not None]
    if not rows:
        raise DataError(f"none of the {len(pairs)} {name} has a pixel that counts. Check the annotations.")
    return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}


@torch.no_grad()
def predict(see: See, image: EncodedImage, geometry: Geometry, *, size: Sequence[int], device: torch.device) -> Tensor:
    """(1, K, H, W) prediction in the annotation's size, averaged over windows and, if it says so, over both."""
    pixels = read_resized(image, geometry).to(device)[None]
    found = _slide(see, pixels, geometry)
    if geometry.mirror:
        found = (found + _slide(see, pixels.flip(-1), geometry).flip(-1)) / 2
    return F.interpolate(found, size=tuple(size), mode="bilinear")


def read_resized(image: EncodedImage, geometry: Geometry) -> Tensor:
    """(3, H, W) uint8 image in the size in which windows slide over it."""
    height, width = geometry.base_size(image.size)
    return torch.from_numpy(np.array(image.resized(None, (width, height)))).permute(2, 0, 1).contiguous()


def _slide(see: See, pixels: Tensor, geometry: Geometry) -> Tensor:
    return slide(see, pixels, crop=geometry.crop, stride=geometry.stride)
