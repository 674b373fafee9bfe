"""The most similar rows of a pool for each query: exact, block by block, the same in any order and split of the pool.

A block is compared in low precision, which is quick and inexact; how inexact is bounded, so that whatever may belong to
the best is found, and these few are compared once more without any rounding. Unit vectors in float16
multiply to multiples of 2^-48, and a sum of such products below 2 is exact in float64, in whatever order it is taken.
So a similarity depends on its two vectors alone, equal ones are equal, and ids decide between them.

`attar.evaluation.neighbours` answers another question: any floats, compared in float32, and the first row is first.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attar.errors import ConfigError, ShapeError

TILE = (512, 16_384)
"""Queries and rows compared at a time: 32 MiB of similarities in float32."""

_GROUP = 64  # neighbouring rows whose largest similarity says whether any of them is worth a look
_PAIRS = 2048  # compared exactly at a time: products of 384 numbers stay in the cache
_UNIT_ROUNDOFF = 2.0**-24  # of float32
_ROUGH_ROUNDOFF = 2.0**-8  # of bfloat16
_CROWD = 8  # candidates for each row that is wanted, from which a closer look is cheaper than comparing all exactly
NOBODY = -1
"""Place in the order of ids where a query has fewer rows than were asked for."""


@dataclass(frozen=True)
class Found:
    """The most similar rows of each query, the most similar first, the smaller id first of equal ones.

    Attributes:
        similarity: (q, k) float64; -inf where there are fewer rows than k.
        place: (q, k) int64: where the row's id stands in the order of all ids, `NOBODY` where there is none.
    """

    similarity: Tensor
    place: Tensor

    @classmethod
    def nothing(cls, queries: int, k: int) -> Found:
        """What is found in an empty pool: `merge` leaves the other as it is."""
        return cls(
            torch.full((queries, k), -torch.inf, dtype=torch.float64),
            torch.full((queries, k), NOBODY, dtype=torch.int64),
        )


def search(
    blocks: Iterable[tuple[Tensor, Tensor]],
    queries: Tensor,
    *,
    k: int,
    tile: tuple[int, int] = TILE,
    device: str | torch.device = "cpu",
) -> Found:
    """The `k` rows with the largest inner product for each query, over all blocks.

    Memory beyond the arguments and the result is one tile of rows in float32 and one of similarities.

    Args:
        blocks: ((n, D) float16 rows of length 1, (n,) int64 place of each row's id in the order of all ids).
        queries: (q, D) of length 1; rounded to float16, as the rows were.
        k: Rows for each query.
        tile: Queries and rows that are compared at a time.
        device: Where they are compared.

    Returns:
        What was found, on the CPU; the same for any order and split of the rows.

    Raises:
        ConfigError: If `k` is below 1.
        ShapeError: If rows and queries differ in width.

    Example:
        >>> pool = torch.eye(3, dtype=torch.float16)
        >>> search([(pool, torch.arange(3))], torch.tensor([[0.6, 0.8, 0.0]]), k=2).place
        tensor([[1, 0]])
    """
    if k < 1:
        raise ConfigError(f"k is {k}; a query fetches one row at least.")
    queries = queries.to(device, torch.float16).float()
    best = Found.nothing(len(queries), k)
    wide = torch.empty(0, queries.shape[1], device=device)
    for rows, places in blocks:
        if rows.shape[1] != queries.shape[1]:
            raise ShapeError(
                f"the pool has embeddings of width {rows.shape[1]}, the queries of {queries.shape[1]};"
                " similarity needs one width. Embed both with the same model."
            )
        for start in range(0, len(rows), tile[1]):
            part = rows[start : start + tile[1]]
            if len(wide) < len(part):
                wide = wide.new_empty(-(-len(part) // _GROUP) * _GROUP, wide.shape[1])
            best = _with_block(best, part, places[start : start + tile[1]], queries, k, wide, tile[0])
    return best


def merge(one: Found, other: Found) -> Found:
    """The best of two results for the same queries and k: associative and commutative, so shards merge in any order."""
    similarity = torch.cat([one.similarity, other.similarity], dim=1)
    place = torch.cat([one.place, other.place], dim=1)
    by_id = place.sort(dim=1, stable=True).indices
    order = by_id.gather(1, similarity.gather(1, by_id).sort(dim=1, descending=True, stable=True).indices)
    kept = order[:, : one.place.shape[1]]
    return Found(similarity.gather(1, kept), place.gather(1, kept))


def merge_all(parts: Iterable[Found]) -> Found:
    """`merge` over one result or more."""
    return functools.reduce(merge, parts)


def _with_block(best: Found, rows: Tensor, places: Tensor, queries: Tensor, k: int, wide: Tensor, tile: int) -> Found:
    """`best` with what a block adds to it; `wide` is memory for its rows in float32."""
    wide[: len(rows)] = rows
    wide[len(rows) :] = 0
    length = torch.linalg.vector_norm(wide, dim=1).max()
    rough = wide.bfloat16() if _is_quick_in_bfloat16(wide.device.type) else None
    found = []
    for mine, least in zip(torch.split(queries, tile), torch.split(best.similarity[:, -1], tile), strict=True):
        least = least.to(wide.device)
        candidates = None if rough is None else _candidates(mine, rough, len(rows), least, length, k)
        if candidates is None or len(candidates) > _CROWD * k * len(mine):  # much alike: bfloat16 cannot tell
            candidates = _candidates(mine, wide, len(rows), least, length, k)
        owner, column = candidates.unbind(1)
        exact = _exact(mine, wide, owner, column)
        found.append(_ranked(owner.cpu(), exact.cpu(), places[column.cpu()], len(mine), k))
    return merge(best, Found(torch.cat([f.similarity for f in found]), torch.cat([f.place for f in found])))


@functools.cache
def _is_quick_in_bfloat16(device: str) -> bool:
    """Whether the processor multiplies bfloat16 by itself: then it does so three times as fast as float32."""
    known = torch.cpu.get_capabilities() if device == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def _candidates(queries: Tensor, rows: Tensor, count: int, least: Tensor, length: Tensor, k: int) -> Tensor:
    """(m, 2) query and column of all that may be among the k best; compared in the precision of `rows`.

    Args:
        queries: (t, D) float32.
        rows: (b, D), of which the first `count` are rows of the pool.
        count: Theirs.
        least: As in `_worth_a_look`.
        length: Of the longest row.
        k: How many are wanted.
    """
    if rows.dtype == torch.bfloat16:
        similarity = queries.bfloat16() @ rows.T
        error = 3.1 * _ROUGH_ROUNDOFF  # of both factors and of the result, each rounded once
    elif rows.device.type == "cpu":  # OpenBLAS, which is numpy's, is a quarter faster on AMD than torch's MKL
        similarity = torch.from_numpy(queries.numpy() @ rows.numpy().T)
        error = 0.0
    else:
        similarity, error = queries @ rows.T, 0.0
    similarity[:, count:] = -torch.inf
    # sums in float32 are wrong by less than D u |a| |b| (Higham, Accuracy and Stability of Algorithms, 3.1)
    error += 1.01 * rows.shape[1] * _UNIT_ROUNDOFF
    return _worth_a_look(similarity, least, error * length * torch.linalg.vector_norm(queries, dim=1), k)


def _worth_a_look(similarity: Tensor, least: Tensor, error: Tensor, k: int) -> Tensor:
    """(m, 2) query and column of everything that may be among the k best.

    Args:
        similarity: (t, b), b a multiple of `_GROUP`, each wrong by `error` at most.
        least: (t,) float64, what the k-th best reaches already, exactly; -inf where there are not yet k.
        error: (t,).
        k: How many are wanted.
    """
    groups = similarity.view(len(similarity), -1, _GROUP)
    peaks = groups.amax(dim=2)
    bound = (least - error).float()
    bound = torch.nextafter(bound, torch.full_like(bound, -torch.inf))  # the difference was rounded
    if bool(torch.isinf(bound).any()):
        # k groups each hold a row as good as the k-th largest peak, so the k-th best row is as good, too
        among = peaks if peaks.shape[1] >= k else similarity
        if among.shape[1] >= k:
            bound = torch.maximum(bound, among.topk(k, dim=1).values[:, -1].float() - 2.01 * error)
    owner, group = (peaks.float() >= bound[:, None]).nonzero().unbind(1)
    values = groups[owner, group].float()
    which, inner = ((values >= bound[owner, None]) & (values > -torch.inf)).nonzero().unbind(1)
    return torch.stack([owner[which], group[which] * _GROUP + inner], dim=1)


def _exact(queries: Tensor, rows: Tensor, owner: Tensor, column: Tensor) -> Tensor:
    """(m,) float64 inner products of chosen queries and rows, which hold values of float16: none is rounded.

    A product of two such values has 22 bits, so that float32 holds it; their sum needs float64.
    """
    parts = [
        queries[o].mul_(rows[c]).double().sum(1)
        for o, c in zip(torch.split(owner, _PAIRS), torch.split(column, _PAIRS), strict=True)
    ]
    return torch.cat(parts)


def _ranked(owner: Tensor, similarity: Tensor, place: Tensor, queries: int, k: int) -> Found:
    """The k best of each query among (m,) candidates in any order."""
    order = place.argsort(stable=True)
    order = order[similarity[order].argsort(descending=True, stable=True)]
    order = order[owner[order].argsort(stable=True)]
    owner, similarity, place = owner[order], similarity[order], place[order]
    counts = owner.bincount(minlength=queries)
    rank = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    is_kept = rank < k
    found = Found.nothing(queries, k)
    found.similarity[owner[is_kept], rank[is_kept]] = similarity[is_kept]
    found.place[owner[is_kept], rank[is_kept]] = place[is_kept]
    return found


def near_pairs(rows: Tensor, *, threshold: float, tile: int = 4096) -> Iterator[tuple[int, int, float]]:
    """(i, j, similarity) with i < j for all pairs of rows at least so similar, exactly.

    Args:
        rows: (n, D) float16 of length 1.
        threshold: Least similarity.
        tile: Rows on either side that are compared at a time.
    """
    error = 1.01 * rows.shape[1] * _UNIT_ROUNDOFF * 1.01  # lengths are 1 within float16
    for start in range(0, len(rows), tile):
        mine = rows[start : start + tile].float()
        for other in range(start, len(rows), tile):
            theirs = rows[other : other + tile].float()
            close = mine @ theirs.T >= threshold - error
            first, second = (close.triu(1) if other == start else close).nonzero().unbind(1)
            similarity = _exact(mine, theirs, first, second)
            is_near = similarity >= threshold
            yield from zip(
                (first[is_near] + start).tolist(),
                (second[is_near] + other).tolist(),
                similarity[is_near].tolist(),
                strict=True,
            )
