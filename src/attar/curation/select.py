"""Which candidates enter a transfer set, and in what order: pure strategies on lists of candidates.

A strategy asks a gate for each candidate in turn, and the gate refuses what is taken, near to something taken, or
banned. A refusal depends on what was taken before and on nothing after, so that what a smaller budget takes is the
beginning of what a larger one takes (spec task_transfer §5, O5). Components of near-duplicates, as union-find gives
them, have not that property: a chain of neighbours that a larger budget completes would take images out again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attar.curation.search import NOBODY
from attar.errors import ConfigError

Candidates = Sequence[Sequence[tuple[int, float]]]
"""For each query its items with their similarity, the best first."""


@dataclass(frozen=True)
class Pick:
    """One image that enters the set.

    Attributes:
        item: Which.
        query: Whose candidate it was; of a random set the source that it stands for.
        similarity: To the query.
        rank: Place among the query's candidates, from 0.
        round: Which turn of its query this was, from 0; for `best_match` the place in the whole order.
    """

    item: int
    query: int
    similarity: float
    rank: int
    round: int


class Gate:
    """Lets an item in once, and nothing that is banned or near to what is in.

    Args:
        banned: Items that must not enter.
        near: Items near to an item, in both directions.
    """

    def __init__(self, banned: Collection[int] = (), near: Mapping[int, Iterable[int]] | None = None) -> None:
        self._near = near or {}
        self._refused = set(banned)
        self._taken: set[int] = set()
        self.duplicates: set[int] = set()

    def take(self, item: int) -> bool:
        """Whether the item is let in."""
        if item in self.duplicates or item in self._refused or item in self._taken:
            return False
        if any(other in self._taken for other in self._near.get(item, ())):
            self.duplicates.add(item)
            return False
        self._taken.add(item)
        return True


class _Turns:
    """Where each query stands in its list."""

    def __init__(self, candidates: Candidates, gate: Gate) -> None:
        self._lists, self._gate = candidates, gate
        self._next = [0] * len(candidates)

    def take(self, query: int, turn: int) -> Pick | None:
        """The query's best candidate that the gate lets in; None when its list is at an end."""
        own = self._lists[query]
        while (rank := self._next[query]) < len(own):
            self._next[query] += 1
            if self._gate.take(own[rank][0]):
                return Pick(own[rank][0], query, own[rank][1], rank, turn)
        return None


def share_of_query(queries: int, budget: int, *, include_queries: bool = True) -> int:
    """k(N_q, B) = floor(B / N_q) - 1: images that each query fetches when the queries are part of the set.

    Raises:
        ConfigError: If not even one image is left for each query.

    Example:
        >>> share_of_query(1200, 153_680)
        127
    """
    share = budget // queries - include_queries
    if share < 1:
        least = queries * (1 + include_queries)
        raise ConfigError(
            f"budget {budget:,} leaves no image for each of {queries:,} queries"
            + (", which are part of the set" if include_queries else "")
            + f". Give {least:,} at least, or strategy best_match."
        )
    return share


def query_balanced(candidates: Candidates, quotas: Sequence[int], gate: Gate) -> tuple[list[Pick], set[int]]:
    """Round robin: in each round every query in order takes its best candidate that nobody has.

    Args:
        candidates: Of each query.
        quotas: How many each may take.
        gate: Says what may enter.

    Returns:
        What was taken, in order, and the queries whose candidates ran out before their quota was met.
    """
    turns, picks, short = _Turns(candidates, gate), [], set()
    for turn in range(max(quotas, default=0)):
        for query, quota in enumerate(quotas):
            if turn >= quota or query in short:
                continue
            pick = turns.take(query, turn)
            if pick is None:
                short.add(query)
            else:
                picks.append(pick)
    return picks, short


def class_balanced(
    candidates: Candidates, classes: Sequence[int], quotas: Mapping[int, int], gate: Gate
) -> tuple[list[Pick], set[int]]:
    """Round robin over classes, and over the queries within a class.

    Args:
        candidates: Of each query.
        classes: Of each query.
        quotas: How many each class may take.
        gate: Says what may enter.

    Returns:
        What was taken, in order, and queries of classes that could not meet their quota, all of which ran out.
    """
    members: dict[int, list[int]] = {name: [] for name in quotas}
    for query, name in enumerate(classes):
        members[name].append(query)
    whole = {name: list(queries) for name, queries in members.items()}
    turns, picks, short = _Turns(candidates, gate), [], set()
    for turn in range(max(quotas.values(), default=0)):
        for name, quota in quotas.items():
            pick = None
            while turn < quota and members[name] and pick is None:
                query = members[name].pop(0)
                pick = turns.take(query, turn)
                if pick is not None:
                    members[name].append(query)  # to the end: next time another query's turn
                    picks.append(pick)
            if turn < quota and pick is None:
                short.update(whole[name])
    return picks, short


def best_match(candidates: Candidates, count: int, gate: Gate, *, is_all: bool = False) -> tuple[list[Pick], set[int]]:
    """The images with the best similarity to any query; the query that is most similar owns it, the first of equals.

    Args:
        candidates: Of each query.
        count: How many to take.
        gate: Says what may enter.
        is_all: Whether the lists hold all that may be had. Else nothing is taken that is no better than the end of a
            list: behind it something as good may stand.

    Returns:
        What was taken, in order, and the queries whose lists ended too early.
    """
    bound = -np.inf if is_all else max((own[-1][1] for own in candidates if own), default=-np.inf)
    entries = sorted(
        (-similarity, item, query, rank)
        for query, own in enumerate(candidates)
        for rank, (item, similarity) in enumerate(own)
        if similarity > bound
    )
    picks: list[Pick] = []
    for minus, item, query, rank in entries:
        if len(picks) == count:
            break
        if gate.take(item):
            picks.append(Pick(item, query, -minus, rank, len(picks)))
    ended = {query for query, own in enumerate(candidates) if own and own[-1][1] >= bound}
    return picks, ended if len(picks) < count else set()


def until_full(candidates: Candidates, count: int, gate: Gate) -> tuple[list[Pick], set[int]]:
    """Round robin until `count` are taken; where a list ends, the others go on. For sources of a random set.

    Returns:
        What was taken, in order, and the lists that ran out if there is not enough in all of them.
    """
    turns, left, turn = _Turns(candidates, gate), list(range(len(candidates))), 0
    picks: list[Pick] = []
    while left and len(picks) < count:
        for query in list(left):
            if len(picks) == count:
                break
            pick = turns.take(query, turn)
            if pick is None:
                left.remove(query)
            else:
                picks.append(pick)
        turn += 1
    return picks, set(range(len(candidates))) if len(picks) < count else set()


def neighbours_of(pairs: Iterable[tuple[int, int]], items: NDArray[np.int64]) -> dict[int, list[int]]:
    """Near items of each item, in both directions, from pairs of positions in `items`."""
    near: dict[int, list[int]] = {}
    for one, other in pairs:
        near.setdefault(int(items[one]), []).append(int(items[other]))
        near.setdefault(int(items[other]), []).append(int(items[one]))
    return near


def as_lists(places: NDArray[np.int64], similarity: NDArray[np.float64]) -> Iterator[list[tuple[int, float]]]:
    """The candidates of each query without the empty places, from (q, k) arrays."""
    for own, values in zip(places.tolist(), similarity.tolist(), strict=True):
        yield [(item, value) for item, value in zip(own, values, strict=True) if item != NOBODY]
