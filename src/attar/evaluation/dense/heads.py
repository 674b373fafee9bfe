"""A linear head on patch tokens that says depth, by bins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.models.pixel_heads import Tap, side_by_side
from attar.types import Tokens

_BINS = 256
_FLOOR = 0.1  # of a bin before normalisation: no bin is ever empty
_FINER = 4  # maps are enlarged before bins are normalised


class DepthBins(nn.Module):
    """Depth (B, 1, 4h, 4w) in metres as DINOv2's linear heads say it: the mean of 256 depths, weighted by relu + 0.1.

    Each patch token stands beside its image's class token. The layer is applied before the map is enlarged, which is
    the same for a linear layer and needs a sixteenth of the memory.

    Args:
        taps: One (`lin1`) or four (`lin4`).
        nearest: Depth of the first bin in metres.
        farthest: Of the last.
    """

    bins: Tensor

    def __init__(self, taps: Sequence[Tap], *, nearest: float, farthest: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * sum(tap.width for tap in taps), _BINS, 1)
        self.register_buffer("bins", torch.linspace(nearest, farthest, _BINS).view(1, -1, 1, 1), persistent=False)

    def forward(self, tokens: list[Tokens]) -> list[Tensor]:
        """One map."""
        scores = self.conv(side_by_side([_with_cls(layer) for layer in tokens]))
        scores = F.interpolate(scores, scale_factor=_FINER, mode="bilinear")
        weights = scores.relu() + _FLOOR
        return [(weights * self.bins).sum(1, keepdim=True) / weights.sum(1, keepdim=True)]


def _with_cls(tokens: Tokens) -> Tokens:
    patch = torch.cat([tokens.patch, tokens.cls[:, None].expand_as(tokens.patch)], dim=2)
    return Tokens(tokens.cls, patch, tokens.grid, tokens.prefix)
