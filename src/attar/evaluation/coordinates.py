"""Coordinates in which a linear model of features is quick to fit: standardised, and turned to their principal axes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attar.errors import DataError

_CONSTANT = 1e-8  # a feature that varies less is left unscaled instead of divided by nothing
_ROWS = 4096  # features in float64 at a time: they may be a memory map


@dataclass(frozen=True)
class Coordinates:
    """x = (raw - mean) / std @ axes, and a 1 for the bias.

    An L2 penalty does not change with a rotation, and the minimum lies in the span of the images, so nothing is lost
    where axes without variance are left out. Columns are never rescaled after that.

    Attributes:
        mean, std: (D,) float64. The mean is always taken off, which a free bias makes up for.
        axes: (D, r) with orthonormal columns, or None for the features' own.
        offset: (D,) what the mean is in the units of the penalised weights; 0 where features are standardised.
        curvature: (r + 1,) mean square of each coordinate, and 1 for the bias.
    """

    mean: Tensor
    std: Tensor
    axes: Tensor | None
    offset: Tensor
    curvature: Tensor

    @classmethod
    def of(cls, features: Tensor, *, standardise: bool, rotate: bool) -> Coordinates:
        """Those of (n, D) features, which may be a memory map.

        Args:
            features: (n, D).
            standardise: Divide by the population standard deviation; a constant feature is left unscaled.
            rotate: Use principal axes.

        Raises:
            DataError: If a feature is not finite.
        """
        mean = torch.stack([rows.sum(0) for rows in _blocks(features)]).sum(0) / len(features)
        if not mean.isfinite().all():
            raise DataError(
                f"{int((~mean.isfinite()).sum())} of {len(mean)} features are not finite in some image."
                " Compute them again in float32; if that does not help, the weights are damaged."
            )
        variance = torch.stack([(rows - mean).square().sum(0) for rows in _blocks(features)]).sum(0) / len(features)
        std = variance.sqrt() if standardise else torch.ones_like(mean)
        std = torch.where(std < _CONSTANT, 1.0, std)
        offset = torch.zeros_like(mean) if standardise else mean
        one = mean.new_ones(1)
        if not rotate:
            return cls(mean, std, None, offset, torch.cat([variance / std.square(), one]))
        axes, curvature = _principal_axes(features, mean, std)
        return cls(mean, std, axes, offset, torch.cat([curvature, one]))

    def of_features(self, features: Tensor, dtype: torch.dtype) -> Tensor:
        """(n, r + 1)."""
        found = features.new_empty(len(features), len(self.curvature), dtype=dtype)
        for rows, out in zip(_blocks(features), torch.split(found, _ROWS), strict=True):
            x = (rows - self.mean) / self.std
            out[:, :-1] = x if self.axes is None else x @ self.axes
            out[:, -1] = 1
        return found

    def unrotated(self, parameters: Tensor) -> Tensor:
        """(K, D) weights, or a gradient in them, from (K, r + 1)."""
        weight = parameters[:, :-1]
        return weight if self.axes is None else weight @ self.axes.T


def _principal_axes(features: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """((D, r) axes with variance, (r,) mean squares along them)."""
    count, channels = features.shape
    rows = ((part - mean) / std for part in _blocks(features))
    if count < channels:  # first to the few axes that the images span
        span, triangle = torch.linalg.qr(torch.cat(list(rows)).T)  # (D, n), (n, n)
        square = triangle @ triangle.T
    else:
        span, square = None, _gram(rows, mean.new_zeros(channels, channels))
    values, axes = torch.linalg.eigh(square / count)
    kept = values > values[-1] * len(values) * torch.finfo(torch.float64).eps
    axes = axes[:, kept] if span is None else span @ axes[:, kept]
    return axes, values[kept]


def _blocks(features: Tensor) -> Iterator[Tensor]:
    """Rows in float64, some at a time."""
    return (rows.double() for rows in torch.split(features, _ROWS))


def _gram(rows: Iterator[Tensor], found: Tensor) -> Tensor:
    """Sum of the rows' outer products, added in place."""
    for part in rows:
        found.addmm_(part.T, part)
    return found
