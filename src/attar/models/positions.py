"""Position tables: resampling a learned grid of embeddings to another input size, by whose formula you say."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from attar.errors import WeightsError

PosEmbed = Literal["official", "timm"]
Formula = Literal["official", "timm", "transformers"]


def resample_positions(
    table: Tensor, grid: tuple[int, int], *, num_prefix: int, how: Formula, has_registers: bool = False
) -> Tensor:
    """Resample a table of position embeddings to a patch grid.

    `official` follows the hub code of DINOv2 (dinov2/models/vision_transformer.py): bicubic; models without
    registers scale by (size + 0.1) / old size without antialiasing, models with registers go to the exact size
    with antialiasing. `timm` is bicubic to the exact size with antialiasing for all, `transformers` without (its
    `interpolate_pos_encoding`).

    Args:
        table: (1, num_prefix + n * n, D), the raw table of the file.
        grid: Wanted (rows, columns).
        num_prefix: Entries of the table that belong to no patch; they are kept.
        how: Which formula to follow.
        has_registers: Whether the model has register tokens.

    Returns:
        (1, num_prefix + rows * columns, D) in the table's dtype. The table itself when the grid fits.

    Raises:
        WeightsError: If the table's patch entries are not a square.
    """
    side = math.isqrt(table.shape[1] - num_prefix)
    if side * side != table.shape[1] - num_prefix:
        raise WeightsError(
            f"pos_embed has {table.shape[1]} entries, {num_prefix} of them for prefix tokens:"
            " the rest is no square grid. The file is of another layout than its keys say."
        )
    if (side, side) == grid:
        return table
    if how == "timm":
        resampled: Tensor = resample_abs_pos_embed(table, list(grid), num_prefix_tokens=num_prefix)
        return resampled
    prefix, patches = table[:, :num_prefix], table[:, num_prefix:]
    image = patches.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, D, n, n)
    if how == "transformers" or has_registers:
        image = F.interpolate(image, size=grid, mode="bicubic", antialias=how == "official")
    else:
        scale = ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)
        image = F.interpolate(image, scale_factor=scale, mode="bicubic")
    patches = image.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
    return torch.cat([prefix, patches], dim=1)
