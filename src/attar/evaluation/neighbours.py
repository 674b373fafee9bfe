"""The k nearest neighbours by cosine similarity: exact, tile by tile, in an order that does not depend on the tiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.errors import ConfigError, DataError, ShapeError
from attar.utils.progress import track

Features = Tensor | NDArray[Any]
"""(n, D) floats of any precision; a memory map is read in pieces and never copied whole."""

TILE = (512, 65_536)
"""Queries and rows of the bank compared at a time: 128 MiB of similarities."""

_SMALLEST_NORM = 1e-12  # a row of zeros stays one, and is similar to nothing


def nearest(
    bank: Features,
    queries: Features,
    *,
    k: int,
    tile: tuple[int, int] = TILE,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor]:
    """Cosine similarities and rows of the `k` nearest rows of the bank for each query, the nearest first.

    Of rows equally near the one that comes first in the bank is first (spec evaluation §4.6). The bank is read once;
    memory beyond the two arguments and the result is one tile of each and one tile of similarities.

    Args:
        bank: (n, D).
        queries: (q, D).
        k: Neighbours; all n where the bank holds fewer.
        tile: Queries and rows of the bank that are compared at a time.
        device: Where they are compared.

    Returns:
        ((q, k) float32, (q, k) int64) on the CPU.

    Raises:
        DataError: If the bank is empty.
        ShapeError: If bank and queries differ in width.
        ConfigError: If `k` is below 1.
    """
    _check(bank, queries, k)
    k = min(k, len(bank))
    best = torch.full((len(queries), k), -torch.inf), torch.zeros(len(queries), k, dtype=torch.int64)
    total = -(-len(queries) // tile[0]) * -(-len(bank) // tile[1])
    tiles = _tiles(bank, queries, tile, torch.device(device))
    for here, offset, similarity in track(tiles, "finding neighbours", total=total, unit="tiles"):
        columns = _largest(similarity, k)
        _merge((best[0][here], best[1][here]), (similarity.gather(1, columns).cpu(), columns.cpu() + offset))
    return best


def _check(bank: Features, queries: Features, k: int) -> None:
    if k < 1:
        raise ConfigError(f"k is {k}; at least one neighbour votes. Try k=20.")
    if len(bank) == 0:
        raise DataError("the bank of neighbours is empty. Give it images with known classes.")
    if bank.shape[1] != queries.shape[1]:
        raise ShapeError(
            f"the bank has features of width {bank.shape[1]}, the queries of {queries.shape[1]};"
            " neighbours need one width. Compute both with the same backbone."
        )


def _tiles(
    bank: Features, queries: Features, tile: tuple[int, int], device: torch.device
) -> Iterator[tuple[slice, int, Tensor]]:
    """(which queries, first row of the bank's tile, (t, b) similarities), the bank's tiles in order."""
    for offset in range(0, len(bank), tile[1]):
        neighbours = _unit_rows(bank, slice(offset, offset + tile[1]), device)
        for start in range(0, len(queries), tile[0]):
            here = slice(start, start + tile[0])
            yield here, offset, _unit_rows(queries, here, device) @ neighbours.T


def _unit_rows(features: Features, here: slice, device: torch.device) -> Tensor:
    """A float32 copy of some rows, each of length 1."""
    part = features[here]
    if not isinstance(part, Tensor):
        part = torch.from_numpy(np.array(part))  # a copy: torch warns of maps that are read-only
    rows = part.detach().to(device, torch.float32, copy=True)
    return rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_(min=_SMALLEST_NORM))


def _largest(similarity: Tensor, k: int) -> Tensor:
    """(t, k) columns of the k largest of each row, in ascending order; of equal ones the first are taken."""
    if k >= similarity.shape[1]:
        return torch.arange(similarity.shape[1], device=similarity.device).expand(len(similarity), -1)
    values, columns = similarity.topk(k + 1, dim=1)
    columns = columns[:, :k].sort(dim=1).values
    is_tied = values[:, k - 1] == values[:, k]  # topk chose one of equals, nobody knows which
    if is_tied.any():
        columns[is_tied] = _first_of_equals(similarity[is_tied], values[is_tied, k - 1, None], k)
    return columns


def _first_of_equals(similarity: Tensor, smallest: Tensor, k: int) -> Tensor:
    """`_largest` for rows whose k-th largest value (t, 1) is there more often than k allows."""
    is_larger, is_equal = similarity > smallest, similarity == smallest
    missing = k - is_larger.sum(1, keepdim=True)
    is_kept = is_larger | (is_equal & (is_equal.cumsum(1, dtype=torch.int32) <= missing))
    return is_kept.nonzero()[:, 1].view(-1, k)


def _merge(best: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor]) -> None:
    """Keep in `best` the best of both, the nearest first; its rows come before those of `found`, so equals stay so."""
    values, rows = (torch.cat(pair, dim=1) for pair in zip(best, found, strict=True))
    order = values.sort(dim=1, descending=True, stable=True).indices[:, : best[0].shape[1]]
    best[0].copy_(values.gather(1, order))
    best[1].copy_(rows.gather(1, order))
