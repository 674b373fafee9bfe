"""From places in the stream to batches of views, in worker processes, with bad files replaced and reported."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from attar.config import ViewsConfig
from attar.data.decode import open_image
from attar.data.labelled import Rows
from attar.data.sampler import ViewOrder
from attar.data.sources import Labels, Source
from attar.data.views import View, training_view
from attar.errors import DataError, DecodeError
from attar.types import BadFile, Batch, Erased
from attar.utils.distributed import ranks_on_this_machine
from attar.utils.seeding import derive
from attar.utils.workers import begin_worker

_IN_FLIGHT = 2 << 30  # bytes of views made ahead by all workers
_REPLACEMENTS = 20  # other samples tried in place of an unreadable one before giving up


@dataclass(frozen=True)
class Item:
    """One view on its way into a batch."""

    view: View
    place: int
    sample: int
    view_id: int
    name: str
    bad_files: tuple[BadFile, ...]
    label: int | Tensor | None


class Stream(Protocol):
    """Views by place in an endless stream, each a pure function of its place."""

    @property
    def source(self) -> Source:
        """The images they are views of."""
        ...

    @property
    def img_size(self) -> int:
        """Height and width of views, in pixels."""
        ...

    @property
    def epoch_length(self) -> int:
        """Places in which each image comes once, or as often as the others."""
        ...

    def __getitem__(self, place: int) -> Item | DataError:
        """The view at a place; an error is handed on, as it would leave a loader's worker with a traceback."""
        ...


class ViewDataset(Dataset[Item | DataError]):
    """Views by place in the stream: a pure function of (images, order, config).

    Args:
        source: Images.
        order: Which view stands at which place.
        config: How an image becomes a view.
        img_size: Height and width of views, in pixels.
        labels: (n,) class of each image, for methods that learn from them.
    """

    def __init__(
        self, source: Source, order: ViewOrder, config: ViewsConfig, img_size: int, *, labels: Labels | None = None
    ) -> None:
        self.source, self.order, self.config, self.img_size, self.labels = source, order, config, img_size, labels

    @property
    def epoch_length(self) -> int:
        """Places in an epoch of the order."""
        return self.order.epoch_length

    def __getitem__(self, place: int) -> Item | DataError:
        samples, views = self.order.at(np.array([place], dtype=np.int64))
        return self.item(place, int(samples[0]), int(views[0]))

    def __getitems__(self, places: list[int]) -> list[Item | DataError]:
        """Views at several places: what a loader's worker asks for, as finding one place takes as long as many."""
        samples, views = self.order.at(np.array(places, dtype=np.int64))
        return [self.item(*found) for found in zip(places, samples.tolist(), views.tolist(), strict=True)]

    def item(self, place: int, wanted: int, view_id: int) -> Item | DataError:
        """A view of an image, or of another one where it cannot be read, as it stands at a place."""
        bad: list[BadFile] = []
        for attempt in range(_REPLACEMENTS):
            sample = wanted if attempt == 0 else self._replacement(wanted, view_id, attempt)
            name = self.source.name(sample)
            try:
                view = self._view(sample, view_id, name)
            except DecodeError as error:
                bad.append(BadFile(sample, name, str(error)))
                continue
            label = None if self.labels is None else int(self.labels[sample])
            return Item(view, place, sample, view_id, name, tuple(bad), label)
        # handed on, not raised: from a loader's worker it would come with a traceback in its message
        return DataError(
            f"{_REPLACEMENTS} images in a row cannot be read, the first is {bad[0].reason} Is this a folder of images?"
        )

    def _replacement(self, wanted: int, view_id: int, attempt: int) -> int:
        """Another sample for each view, so that none comes much more often because one is unreadable."""
        return derive(self.order.seed, "replace", wanted, view_id, attempt) % len(self.source)

    def _view(self, sample: int, view_id: int, name: str) -> View:
        image = open_image(self.source.read(sample), name=name)
        return training_view(
            image, seed=self.order.seed, sample=sample, view=view_id, img_size=self.img_size, config=self.config
        )


class ListedViews(Dataset[Item | DataError]):
    """Given views of a stream, one after the other; behind the last one the first ones come again.

    Args:
        stream: Makes them.
        numbers: (m,) which, one at least: sample * num_views + view.
        num_views: Views that an image has.
    """

    def __init__(self, stream: ViewDataset, numbers: NDArray[np.int64], num_views: int) -> None:
        self.stream, self.numbers, self.num_views = stream, numbers, num_views
        self.source, self.img_size, self.epoch_length = stream.source, stream.img_size, len(numbers)

    def __getitem__(self, place: int) -> Item | DataError:
        sample, view = divmod(int(self.numbers[place % len(self.numbers)]), self.num_views)
        return self.stream.item(place, sample, view)


def is_readable(source: Source, row: int) -> bool:
    """Whether an image can be decoded, to its last pixel."""
    try:
        open_image(source.read(row), name=source.name(row)).resized(None, (8, 8))
    except DecodeError:
        return False
    return True


def training_batches(
    dataset: Stream,
    *,
    batch_size: int,
    start_step: int,
    num_steps: int,
    micro_batches: int = 1,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """This rank's batches of steps `start_step` to `num_steps - 1`, each in `micro_batches` equal pieces, in order.

    A step takes the same places of the stream however many ranks and pieces there are.

    Args:
        dataset: Views by place.
        batch_size: Views per step over all ranks, a multiple of `micro_batches * world_size`.
        start_step: First step wanted; nothing before it is read.
        num_steps: Where the stream stops.
        micro_batches: Pieces a step's batch is yielded in (gradient accumulation).
        rank: Whose share of each piece.
        world_size: Ranks that share a piece.
        workers: Loader processes; 0 loads in this one.

    Raises:
        DataError: If image after image cannot be read.
    """
    shares = micro_batches * world_size
    assert batch_size % shares == 0, f"a batch of {batch_size} has no {shares} equal shares"
    size = batch_size // shares
    numbers = range(start_step * shares + rank, num_steps * shares, world_size)
    loader: DataLoader[Any] = DataLoader(
        dataset,  # type: ignore[arg-type]  # any object with __getitem__ is a map-style dataset
        batch_sampler=_Places(size, numbers),
        num_workers=workers,
        collate_fn=_Collate(batch_size),
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=_prefetch(_bytes(size, dataset.img_size), workers) if workers else None,
        generator=torch.Generator(),  # else the loader draws a number from the global one
        worker_init_fn=begin_worker,
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def batches_ahead(size: int, img_size: int, workers: int) -> int:
    """How many batches of so many training views all workers together hold ready."""
    return workers * _prefetch(_bytes(size, img_size), workers) if workers else 0


def _bytes(size: int, img_size: int) -> int:
    return size * 3 * img_size**2


def _prefetch(batch_bytes: int, workers: int) -> int:
    """Batches each worker makes ahead: up to four, less where they would fill the memory."""
    return max(1, min(4, _IN_FLIGHT // (batch_bytes * workers)))


class _Places:
    """Places of one share after another."""

    def __init__(self, size: int, numbers: range) -> None:
        self.size, self.numbers = size, numbers

    def __iter__(self) -> Iterator[list[int]]:
        for number in self.numbers:
            yield list(range(number * self.size, (number + 1) * self.size))

    def __len__(self) -> int:
        return len(self.numbers)


class _Collate:
    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def __call__(self, found: list[Item | DataError]) -> Batch | DataError:
        items = [item for item in found if isinstance(item, Item)]
        if len(items) < len(found):
            return next(item for item in found if isinstance(item, DataError))
        places = torch.tensor([item.place for item in items])
        return Batch(
            views=torch.stack([item.view.pixels for item in items]),
            samples=torch.tensor([item.sample for item in items]),
            view_ids=torch.tensor([item.view_id for item in items]),
            positions=places % self.batch_size,
            step=int(places[0]) // self.batch_size,
            global_batch_size=self.batch_size,
            names=tuple(item.name for item in items),
            bad_files=tuple(bad for item in items for bad in item.bad_files),
            labels=_together([item.label for item in items if item.label is not None]),
            erased=_erased([item.view for item in items]),
        )


def _erased(views: list[View]) -> Erased | None:
    """In one tensor: each that a worker hands over costs a file descriptor."""
    found = [(number, *view.erased) for number, view in enumerate(views) if view.erased is not None]
    if not found:
        return None
    boxes = tuple((number, top, left, *noise.shape[1:]) for number, top, left, noise in found)
    return Erased(boxes, torch.cat([noise.flatten() for *_, noise in found]))


def _together(labels: list[int | Tensor]) -> Tensor | None:
    """(B,) classes, or (B, H, W) of pixels."""
    return torch.stack([torch.as_tensor(label) for label in labels]) if labels else None


class EvaluationDataset(Dataset[tuple[Tensor | None, int]]):
    """Views of chosen rows, as an `EvaluationView` makes them; None stands for an image that cannot be read."""

    def __init__(self, source: Source, rows: Rows, view: Callable[..., Tensor]) -> None:
        self.source, self.rows, self.view = source, rows, view

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[Tensor | None, int]:
        row = int(self.rows[position])
        try:
            image = open_image(self.source.read(row), name=self.source.name(row))
            return self.view(image, row=row), position
        except DecodeError:
            return None, position


def evaluation_batches(dataset: EvaluationDataset, *, batch_size: int, workers: int = 0) -> DataLoader[Any]:
    """(images (B, 3, S, S) uint8, positions (B,)) once through the dataset; unreadable images are left out.

    A batch of which no image can be read is (0, 3, 0, 0). Where one batch is all it is made in this process: workers
    would take longer to start.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers if len(dataset) > batch_size else 0,
        collate_fn=_stack_readable,
        generator=torch.Generator(),  # else the loader draws a number from the global one
        worker_init_fn=begin_worker,
    )


def images_in(batch: tuple[Tensor, Tensor]) -> int:
    """How many images a batch of `evaluation_batches` holds: the `size` of one in `attar.utils.progress.track`."""
    return len(batch[1])


def _stack_readable(items: list[tuple[Tensor | None, int]]) -> tuple[Tensor, Tensor]:
    views = [(view, position) for view, position in items if view is not None]
    if not views:
        return torch.empty(0, 3, 0, 0, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
    return torch.stack([view for view, _ in views]), torch.tensor([position for _, position in views])


def default_workers() -> int:
    """This rank's cores less one for the training process, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(0, cores // ranks_on_this_machine() - 1))
