"""Whether one image shows a part of another, by their pixels.

The whole of one image is looked for in the other, as a box of any place, width and height, mirrored or not: first with
normalised cross-correlation of small images over a grid of sizes and all positions (Lewis, Fast normalized
cross-correlation, 1995), then from the best boxes on by Gauss-Newton steps (Lucas and Kanade 1981, with gain and offset
left free). What decides is the correlation of details: of what is left when a blurred image is taken away. Photos of
one kind share their light and dark areas, and a box is soon found where these agree; their details do not.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attar.data.decode import EncodedImage

SIDE = 96
"""Width and height, in pixels, of the grey images that are compared, whatever their proportions were."""

_COARSE = 32  # pixels of the images in which every position is tried
_SIZES = (11, 12, 13, 15, 16, 18, 20, 22, 24, 26, 29, 32)  # sides of boxes in these: steps of a tenth
_LEAST_AREA = 0.17  # of a box, as a share of the image: a fifth, and a step of sizes below it
_STARTS = 6  # boxes that are looked at more closely, of each way round
_FRAMES = ((32, 6), (48, 4))  # pixels of the box as it is compared, and Gauss-Newton steps in these
_NOISE = 2.0**2  # variance in grey levels that encoding again leaves: flatter than this, nothing is told
_FINE, _WIDE = 0.8, 3.0  # pixels of the frame: details are what lies between these blurs


def grey(image: EncodedImage, *, row: int = 0) -> Tensor:
    """(`SIDE`, `SIDE`) uint8: all of an image, in grey."""
    return torch.from_numpy(np.array(image.resized(None, (SIDE, SIDE)).convert("L")))


def sameness(ones: Tensor, others: Tensor) -> Tensor:
    """How well one image of each pair fits into the other: 1 where it is a part of it, near 0 where it is not.

    Args:
        ones: (n, `SIDE`, `SIDE`) uint8, as `grey` makes them.
        others: Likewise.

    Returns:
        (n,) float32, correlation of details in the best box of either way round.
    """
    ones, others = ones.float(), others.float()
    small, large = torch.cat([ones, others]), torch.cat([others, ones])
    large = torch.stack([large, large.flip(2)], dim=1)  # (2n, 2, S, S): as it is, and mirrored
    boxes, side = _starts(small, large)  # (2n, k, 4), (2n, k)
    large = large.gather(1, side[:, :, None, None].expand(-1, -1, SIDE, SIDE))
    small = small[:, None].expand_as(large)
    found = _refined(small.flatten(0, 1), large.flatten(0, 1), boxes.flatten(0, 1))
    return found.view(2, len(ones), -1).amax(dim=(0, 2))


@functools.cache
def _combinations() -> tuple[Tensor, Tensor]:
    """((c,) row, (c,) column) among `_SIZES` of the boxes that are large enough."""
    sizes = torch.tensor(_SIZES) / _COARSE
    return (sizes[:, None] * sizes >= _LEAST_AREA).nonzero().unbind(1)  # type: ignore[return-value]


def _starts(small: Tensor, large: Tensor) -> tuple[Tensor, Tensor]:
    """((n, k, 4) boxes, (n, k) which of the two) in which small and large correlate best.

    Args:
        small: (n, S, S) float32.
        large: (n, 2, S, S).
    """
    tall, wide = _combinations()
    sizes = torch.tensor(_SIZES)
    shrink = torch.stack([F.pad(_filters(torch.tensor([[0.0, 1.0]]), size, SIDE)[0], (0, 0, 0, _COARSE - size)) for size in _SIZES])
    inside = (torch.arange(_COARSE) < sizes[:, None]).float()  # (s, 32)
    mask = inside[tall][:, :, None] * inside[wide][:, None, :]  # (c, 32, 32)
    area = (sizes[tall] * sizes[wide]).float()
    rows = shrink @ small[:, None]  # (n, s, 32, S)
    template = rows[:, tall] @ shrink[wide].mT  # (n, c, 32, 32)
    template = (template - template.sum((2, 3), keepdim=True) / area[:, None, None]) * mask
    template = template / (template.square().sum((2, 3), keepdim=True) + _NOISE * area[:, None, None]).sqrt()

    image = shrink[-1] @ large @ shrink[-1].mT  # (n, 2, 32, 32)
    image = image - image.mean((2, 3), keepdim=True)
    spectrum = torch.fft.rfft2(image)[:, :, None] * torch.fft.rfft2(template).conj()[:, None]
    product = torch.fft.irfft2(spectrum, s=(_COARSE, _COARSE))  # (n, 2, c, 32, 32)
    start = torch.arange(_COARSE)
    reach = start - start[:, None]
    window = ((reach >= 0) & (reach < sizes[:, None, None])).float()  # (s, 32, 32): sums of size neighbours

    def sums(values: Tensor) -> Tensor:
        return (window @ values[:, :, None])[:, :, tall] @ window[wide].mT

    spread = sums(image.square()) - sums(image).square() / area[:, None, None]
    score = product / (spread.clamp(min=0) + _NOISE * area[:, None, None]).sqrt()
    fits = start <= _COARSE - sizes[:, None]
    fits = fits[tall][:, :, None] & fits[wide][:, None, :]
    best, where = score.masked_fill(~fits, -1).flatten(3).max(dim=3)  # (n, 2, c)
    _, order = best.flatten(1).topk(_STARTS, dim=1)
    combination, where = order % len(tall), where.flatten(1).gather(1, order)
    height, width = sizes[tall[combination]], sizes[wide[combination]]
    box = torch.stack([where % _COARSE, where // _COARSE, width, height], dim=2).float() / _COARSE
    box[..., :2] += box[..., 2:] / 2
    return box, order // len(tall)


def _refined(small: Tensor, large: Tensor, boxes: Tensor) -> Tensor:
    """(n,) correlation of details in the best box near each given one.

    Args:
        small: (n, S, S) float32, of which all is compared.
        large: (n, S, S), of which a box is.
        boxes: (n, 4) centre x and y, width, height, as shares.
    """
    best = small.new_full((len(small),), -1.0)
    for side, steps in _FRAMES:
        target = _blurred(_cut(small, _whole(len(small)), side), _FINE)
        for _ in range(steps):
            seen = _blurred(_cut(large, boxes, side), _FINE)
            boxes = _moved(boxes, target, seen)
    side = _FRAMES[-1][0]
    seen = _blurred(_cut(large, boxes, side), _FINE)
    return torch.maximum(best, _correlation(_details(target), _details(seen)))


def _moved(boxes: Tensor, target: Tensor, seen: Tensor) -> Tensor:
    """One Gauss-Newton step of the boxes towards what shows the target."""
    side = target.shape[-1]
    target = target - target.mean((1, 2), keepdim=True)
    seen = seen - seen.mean((1, 2), keepdim=True)
    gain = ((target * seen).sum((1, 2)) / (seen.square().sum((1, 2)) + 1)).clamp(0.2, 5)[:, None, None]
    down, across = torch.gradient(seen, dim=(1, 2))
    place = torch.arange(side) - (side - 1) / 2
    slopes = torch.stack([across, down, across * place, down * place[:, None]], dim=1).flatten(2)  # (n, 4, F * F)
    slopes = (slopes - slopes.mean(2, keepdim=True)) * gain
    scale = torch.tensor([1.0, 1.0, side / 4, side / 4])[:, None]
    slopes = slopes / scale
    square = slopes @ slopes.mT
    damping = 1e-3 * square.diagonal(dim1=1, dim2=2).mean(1) + 1e-3
    square = square + damping[:, None, None] * torch.eye(4)
    step = torch.linalg.solve(square, slopes @ (target - gain * seen).flatten(1)[:, :, None])[:, :, 0]
    step = step.clamp(-2, 2) / scale[:, 0]  # pixels, and shares of a pixel for each pixel from the centre
    size = (boxes[:, 2:] * (1 + step[:, 2:])).clamp(0.25, 1)
    centre = boxes[:, :2] + step[:, :2] * boxes[:, 2:] / side
    return torch.cat([torch.minimum(torch.maximum(centre, size / 2), 1 - size / 2), size], dim=1)


def _details(seen: Tensor) -> Tensor:
    return seen - _blurred(seen, _WIDE)


def _correlation(ones: Tensor, others: Tensor) -> Tensor:
    """(n,) of (n, F, F); near 0 where either is flat."""
    ones, others = (values - values.mean((1, 2), keepdim=True) for values in (ones, others))
    lengths = ((values.square().mean((1, 2)) + _NOISE).sqrt() for values in (ones, others))
    return (ones * others).mean((1, 2)) / functools.reduce(torch.mul, lengths)


def _cut(images: Tensor, boxes: Tensor, side: int) -> Tensor:
    """(n, side, side): boxes of images, resized with a triangle as wide as the step, as antialiased bilinear is."""
    corner, size = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]
    across = _filters(torch.stack([corner[:, 0], size[:, 0]], dim=1), side, images.shape[2])
    down = _filters(torch.stack([corner[:, 1], size[:, 1]], dim=1), side, images.shape[1])
    return down @ images @ across.mT


def _whole(count: int) -> Tensor:
    return torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(count, 4)


def _filters(spans: Tensor, side: int, length: int) -> Tensor:
    """(n, side, length) weights of `length` pixels in each of `side` that show a span: start and extent, as shares."""
    step = spans[:, 1] * length / side
    centre = spans[:, 0, None] * length + (torch.arange(side) + 0.5) * step[:, None]  # (n, side)
    distance = (centre[:, :, None] - (torch.arange(length) + 0.5)).abs() / step.clamp(min=1)[:, None, None]
    weights = (1 - distance).clamp(min=0)
    return weights / weights.sum(2, keepdim=True)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    kernel = _gaussian(images.shape[-1], sigma)
    return kernel @ images @ kernel.mT


@functools.cache
def _gaussian(side: int, sigma: float) -> Tensor:
    """(side, side) weights of a Gaussian about each pixel; each row sums to 1, also at the edge."""
    place = torch.arange(side)
    weights = torch.exp(-(place - place[:, None]).square() / (2 * sigma**2))
    return weights / weights.sum(1, keepdim=True)
