"""What may not enter a transfer set: copies of images it is judged by, excluded ones, and duplicates."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.curation.index import PoolIndex
from attar.curation.search import near_pairs, search
from attar.curation.select import Gate, neighbours_of


@dataclass(frozen=True)
class Guarded:
    """Images that nothing in the set may be close to, each in several views.

    Attributes:
        vectors: (m, D) float16.
        names: (m,) the image that each vector shows, so that a leak can be shown.
        threshold: Similarity from which an image is taken for a copy.
    """

    vectors: Tensor
    names: tuple[str, ...]
    threshold: float


@dataclass
class Screen:
    """Judges candidates, and remembers whom it refused and why. What was judged once is not judged again.

    Attributes:
        index: The pool.
        guarded: Images to be kept apart from; None for no guard.
        excluded: Places of images that must not enter.
        members: (m, D) vectors of what is in the set already.
        duplicate_threshold: Similarity from which two images are one; None keeps both.
        leaks: Of each image refused as a copy its similarity and what it is a copy of.
        copies_of_members: Images refused because the set has them already.
    """

    index: PoolIndex
    guarded: Guarded | None = None
    excluded: Collection[int] = ()
    members: Tensor | None = None
    duplicate_threshold: float | None = None
    leaks: dict[int, tuple[float, str]] = field(default_factory=dict)
    copies_of_members: set[int] = field(default_factory=set)
    judged: set[int] = field(default_factory=set)

    def gate(self, items: NDArray[np.int64]) -> Gate:
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

    def _judge(self, items: NDArray[np.int64], vectors: Tensor) -> None:
        if self.guarded is not None:
            similarity, which = _closest(self.guarded.vectors, vectors)
            for row in (similarity >= self.guarded.threshold).nonzero().flatten().tolist():
                self.leaks[int(items[row])] = (float(similarity[row]), self.guarded.names[int(which[row])])
        if self.members is not None and self.duplicate_threshold is not None:
            similarity, _ = _closest(self.members, vectors)
            self.copies_of_members.update(items[(similarity >= self.duplicate_threshold).numpy()].tolist())


def _closest(bank: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """((n,) similarity, (n,) row) of the row of the bank that each vector is most similar to."""
    found = search([(bank, torch.arange(len(bank)))], vectors, k=1)
    return found.similarity[:, 0], found.place[:, 0]
