"""Whether one image shows a part of another, by their pixels.

The whole of one image is looked for in the other, as a box of any place, width and height, mirrored or not: first with
normalised cross-correlation of small images over a grid of sizes and all positions (Lewis, Fast normalized
cross-correlation, 1995), then from the best boxes on by Gauss-Newton steps (Lucas and Kanade 1981, with gain and offset
left free). What decides is the correlation of details: of what is left when a blurred image is taken away. Photos of
one kind share their light and dark areas, and a box is soon found where these agree; their details do not.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attar.data.base import Rows, Source
from attar.data.decode import EncodedImage
from attar.data.loader import EvaluationDataset, evaluation_batches
from attar.utils.progress import track

PART = 0.8
"""Correlation of details from which one image is a part of the other: parts have 0.9 and more, others seldom 0.6."""

SIDE = 96
"""Width and height, in pixels, of the grey images that are compared, whatever their proportions were."""

_COARSE = 24  # pixels of the images in which every position is tried
_SIZES = (8, 10, 12, 14, 17, 20, 24)  # sides of boxes in these: Gauss-Newton finds what lies between
_LEAST_AREA = 0.17  # of a box, as a share of the image: a fifth, and a step of sizes below it
_WORTH_A_LOOK = 0.75  # correlation of the small images: parts are above 0.85, other photos of a kind seldom above
_STARTS = 4  # boxes that are looked at more closely
_PAIRS = 8  # compared at a time
_READ = 256  # pairs whose images are in memory at a time: 0.4 MB each, 200 MB at most
_FRAMES = ((32, 6), (48, 4))  # pixels of the box as it is compared, and Gauss-Newton steps in these
_NOISE = 2.0**2  # variance in grey levels that encoding again leaves: flatter than this, nothing is told
_FINE, _WIDE = 0.8, 3.0  # pixels of the frame: details are what lies between these blurs


def grey(image: EncodedImage, *, row: int = 0) -> Tensor:
    """(`SIDE`, `SIDE`) uint8: all of an image, in grey."""
    return torch.from_numpy(np.array(image.resized(None, (SIDE, SIDE)).convert("L")))


def compare(one: Source, rows: Rows, other: Source, other_rows: Rows, *, workers: int = 0) -> Tensor:
    """`sameness` of images of two sources, pair by pair; quickest where pairs of one image follow each other.

    Args:
        one: Where the one image of each pair is.
        rows: (n,) its row.
        other: Where the other one is.
        other_rows: (n,) its row.
        workers: Loader processes.

    Returns:
        (n,) float32; NaN where one of the two cannot be read.
    """
    found = [torch.empty(0)]
    pieces = zip(*(np.split(part, range(_READ, len(part), _READ)) for part in (rows, other_rows)), strict=True)
    for piece in track(pieces, "comparing pixels", total=len(rows), unit="pairs", size=lambda piece: len(piece[0])):
        (mine, is_read, where), (theirs, are_read, to) = (
            _read(source, part, workers) for source, part in zip((one, other), piece, strict=True)
        )
        both = is_read[where] & are_read[to]
        pairs = torch.stack([where, to + len(mine)], dim=1)[both]
        values = sameness(torch.cat([mine, theirs]), pairs)
        found.append(torch.full((len(both),), torch.nan).masked_scatter(both, values))
    return torch.cat(found)


def _read(source: Source, rows: Rows, workers: int) -> tuple[Tensor, Tensor, Tensor]:
    """((m, `SIDE`, `SIDE`) uint8 different images, (m,) whether each could be read, (n,) which of them rows are)."""
    different, where = np.unique(rows, return_inverse=True)
    images, is_read = torch.zeros(len(different), SIDE, SIDE, dtype=torch.uint8), torch.zeros(len(different)).bool()
    dataset = EvaluationDataset(source, different, grey)
    for batch, positions in evaluation_batches(dataset, batch_size=64, workers=workers):
        if len(positions):
            images[positions], is_read[positions] = batch, True
    return images, is_read, torch.from_numpy(where)


def sameness(images: Tensor, pairs: Tensor) -> Tensor:
    """How well one image of each pair fits into the other: about 1 where it is a part of it, 0 where it is not.

    On the CPU, 0.4 MB for each image.

    Args:
        images: (n, `SIDE`, `SIDE`) uint8, as `grey` makes them.
        pairs: (m, 2) int64, which images are compared.

    Returns:
        (m,) float32: correlation of details in the best box, either in the other; 0 where none is worth a closer look.
    """
    if not len(pairs):
        return torch.empty(0)
    prepared = _prepared(images.float())
    return torch.cat([_sameness(prepared, piece) for piece in torch.split(pairs, _PAIRS)])


def _sameness(images: _Prepared, pairs: Tensor) -> Tensor:
    small, large = torch.cat([pairs, pairs.flip(1)]).unbind(1)  # either in the other
    likeness, boxes = _boxes(images, small, large)  # (2m, 2, c), (2m, 2, c, 4)
    best, start = likeness.view(2, len(pairs), -1).transpose(0, 1).flatten(1).topk(_STARTS, dim=1)
    pair, rank = (best >= _WORTH_A_LOOK).nonzero().unbind(1)
    turn, is_mirrored, size = torch.unravel_index(start[pair, rank], (2, *boxes.shape[1:3]))
    row = turn * len(pairs) + pair
    found = _refined(images.whole[small[row], 0], images.whole[large[row], is_mirrored], boxes[row, is_mirrored, size])
    return torch.zeros(len(pairs)).scatter_reduce(0, pair, found, "amax")


@dataclass(frozen=True)
class _Prepared:
    """What the search over sizes and positions needs of n images, with s heights times s widths of boxes.

    Attributes:
        whole: (n, 2, `SIDE`, `SIDE`) float32, as it is and mirrored.
        parts: (n, s, s, P, P / 2 + 1) spectrum of the image resized to each size, of mean 0 and length 1.
        image: (n, 2, P, P / 2 + 1) spectrum of the whole at P x P pixels, P being `_COARSE`.
        scale: (n, 2, s, s, P, P) factor of a product in the box from each corner; 0 where it leaves the image.
    """

    whole: Tensor
    parts: Tensor
    image: Tensor
    scale: Tensor


def _prepared(images: Tensor) -> _Prepared:
    grid = _grid()
    part = _by_size(grid.shrink @ images @ grid.shrink.T)
    part = (part - part.sum((3, 4), keepdim=True) / grid.area).mul_(grid.inside)
    part /= (part.square().sum((3, 4), keepdim=True) + _NOISE * grid.area).sqrt_()
    both = torch.stack([images, images.flip(2)], dim=1)
    to_whole = grid.shrink[-_COARSE:]
    whole = to_whole @ both @ to_whole.T
    whole -= whole.mean((2, 3), keepdim=True)

    def sums(values: Tensor) -> Tensor:
        return _by_size(grid.window @ values @ grid.window.T)  # over the box from each corner

    spread = sums(whole.square()).sub_(sums(whole).square_() / grid.area).clamp_(min=0)
    scale = grid.fits / spread.add_(_NOISE * grid.area).sqrt_()
    return _Prepared(both, torch.fft.rfft2(part).conj().resolve_conj(), torch.fft.rfft2(whole), scale)


@dataclass(frozen=True)
class _Grid:
    """Boxes of s heights times s widths in images of P x P pixels.

    Attributes:
        shrink: (s * P, `SIDE`) weights that resize to each size; zeros below it.
        window: (s * P, P) weights that add up as many neighbours.
        area: (s, s, 1, 1) of each box, in pixels.
        inside: (s, s, P, P) which pixels a box in the corner covers.
        fits: (s, s, P, P) from which corners it stays within the image; from none if it is too small.
    """

    shrink: Tensor
    window: Tensor
    area: Tensor
    inside: Tensor
    fits: Tensor


@functools.cache
def _grid() -> _Grid:
    sizes, start = torch.tensor(_SIZES), torch.arange(_COARSE)
    area = (sizes[:, None] * sizes)[:, :, None, None].float()
    shrink = [F.pad(_filters(torch.tensor([[0.0, 1.0]]), side, SIDE)[0], (0, 0, 0, _COARSE - side)) for side in _SIZES]
    reach = start - start[:, None]
    inside, fits = start < sizes[:, None], start <= _COARSE - sizes[:, None]
    return _Grid(
        shrink=torch.cat(shrink),
        window=((reach >= 0) & (reach < sizes[:, None, None])).float().flatten(0, 1),
        area=area,
        inside=(inside[:, None, :, None] & inside[:, None, :]).float(),
        fits=fits[:, None, :, None] & fits[:, None, :] & (area >= _LEAST_AREA * _COARSE**2),
    )


def _by_size(products: Tensor) -> Tensor:
    """(..., s * P, s * P) to (..., s, s, P, P)."""
    *outer, height, width = products.shape
    split = products.view(*outer, height // _COARSE, _COARSE, width // _COARSE, _COARSE)
    return split.transpose(-3, -2).contiguous()


def _boxes(images: _Prepared, small: Tensor, large: Tensor) -> tuple[Tensor, Tensor]:
    """Where in the large image the small one is most likely, for each size c that it may have there.

    Args:
        images: All.
        small: (m,) which of them is looked for.
        large: (m,) in which.

    Returns:
        ((m, 2, c) correlation, (m, 2, c, 4) box: centre x and y, width, height, as shares of the image).
    """
    spectrum = images.image[large][:, :, None, None] * images.parts[small][:, None]
    score = torch.fft.irfft2(spectrum, s=(_COARSE, _COARSE))  # a box that fits does not meet its own other end
    likeness, where = score.mul_(images.scale[large]).flatten(2, 3).flatten(3).max(dim=3)
    corner = torch.stack([where % _COARSE, where // _COARSE], dim=3)
    extent = torch.cartesian_prod(torch.tensor(_SIZES), torch.tensor(_SIZES)).flip(1).expand_as(corner)
    return likeness, torch.cat([corner + extent / 2, extent], dim=3) / _COARSE


def _refined(small: Tensor, large: Tensor, boxes: Tensor) -> Tensor:
    """(n,) correlation of details in the best box near each given one.

    Args:
        small: (n, S, S) float32, of which all is compared.
        large: (n, S, S), of which a box is.
        boxes: (n, 4) centre x and y, width, height, as shares.
    """
    for side, steps in _FRAMES:
        target = _blurred(_cut(small, _whole(len(small)), side), _FINE)
        for _ in range(steps):
            seen = _blurred(_cut(large, boxes, side), _FINE)
            boxes = _moved(boxes, target, seen)
    seen = _blurred(_cut(large, boxes, side), _FINE)
    return _correlation(_details(target), _details(seen))


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
    """What is finer than light and dark areas."""
    return seen - _blurred(seen, _WIDE)


def _correlation(ones: Tensor, others: Tensor) -> Tensor:
    """(n,) of (n, F, F); near 0 where either is flat."""
    ones, others = (values - values.mean((1, 2), keepdim=True) for values in (ones, others))
    spread = (ones.square().mean((1, 2)) + _NOISE) * (others.square().mean((1, 2)) + _NOISE)
    return (ones * others).mean((1, 2)) / spread.sqrt()


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
