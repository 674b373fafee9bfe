"""How the rows of a source are split over files that are made one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Shards:
    """How the rows of a source are split over files.

    Attributes:
        count: Rows in all.
        size: Rows of each shard but the last.
        batch_size: Rows of each batch but a shard's last.
    """

    count: int
    size: int
    batch_size: int

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def rows(self, number: int) -> range:
        """Rows of a shard."""
        return range(number * self.size, min((number + 1) * self.size, self.count))

    def batches(self, numbers: Sequence[int]) -> Iterator[list[int]]:
        """Rows of each batch of these shards, in order."""
        for number in numbers:
            span = self.rows(number)
            for start in range(0, len(span), self.batch_size):
                yield list(span[start : start + self.batch_size])
