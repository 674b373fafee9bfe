"""Images to the rows of a pool: the one place of this room that holds a network.

A shard is a pure function of the images, the model and these settings: its batches begin with the shard, so that they
are the same in whichever process, and after whichever interruption, it is made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset

from attar.curation.pool import shard_name, write_shard
from attar.data.base import Source
from attar.data.decode import open_image
from attar.data.shards import Shards
from attar.data.views import EvaluationView
from attar.errors import DataError, DecodeError
from attar.models import Backbone
from attar.types import BadFile
from attar.utils.workers import begin_worker


@dataclass(frozen=True)
class EmbeddedBatch:
    """Some rows of a pool.

    Attributes:
        first: The first one's place in the pool.
        ids: n names.
        uris: n addresses.
        vectors: (n, D) float16 of length 1; zeros where the image cannot be read, or the model says nothing.
        unreadable: Those images.
    """

    first: int
    ids: list[str]
    uris: list[str]
    vectors: NDArray[np.float16]
    unreadable: list[BadFile]

    def __len__(self) -> int:
        return len(self.ids)


def embedded_batches(
    backbone: Backbone,
    source: Source,
    shards: Shards,
    numbers: Sequence[int],
    *,
    view: EvaluationView,
    width: int,
    bf16: bool = False,
    workers: int = 0,
) -> Iterator[EmbeddedBatch]:
    """The batches of the shards with these numbers, in order; memory does not grow with their number.

    Args:
        backbone: Frozen model, on the device it shall run on.
        source: Images.
        shards: How their rows are split.
        numbers: Which shards to make.
        view: How the model sees an image.
        width: Numbers in a vector of the model.
        bf16: Run it under bf16 autocast.
        workers: Loader processes.

    Raises:
        DataError: If a vector is not finite.
    """
    loader = DataLoader(
        _Rows(source, view),
        batch_sampler=shards.batches(numbers),
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=backbone.mean.is_cuda,
        generator=torch.Generator(),  # else the loader draws a number from the global one
        worker_init_fn=begin_worker,
    )
    for batch in loader:
        vectors = np.zeros((len(batch.ids), width), dtype=np.float16)
        if len(batch.readable):
            vectors[batch.readable] = _embed(backbone, batch, bf16=bf16)
        yield EmbeddedBatch(batch.first, batch.ids, batch.uris, vectors, batch.unreadable)


def written_shards(batches: Iterable[EmbeddedBatch], shards: Shards, folder: Path) -> Iterator[tuple[int, int]]:
    """Write each shard when its last batch is there, and say (its number, how many images in it are unreadable)."""
    held: list[EmbeddedBatch] = []
    for batch in batches:
        held.append(batch)
        number = batch.first // shards.size
        if sum(map(len, held)) < len(shards.rows(number)):
            continue
        unreadable = [bad for one in held for bad in one.unreadable]
        write_shard(
            folder / shard_name(number),
            [name for one in held for name in one.ids],
            [uri for one in held for uri in one.uris],
            np.concatenate([one.vectors for one in held]),
            unreadable,
        )
        held.clear()
        yield number, len(unreadable)


@dataclass(frozen=True)
class _Item:
    row: int
    name: str
    uri: str
    view: Tensor | None
    reason: str = ""


class _Rows(Dataset[_Item]):
    """Views by row, with what the pool says of each; made in the loader's workers."""

    def __init__(self, source: Source, view: EvaluationView) -> None:
        self.source, self.view = source, view

    def __getitem__(self, row: int) -> _Item:
        name, uri = self.source.name(row), self.source.uri(row)
        try:
            image = open_image(self.source.read(row), name=name)
            return _Item(row, name, uri, self.view(image, row=row))
        except DecodeError as error:
            return _Item(row, name, uri, None, str(error))


@dataclass
class _Batch:
    """Views (r, 3, S, S) uint8 of the readable rows, and what is known of all n."""

    first: int
    ids: list[str]
    uris: list[str]
    readable: NDArray[np.int64]
    views: Tensor
    unreadable: list[BadFile]

    def pin_memory(self) -> _Batch:
        """For the loader: the views where a GPU fetches them quickly."""
        self.views = self.views.pin_memory()
        return self


def _collate(items: list[_Item]) -> _Batch:
    views = [item.view for item in items if item.view is not None]
    return _Batch(
        first=items[0].row,
        ids=[item.name for item in items],
        uris=[item.uri for item in items],
        readable=np.flatnonzero([item.view is not None for item in items]),
        views=torch.stack(views) if views else torch.empty(0, 3, 0, 0, dtype=torch.uint8),
        unreadable=[BadFile(item.row, item.name, item.reason) for item in items if item.view is None],
    )


def _embed(backbone: Backbone, batch: _Batch, *, bf16: bool) -> NDArray[np.float16]:
    """Vectors of the readable rows, of length 1."""
    device = backbone.mean.device.type
    with torch.autocast(device, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
        vectors = backbone.embed(batch.views)
    is_finite = vectors.isfinite().all(1).cpu()  # device-to-host sync; the copy below would be one, too
    if not is_finite.all():
        name = batch.ids[batch.readable[int((~is_finite).nonzero()[0])]]
        raise DataError(
            f"{name}: the model's vector is not finite, so nothing can be found by it."
            " Try --precision fp32, or look at the weights."
        )
    unit: NDArray[np.float16] = normalize(vectors.float(), dim=1).half().cpu().numpy()
    return unit
