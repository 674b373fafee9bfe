"""Class-token features of labelled images in memory, as the monitor of a run wants them; the store keeps its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from attar.data.labelled import Labelled
from attar.data.loader import EvaluationDataset, evaluation_batches, images_in
from attar.data.views import EvaluationView
from attar.errors import DataError
from attar.types import FrozenBackbone
from attar.utils.progress import track

Batches = Iterable[tuple[Tensor, Tensor]]

_KEEP_PIXELS = 256 << 20  # decoded monitor images are kept in memory up to this many bytes


def embed_labelled(
    backbone: FrozenBackbone, labelled: Labelled, *, crop_pct: float = 1.0, workers: int = 0, name: str = "images"
) -> tuple[Tensor, Tensor]:
    """Features and classes of the readable images, in order.

    Args:
        backbone: Frozen model.
        labelled: Images with classes.
        crop_pct: Share of the resized image that the centre crop keeps.
        workers: Loader processes.
        name: What progress and messages call them, in the plural.

    Returns:
        ((n, D) float32, (n,) int64) on the CPU.

    Raises:
        DataError: If no image can be read.
    """
    view = EvaluationView(backbone.img_size, crop_pct)
    batches = evaluation_views(labelled, view, workers=workers, doing=f"embedding {name}")
    return embed(backbone, labelled, batches, name=name)


def evaluation_views(
    labelled: Labelled, view: EvaluationView, *, workers: int, doing: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """(views (B, 3, S, S) uint8, their positions (B,)) once through the images, with progress."""
    dataset = EvaluationDataset(labelled.source, labelled.rows, view)
    loader = evaluation_batches(dataset, batch_size=64, workers=workers)
    yield from track(loader, doing, total=len(labelled), unit="images", size=images_in)


def embed(
    backbone: FrozenBackbone, labelled: Labelled, batches: Batches, *, name: str = "images"
) -> tuple[Tensor, Tensor]:
    """`embed_labelled` on views that were made already.

    Raises:
        DataError: If no image can be read.
    """
    return seen(lambda images: backbone.tokens(images).cls, labelled, batches, name=name)


def seen(
    see: Callable[[Tensor], Tensor], labelled: Labelled, batches: Batches, *, name: str = "images"
) -> tuple[Tensor, Tensor]:
    """What a function, from views (B, 3, S, S) to rows, gives for the readable images, and their classes; on the CPU.

    Raises:
        DataError: If no image can be read.
    """
    rows, positions = [], []
    for images, where in batches:
        if len(where):
            rows.append(see(images).cpu())
            positions.append(where)
    if not rows:
        raise DataError(f"none of the {len(labelled)} {name} can be read, such as {labelled.source.name(0)}.")
    return torch.cat(rows), torch.from_numpy(labelled.labels)[torch.cat(positions)]


class MonitorViews:
    """Images that are looked at again and again: their views are made once for an input size, and kept where few.

    Args:
        parts: Images by name.
        crop_pct: Share of the resized image that the centre crop keeps.
        workers: Loader processes.

    Attributes:
        count: Images by which it is decided whether views are kept; another number than these images' where they
            stand for others.
    """

    def __init__(self, parts: Mapping[str, Labelled], *, crop_pct: float, workers: int) -> None:
        self.parts, self.crop_pct, self.workers = parts, crop_pct, workers
        self.count = sum(map(len, parts.values()))
        self._kept: dict[tuple[int, str], list[tuple[Tensor, Tensor]]] = {}

    def batches(self, name: str, img_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(views (B, 3, S, S) uint8, their positions (B,)) once through a part."""
        if (img_size, name) in self._kept:
            yield from self._kept[img_size, name]
            return
        keep, kept = self.kept_bytes(img_size) > 0, []
        view, doing = EvaluationView(img_size, self.crop_pct), f"embedding monitor images, {name}"
        for batch in evaluation_views(self.parts[name], view, workers=self.workers, doing=doing):
            kept.append(batch) if keep else None
            yield batch
        if keep:
            self._kept[img_size, name] = kept

    def kept_bytes(self, img_size: int) -> int:
        """What the views of an input size take in memory; 0 where they are too large to be kept."""
        size = self.count * 3 * img_size**2
        return size if size <= _KEEP_PIXELS else 0
