"""Vectors of images as a pool has them, and of what one may make of an image: flipped, or a part of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attar.data.base import Rows, Source
from attar.data.decode import EncodedImage, open_image
from attar.data.loader import EvaluationDataset, evaluation_batches, images_in
from attar.data.views import EvaluationView
from attar.errors import DataError
from attar.models import Backbone
from attar.utils.progress import track

_BATCH = 64  # images as the model sees them
_SIDES = (0.85, 0.7, 0.5)  # of parts, in sides of the image: three quarters, half and a quarter of its area


@dataclass(frozen=True)
class PartView:
    """How a model sees a file that shows a part of an image, perhaps flipped.

    Attributes:
        view: How it sees any file.
        corner: Left and top of the part as shares of what is free, (0.5, 0.5) being the centre.
        side: Its width and height as shares of the image's; 1 is all of it.
        is_flipped: Left for right.
    """

    view: EvaluationView
    corner: tuple[float, float] = (0.5, 0.5)
    side: float = 1.0
    is_flipped: bool = False

    def __call__(self, image: EncodedImage, *, row: int = 0) -> Tensor:
        """(3, S, S) uint8, RGB."""
        pixels = self.view(image if self.side == 1 else _part(image, self.side, *self.corner), row=row)
        return pixels.flip(2) if self.is_flipped else pixels


def guard_views(view: EvaluationView) -> list[PartView]:
    """The whole, its mirror image, and centre and corners in three sizes: most crops are near to one of them."""
    corners = [(0.5, 0.5), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]
    parts = [PartView(view, corner, side) for side in _SIDES for corner in corners]
    return [PartView(view), PartView(view, is_flipped=True), *parts]


def embed_rows(
    backbone: Backbone,
    source: Source,
    rows: Rows,
    *views: Callable[..., Tensor],
    workers: int = 0,
    name: str = "images",
) -> tuple[Tensor, Tensor]:
    """Embeddings of the readable images among chosen rows, each in every view: n vectors of them all.

    Args:
        backbone: The pool's model, on the device it shall run on.
        source: Where the images are.
        rows: Which.
        views: How the model sees them; an image is decoded once, and its vectors follow each other.
        workers: Loader processes.
        name: What progress and messages call them, in the plural.

    Returns:
        ((n, E) float16 of length 1 on the CPU, (n,) positions among `rows`).

    Raises:
        DataError: If no image can be read.
    """
    dataset = EvaluationDataset(source, rows, _Stacked(views))
    loader = evaluation_batches(dataset, batch_size=max(1, _BATCH // len(views)), workers=workers)
    vectors, positions = [], []
    for images, where in track(loader, f"embedding {name}", total=len(rows), unit="images", size=images_in):
        if len(where):
            embedded = backbone.embed(images.flatten(0, 1))  # (B, V, 3, S, S) to (B * V, 3, S, S)
            vectors.append(F.normalize(embedded.float(), dim=1).half().cpu())
            positions.append(where.repeat_interleave(len(views)))
    if not vectors:
        raise DataError(f"none of the {len(rows):,} {name} can be read, such as {source.name(int(rows[0]))}.")
    return torch.cat(vectors), torch.cat(positions)


@dataclass(frozen=True)
class _Stacked:
    """One image in several views."""

    views: tuple[Callable[..., Tensor], ...]

    def __call__(self, image: EncodedImage, *, row: int = 0) -> Tensor:
        """(V, 3, S, S) uint8, RGB."""
        return torch.stack([view(image, row=row) for view in self.views])


def _part(image: EncodedImage, side: float, left: float, top: float) -> EncodedImage:
    width, height = image.size
    w, h = max(1, round(side * width)), max(1, round(side * height))
    x, y = round(left * (width - w)), round(top * (height - h))
    return open_image(np.asarray(image.resized((x, y, x + w, y + h), (w, h))), name=image.name)
