"""Several places as one source, each as often as its weight says."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attar.data.base import Labels, Rows, Source, scaled
from attar.data.sampler import permute
from attar.errors import DecodeError
from attar.utils.seeding import derive


@dataclass(frozen=True)
class Part:
    """A source within a merged one.

    Attributes:
        source: Where the images are.
        weight: How often they stand in an epoch, above 0.
        title: What names of its rows begin with; empty if it is the only part.
        seed: Names the images that a fraction of `weight` takes once more.
    """

    source: Source
    weight: float = 1.0
    title: str = ""
    seed: int = 0

    def __len__(self) -> int:
        return max(1, round(self.weight * len(self.source)))

    def rows(self, virtual: Rows) -> Rows:
        """Which row of the source stands at each virtual row: whole rounds in order, then a choice by seed.

        The choice is computed, not stored: memory does not grow with the number of images.
        """
        size = len(self.source)
        rows: Rows = virtual % size
        chosen = virtual >= len(self) // size * size
        if chosen.any():  # else a permutation of nothing would take the time of a small image
            rows[chosen] = permute(rows[chosen], size, derive(self.seed, "weight"))
        return rows

    def titled(self, text: str) -> str:
        """A row's name, or a message that begins with one, with the part it belongs to."""
        return text if not self.title or text.startswith(self.title) else f"{self.title}/{text}"


class MergedSource:
    """The rows of all parts, part after part.

    A part of n images and weight W has round(W n) rows. An image that stands in several rows is several samples, so
    each of them gets views of its own.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self.problems = sum((scaled(p.source.problems, len(p) / len(p.source)) for p in parts), ())
        self._ends = np.cumsum([len(part) for part in self.parts])
        described = [f"{part.source.fingerprint}:{part.weight!r}:{part.seed}" for part in self.parts]
        self.fingerprint = hashlib.sha256("\n".join(described).encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, row: int) -> str:
        """The name within its part, led by the part's title."""
        part, own = self._find(row)
        return part.titled(part.source.name(own))

    def uri(self, row: int) -> str:
        """Where its part has it."""
        part, own = self._find(row)
        return part.source.uri(own)

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        """What the part gives."""
        part, own = self._find(row)
        try:
            return part.source.read(own)
        except DecodeError as error:
            raise DecodeError(part.titled(str(error))) from None

    def labels(self) -> tuple[Labels, list[str]] | None:
        """Classes of equal name are one class; classes stand in the order in which the parts bring them.

        None if a part has none.
        """
        names: dict[str, int] = {}
        labels = []
        for part in self.parts:
            found = part.source.labels()
            if found is None:
                return None
            own_labels, own_names = found
            united = np.array([names.setdefault(name, len(names)) for name in own_names], dtype=np.int64)
            labels.append(united[own_labels[part.rows(np.arange(len(part), dtype=np.int64))]])
        return np.concatenate(labels), list(names)

    def _find(self, row: int) -> tuple[Part, int]:
        number = int(np.searchsorted(self._ends, row, side="right"))
        part = self.parts[number]
        virtual = np.array([row - (int(self._ends[number]) - len(part))], dtype=np.int64)
        return part, int(part.rows(virtual)[0])
