"""A pool in the order of its ids, which is the same however its rows lie."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.curation.pool import Pool
from attar.curation.search import Found, merge_all, search

_BLOCK = 65_536  # rows searched at a time


class PoolIndex:
    """Rows of a pool by place: where a row's id stands in the order of all ids. 16 bytes a row, and the ids once.

    Args:
        pool: Embedded images.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        ids = np.array(pool.ids(np.arange(len(pool))), dtype=object)
        self._rows = np.argsort(ids, kind="stable")
        self._places = np.empty_like(self._rows)
        self._places[self._rows] = np.arange(len(ids))

    def __len__(self) -> int:
        return len(self.pool)

    def rows(self, places: NDArray[np.int64] | Sequence[int]) -> NDArray[np.int64]:
        """Rows of the pool at these places."""
        found: NDArray[np.int64] = self._rows[np.asarray(places, dtype=np.int64)]
        return found

    def vectors(self, places: NDArray[np.int64]) -> Tensor:
        """(n, D) float16."""
        return self.pool.vectors(self.rows(places))

    def places_of(self, names: Collection[str]) -> set[int]:
        """Places of the images with these ids or addresses."""
        every = np.arange(len(self))
        is_named = np.array([name in names for name in self.pool.ids(every)])
        is_named |= np.array([name in names for name in self.pool.uris(every)])
        return set(self._places[is_named].tolist())

    def by_source(self, ends: Sequence[int]) -> list[NDArray[np.int64]]:
        """The places of each part of the pool, in order; parts end before these rows."""
        return [np.sort(part) for part in np.split(self._places, ends[:-1])]

    def blocks(self, *, shards: Sequence[int] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """(vectors, their places) of all readable images, or of those in some shards."""
        kept: list[tuple[Tensor, Tensor]] = []
        for first, vectors in self.pool.blocks(rows=_BLOCK, shards=shards):
            places = torch.from_numpy(self._places[first : first + len(vectors)])
            is_readable = vectors.any(dim=1)
            kept.append((vectors[is_readable], places[is_readable]))
            if sum(len(part) for part, _ in kept) >= _BLOCK:
                yield _joined(kept)
                kept = []
        if kept:
            yield _joined(kept)

    def search(self, queries: Tensor, k: int, *, device: str | torch.device = "cpu") -> Found:
        """The `k` most similar images for each query."""
        return search(self.blocks(), queries, k=k, device=device)

    def search_on_ray(self, queries: Tensor, k: int) -> Found:
        """As `search`, by Ray over many machines, shard by shard; the folder must be seen by all of them."""
        import ray

        def one_shard(index: PoolIndex, queries: Tensor, shard: int) -> Found:
            return search(index.blocks(shards=[shard]), queries, k=k)

        remote = ray.remote(one_shard)
        shared = ray.put(self), ray.put(queries)
        waiting = [remote.remote(*shared, shard) for shard in range(len(self.pool.firsts))]
        best = Found.nothing(len(queries), k)
        while waiting:
            done, waiting = ray.wait(waiting)
            best = merge_all([best, *ray.get(done)])
        return best


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([vectors for vectors, _ in parts]), torch.cat([places for _, places in parts])
