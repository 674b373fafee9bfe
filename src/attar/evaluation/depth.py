"""Depth: errors of each image as NYUv2 is judged, and the losses of its heads (spec evaluation §1.6, §6.4).

Errors are taken over the valid pixels of each image and then averaged over images. They travel as one value an image,
so that batches and ranks are put together by `torch.cat` and an interval can draw images again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attar.errors import DataError, ShapeError

NYU_RANGE = (1e-3, 10.0)
"""Metres between which NYUv2's depth counts."""

_EIGEN = (45, 471, 41, 601)  # rows and columns of a 480 x 640 image (Eigen et al. 2014)
_TINY = 1e-12  # under a root of a loss, whose slope is infinite at 0


def eigen_crop(height: int, width: int) -> Tensor:
    """(H, W) bool, true where NYUv2 is judged: rows 45 to 470, columns 41 to 600 of 480 x 640, in other sizes likewise.

    Other sizes are scaled and rounded down as DINOv3's evaluation does.
    """
    top, bottom = (int(row / 480 * height) for row in _EIGEN[:2])
    left, right = (int(column / 640 * width) for column in _EIGEN[2:])
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    return inside


def valid_depth(target: Tensor, *, between: tuple[float, float] = NYU_RANGE, eigen: bool = True) -> Tensor:
    """Where a depth map counts: strictly between two depths, and inside the Eigen crop.

    Args:
        target: (..., H, W) metres, 0 where the sensor saw nothing.
        between: Nearest and farthest depth in metres, both excluded.
        eigen: Leave out the border as in NYUv2's protocol.

    Returns:
        Bool of the target's shape.
    """
    valid = (target > between[0]) & (target < between[1])
    return valid & eigen_crop(*target.shape[-2:]).to(target.device) if eigen else valid


def depth_errors(
    predicted: Tensor, target: Tensor, *, valid: Tensor, clamp: tuple[float, float] | None = None
) -> dict[str, Tensor]:
    """Errors of each image, by the names of `attar.evaluation.metrics.METRICS`.

    `delta1` to `delta3` are shares of pixels whose ratio, the larger over the smaller, is below 1.25, its square or its
    cube; `rmse` is in metres; `rmse_log` and `log10` in natural and decimal logarithms. With g = ln target - ln
    predicted, `silog` is 100 sqrt(mean g^2 - (mean g)^2) and `silog_half` is sqrt(mean g^2 - (mean g)^2 / 2).

    Args:
        predicted: (B, H, W) metres.
        target: (B, H, W) metres.
        valid: (B, H, W) bool, which pixels count.
        clamp: Bring predictions between these depths first, as DINOv3 does and Proteus does not.

    Returns:
        Each (B,) float64.

    Raises:
        DataError: If an image has no valid pixel, or a prediction there is not a positive number.
        ShapeError: If the shapes differ.
    """
    predicted = predicted if clamp is None else predicted.clamp(*clamp)
    _check(predicted, target, valid)
    p, t = (torch.where(valid, depth, 1.0).double() for depth in (predicted, target))
    ratio, difference, g = torch.maximum(t / p, p / t), t - p, t.log() - p.log()

    def mean(values: Tensor) -> Tensor:
        return torch.where(valid, values, 0.0).sum((1, 2)) / valid.sum((1, 2))

    shift, square = mean(g), mean(g.square())
    return {
        **{f"delta{k}": mean((ratio < 1.25**k).double()) for k in (1, 2, 3)},
        "rmse": mean(difference.square()).sqrt(),
        "abs_rel": mean(difference.abs() / t),
        "sq_rel": mean(difference.square() / t),
        "rmse_log": square.sqrt(),
        "log10": mean((t.log10() - p.log10()).abs()),
        "silog": 100 * (square - shift.square()).clamp(min=0).sqrt(),  # a hair below 0 for a constant ratio
        "silog_half": (square - shift.square() / 2).sqrt(),
    }


def silog_loss(predicted: Tensor, target: Tensor, *, eps: float = 1e-6) -> Tensor:
    """SiLog loss, the mean over images of sqrt(mean g^2 - (mean g)^2 / 2) with g = ln target - ln predicted (Proteus).

    Args:
        predicted: (B, H, W), brought to `eps` at least.
        target: (B, H, W); pixels of `eps` or less do not count.
        eps: Proteus' default.

    Returns:
        Scalar float32.

    Raises:
        DataError: If an image has no valid pixel.
    """
    valid = target > eps
    _check(predicted, target, valid, is_loss=True)
    g = torch.where(valid, target, 1.0).float().log() - torch.where(valid, predicted, 1.0).float().clamp(min=eps).log()
    count = valid.sum((1, 2))
    shift, square = g.sum((1, 2)) / count, g.square().sum((1, 2)) / count
    return (square - shift.square() / 2).clamp(min=_TINY).sqrt().mean()


def sig_loss(predicted: Tensor, target: Tensor, *, eps: float = 1e-3, is_warming_up: bool = False) -> Tensor:
    """SigLog loss, sqrt(var g + 0.15 (mean g)^2) over all valid pixels of the batch (DINOv2's dense configurations).

    Here g = ln(predicted + eps) - ln(target + eps), and the variance is the unbiased one.

    Args:
        predicted: (B, H, W), not negative.
        target: (B, H, W); pixels of 0 do not count.
        eps: DINOv2's default.
        is_warming_up: Use the term of the mean alone, as in the first 100 steps.

    Returns:
        Scalar float32.

    Raises:
        DataError: If an image has no valid pixel.
    """
    valid = target > 0
    _check(predicted, target, valid, is_loss=True)
    g = (predicted[valid].float() + eps).log() - (target[valid].float() + eps).log()
    shift = 0.15 * g.mean().square()
    return (shift if is_warming_up else shift + g.var()).clamp(min=_TINY).sqrt()


def gradient_loss(predicted: Tensor, target: Tensor, *, eps: float = 1e-3) -> Tensor:
    """How much the slopes of log depth differ: the mean of |dx g| + |dy g| over valid pixels, summed over four scales.

    Here g = ln(predicted + eps) - ln(target + eps), taken at every first, second, fourth and eighth pixel (Li and
    Snavely 2018, equation 5). A factor on all depths costs nothing.

    Args:
        predicted: (B, H, W), not negative.
        target: (B, H, W); pixels of 0, and slopes that touch one, do not count.
        eps: DINOv2's default.

    Returns:
        Scalar float32.
    """
    valid = target > 0
    g = torch.where(valid, (predicted.float() + eps).log() - (target.float() + eps).log(), 0.0)
    loss = predicted.new_zeros(())
    for step in (1, 2, 4, 8):
        coarse, counts = g[:, ::step, ::step], valid[:, ::step, ::step]
        rises = [coarse.diff(dim=dim).abs() * (counts.narrow(dim, 1, counts.shape[dim] - 1)) for dim in (1, 2)]
        both = [counts.narrow(dim, 0, counts.shape[dim] - 1) for dim in (1, 2)]
        total = sum((rise * is_there).sum() for rise, is_there in zip(rises, both, strict=True))
        loss = loss + total / counts.sum().clamp(min=1)
    return loss


def _check(predicted: Tensor, target: Tensor, valid: Tensor, *, is_loss: bool = False) -> None:
    if not predicted.shape == target.shape == valid.shape or target.ndim != 3:
        shapes = ", ".join(str(tuple(depth.shape)) for depth in (predicted, target, valid))
        raise ShapeError(f"predicted, target and valid depth are {shapes}; all three must be (B, H, W).")
    empty = ~valid.flatten(1).any(1)
    if empty.any():
        raise DataError(f"image {int(empty.nonzero()[0])} of the batch has no valid depth. Leave it out.")
    if not is_loss and not (predicted[valid] > 0).all():
        raise DataError("a predicted depth is not a positive number, so that it has no logarithm. Set clamp.")
