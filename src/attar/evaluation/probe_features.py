"""What linear heads read: class tokens of the last blocks and the mean patch token, stored for some views of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.data.base import Rows
from attar.errors import ShapeError

Stored = Tensor | NDArray[Any]
"""Floats of any precision; of a memory map only the rows of a batch are read."""


@dataclass(frozen=True)
class Layout:
    """Which of the stored tokens a head reads.

    Attributes:
        blocks: Class tokens of so many last blocks.
        avgpool: Whether the mean patch token of the last block is behind them.
    """

    blocks: int
    avgpool: bool

    def __str__(self) -> str:
        return f"blocks={self.blocks}" + (" avgpool" if self.avgpool else "")


LAYOUTS = tuple(Layout(blocks, avgpool) for blocks in (1, 4) for avgpool in (False, True))
"""The four of DINOv2's protocol."""


@dataclass(frozen=True)
class ProbeFeatures:
    """Tokens of n images in V views, after the backbone's final norm (spec evaluation §1.1, §4.4).

    Attributes:
        cls: V times (n, L, D). Class tokens of the last L blocks, the earliest first; more than four are not read.
        mean_patch: V times (n, D). Mean of the last block's patch tokens, None for a backbone that has none.
        labels: (n,) int64.
        class_index: (C,) int64. For images of other classes than the training's: which logit stands for each of
            theirs, as ImageNet-A's 200 among 1,000. `labels` count these classes.

    Raises:
        ShapeError: If the sizes do not agree.
    """

    cls: Stored | Sequence[Stored]
    mean_patch: Stored | Sequence[Stored] | None
    labels: Tensor
    class_index: Tensor | None = None

    def __post_init__(self) -> None:
        views, (images, _, width) = len(self.cls), self.cls[0].shape
        if len(self.labels) != images or views == 0 or images == 0:
            raise ShapeError(
                f"there are {len(self.labels)} labels for class tokens of {images} images in {views} views;"
                " each image has one label, and there is one image and view at least."
            )
        if self.mean_patch is not None and (len(self.mean_patch), *self.mean_patch[0].shape) != (views, images, width):
            found, cls = self.mean_patch, self.cls
            raise ShapeError(
                f"mean patch tokens are {(len(found), *found[0].shape)} but class tokens {(views, *cls[0].shape)};"
                f" they must be {(views, images, width)}. Store both in one pass through the same images."
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def views(self) -> int:
        """V, the number of times each image is stored."""
        return len(self.cls)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Those of `LAYOUTS` that the stored tokens allow: all, or fewer without four blocks or patch tokens."""
        blocks, has_patches = self.cls[0].shape[1], self.mean_patch is not None
        return tuple(layout for layout in LAYOUTS if layout.blocks <= blocks and (has_patches or not layout.avgpool))

    def width(self, layout: Layout) -> int:
        """Channels that a head of a layout reads: D, 2D, 4D or 5D."""
        return int(self.cls[0].shape[2]) * (layout.blocks + layout.avgpool)

    def columns(self, layout: Layout) -> slice:
        """Where a layout's channels are in `rows`: it reads them side by side, the earliest block first."""
        width = self.cls[0].shape[2]
        end = self._blocks * width
        return slice(end - layout.blocks * width, end + width * layout.avgpool)

    def rows(self, chosen: Rows, *, view: int = 0) -> Tensor:
        """(len(chosen), width) tokens of some images: class tokens of the blocks, then the mean patch token."""
        cls = np.asarray(self.cls[view])[chosen, -self._blocks :]  # a memory map reads these rows only
        parts = [torch.from_numpy(cls.reshape(len(chosen), -1))]
        if self.mean_patch is not None:
            parts.append(torch.from_numpy(np.asarray(self.mean_patch[view])[chosen]))
        return torch.cat(parts, dim=1)

    @property
    def _blocks(self) -> int:
        return max(layout.blocks for layout in self.layouts)
