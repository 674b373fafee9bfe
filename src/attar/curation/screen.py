"""What may not enter a transfer set: copies of images it is judged by, excluded ones, and duplicates."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from attar.curation.index import PoolIndex
from attar.curation.pixels import PART, compare
from attar.curation.search import near_pairs, search
from attar.curation.select import Gate, neighbours_of
from attar.data.base import Rows, Source

FoundBy = Literal["similarity", "pixels", "unreadable"]

_IMAGES = 5  # guarded ones that a suspect is compared with at most
_VIEWS = 85  # in which they are looked for: of five images all that there are


@dataclass(frozen=True)
class Pixels:
    """What to compare pixels by, where vectors alone do not tell whether an image is a copy.

    Attributes:
        suspicion: Similarity to a guarded vector from which an image is compared.
        pool: Images of the pool.
        guarded: Images to be kept apart from.
        rows: (m,) row of these that each guarded vector shows.
        workers: Loader processes.
    """

    suspicion: float
    pool: Source
    guarded: Source
    rows: Rows
    workers: int = 0


@dataclass(frozen=True)
class Guarded:
    """Images that nothing in the set may be close to, each in several views.

    Attributes:
        vectors: (m, D) float16.
        names: (m,) the image that each vector shows, so that a leak can be shown.
        threshold: Similarity from which an image is taken for a copy.
        pixels: Tell whether less similar ones are copies; None lets these in.
    """

    vectors: Tensor
    names: tuple[str, ...]
    threshold: float
    pixels: Pixels | None = None


@dataclass(frozen=True)
class Leak:
    """Why an image was taken for a copy.

    Attributes:
        similarity: Of its vector to a view of a guarded image.
        like: That image.
        found_by: What told: similarity, pixels, or that it was to be compared and cannot be read, which proves nothing
            and is the safer side.
    """

    similarity: float
    like: str
    found_by: FoundBy = "similarity"


@dataclass
class Screen:
    """Judges candidates, and remembers whom it refused and why. What was judged once is not judged again.

    Attributes:
        index: The pool.
        guarded: Images to be kept apart from; None for no guard.
        excluded: Places of images that must not enter.
        members: (m, D) vectors of what is in the set already.
        duplicate_threshold: Similarity from which two images are one; None keeps both.
        leaks: Images refused as copies of guarded ones.
        copies_of_members: Images refused because the set has them already.
        judged: All that were looked at.
        suspects: How many of them were compared by pixels.
        pairs: With how many guarded images, all together.
    """

    index: PoolIndex
    guarded: Guarded | None = None
    excluded: Collection[int] = ()
    members: Tensor | None = None
    duplicate_threshold: float | None = None
    leaks: dict[int, Leak] = field(default_factory=dict)
    copies_of_members: set[int] = field(default_factory=set)
    judged: set[int] = field(default_factory=set)
    suspects: int = 0
    pairs: int = 0

    def gate(self, items: Rows) -> Gate:
        """A gate for these items (places in the order of ids, ascending)."""
        new = np.array([item for item in items.tolist() if item not in self.judged], dtype=np.int64)
        self.judged.update(new.tolist())
        if len(new):
            self._judge(new, self.index.vectors(new))
        near = {}
        if self.duplicate_threshold is not None:
            pairs = near_pairs(self.index.vectors(items), threshold=self.duplicate_threshold)
            near = neighbours_of(((one, other) for one, other, _ in pairs), items)
        return Gate({*self.excluded, *self.leaks, *self.copies_of_members}, near)

    def _judge(self, items: Rows, vectors: Tensor) -> None:
        if self.guarded is not None:
            leaks, suspects, pairs = leaks_among(self.guarded, vectors, self.index.rows(items))
            self.leaks.update((int(items[position]), leak) for position, leak in leaks.items())
            self.suspects, self.pairs = self.suspects + suspects, self.pairs + pairs
        if self.members is not None and self.duplicate_threshold is not None:
            similarity, _ = _closest(self.members, vectors)
            self.copies_of_members.update(items[(similarity >= self.duplicate_threshold).numpy()].tolist())


def leaks_among(guarded: Guarded, vectors: Tensor, rows: Rows) -> tuple[dict[int, Leak], int, int]:
    """Which images are copies of guarded ones.

    Args:
        guarded: What they are compared with.
        vectors: (n, D) of the images.
        rows: (n,) of the pool, by which their pixels are read.

    Returns:
        Leaks by position among the n; how many images were compared by pixels; in how many pairs.
    """
    similarity, which = _closest(guarded.vectors, vectors)
    is_copy = similarity >= guarded.threshold
    leaks = {
        position: Leak(float(similarity[position]), guarded.names[int(which[position])])
        for position in is_copy.nonzero().flatten().tolist()
    }
    if guarded.pixels is None:
        return leaks, 0, 0
    suspects = ((similarity >= guarded.pixels.suspicion) & ~is_copy).nonzero().flatten()
    if not len(suspects):
        return leaks, 0, 0
    found, pairs = _parts_among(guarded, guarded.pixels, vectors[suspects], rows[suspects.numpy()])
    return leaks | {int(suspects[number]): leak for number, leak in found.items()}, len(suspects), pairs


def _parts_among(guarded: Guarded, pixels: Pixels, vectors: Tensor, rows: Rows) -> tuple[dict[int, Leak], int]:
    """Suspects that are parts of a guarded image, or have it as a part, and those nobody can read; pairs compared."""
    nearest = search([(guarded.vectors, torch.arange(len(guarded.vectors)))], vectors, k=_VIEWS)
    pairs = [
        (suspect, similarity, view)
        for suspect, near in enumerate(zip(nearest.similarity.tolist(), nearest.place.tolist(), strict=True))
        for similarity, view in _different_images(zip(*near, strict=True), pixels)
    ]
    suspects, views = np.array([pair[0] for pair in pairs]), np.array([pair[2] for pair in pairs])
    values = compare(pixels.pool, rows[suspects], pixels.guarded, pixels.rows[views], workers=pixels.workers)
    leaks: dict[int, Leak] = {}
    best: dict[int, float] = {}
    for (suspect, similarity, view), value in zip(pairs, values.tolist(), strict=True):
        if value >= max(PART, best.get(suspect, 0)):
            best[suspect] = value
            leaks[suspect] = Leak(similarity, guarded.names[view], "pixels")
        elif value != value:
            leaks.setdefault(suspect, Leak(similarity, guarded.names[view], "unreadable"))
    return leaks, len(pairs)


def _different_images(near: Iterable[tuple[float, int]], pixels: Pixels) -> list[tuple[float, int]]:
    """(similarity, view) of the guarded images that a suspect is compared with, the most similar first."""
    views: dict[int, tuple[float, int]] = {}
    for similarity, view in near:
        if similarity >= pixels.suspicion:
            views.setdefault(int(pixels.rows[view]), (similarity, view))
    return list(views.values())[:_IMAGES]


def _closest(bank: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """((n,) similarity, (n,) row) of the row of the bank that each vector is most similar to."""
    found = search([(bank, torch.arange(len(bank)))], vectors, k=1)
    return found.similarity[:, 0], found.place[:, 0]
