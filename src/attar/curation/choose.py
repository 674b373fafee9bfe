"""From questions to a choice: candidates are fetched and judged, longer lists where they run out, until all are met."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from attar.config import CurateConfig
from attar.curation.index import PoolIndex
from attar.curation.screen import Screen
from attar.curation.select import (
    Candidates,
    Gate,
    Pick,
    as_lists,
    best_match,
    class_balanced,
    query_balanced,
    share_of_query,
    until_full,
)
from attar.errors import ConfigError
from attar.utils.seeding import numpy_generator

_OVERSAMPLE = 4  # candidates fetched at first for each image wanted; as many as needed in the end
_ENTRIES = 50_000_000  # of all lists together, 800 MB: where a pool is nearly used up they could outgrow memory


@dataclass(frozen=True)
class Questions:
    """What a task asks a pool.

    Attributes:
        vectors: (q, D) float16 of length 1.
        names: Of each: the image's id, or the class's name.
        classes: Class of each, -1 where nobody knows.
        class_names: Names that `classes` index.
        texts: How many of them, at the end, are class names.
    """

    vectors: Tensor
    names: tuple[str, ...]
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    texts: int = 0

    def __len__(self) -> int:
        return len(self.names)

    def class_of(self, query: int) -> str | None:
        """Name of a query's class, if it is known."""
        label = self.classes[query]
        return self.class_names[label] if label >= 0 else None


@dataclass(frozen=True)
class Plan:
    """How many images are wanted of the pool.

    Attributes:
        wanted: In all.
        quotas: By query, or by class where the queries of a class share; empty where nobody has a share.
        sharing: Which of these they are of.
    """

    wanted: int
    quotas: Mapping[int, int] = field(default_factory=dict)
    sharing: Literal["queries", "classes"] = "queries"


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        picks: In order; items are places in the order of ids.
        plan: How many were wanted.
        duplicates: Images left out because one like them is in.
        listed: Length of the candidate lists in the end.
        is_cut: Whether that was too short for all that was wanted, and the pool is longer.
        judged: Images that were looked at.
    """

    picks: tuple[Pick, ...]
    plan: Plan
    duplicates: int
    listed: int
    is_cut: bool
    judged: int


def choose(
    index: PoolIndex,
    questions: Questions,
    screen: Screen,
    config: CurateConfig,
    *,
    members: int,
    ends: Sequence[int],
    device: str | torch.device = "cpu",
) -> Choice:
    """Choose images of a pool by the strategy that is set.

    Args:
        index: The pool.
        questions: Nobody asks for a random set.
        screen: Judges candidates.
        config: Strategy, budget, seed.
        members: Images that are part of the set already, and count in the budget.
        ends: Row of the pool after each of its places.
        device: Where the pool is searched.

    Raises:
        ConfigError: If the budget leaves nothing to fetch, or the strategy needs classes and there are none.
    """
    if config.budget <= members:
        raise ConfigError(
            f"budget {config.budget:,} is used up by the {members:,} labelled images, which are part of the set."
            " Raise it, or give --no-include-queries."
        )
    count = config.budget - members
    if config.strategy == "random":
        sources = _shuffled(index, ends if config.balance_sources else [len(index)], config.seed)
        return _until_met(
            lambda k: [source[:k] for source in sources],
            lambda lists, gate, is_all: until_full(lists, count, gate),
            screen,
            first=_OVERSAMPLE * -(-count // len(sources)),
            most=max(map(len, sources)),
            plan=Plan(count),
        )

    def fetch(k: int) -> Candidates:
        found = index.search(questions.vectors, k, device=device)
        return list(as_lists(found.place.numpy(), found.similarity.numpy()))

    take, plan = _strategy(questions, config, members, count)
    most = min(len(index), max(1, _ENTRIES // len(questions)))
    share = -(-plan.wanted // len(questions))
    if plan.sharing == "queries":
        share = max((share, *plan.quotas.values()))
    return _until_met(fetch, take, screen, first=_OVERSAMPLE * share, most=most, plan=plan, whole=len(index))


Take = Callable[[Candidates, Gate, bool], tuple[list[Pick], set[int]]]


def _strategy(questions: Questions, config: CurateConfig, members: int, count: int) -> tuple[Take, Plan]:
    """The strategy as a function of candidates, and how many it wants."""
    if config.strategy == "best_match":
        return (lambda lists, gate, is_all: best_match(lists, count, gate, is_all=is_all)), Plan(count)
    if config.strategy == "class_balanced":
        shares = _class_shares(questions, config.budget, members)
        plan = Plan(sum(shares.values()), shares, "classes")
        return (lambda lists, gate, is_all: class_balanced(lists, questions.classes, shares, gate)), plan
    quotas = _quotas(questions, config, members, count)
    plan = Plan(sum(quotas), dict(enumerate(quotas)))
    return (lambda lists, gate, is_all: query_balanced(lists, quotas, gate)), plan


def _quotas(questions: Questions, config: CurateConfig, members: int, count: int) -> tuple[int, ...]:
    """How many each query may take, images and names apart."""
    images = len(questions) - questions.texts
    if not questions.texts:
        includes = members == images
        return (share_of_query(images, config.budget if includes else count, include_queries=includes),) * images
    if not images:
        return (share_of_query(questions.texts, count, include_queries=False),) * questions.texts
    by_text = round(config.text_share * count)
    of_image = share_of_query(images, count - by_text, include_queries=False)
    of_text = share_of_query(questions.texts, by_text, include_queries=False)
    return (of_image,) * images + (of_text,) * questions.texts


def _class_shares(questions: Questions, budget: int, members: int) -> dict[int, int]:
    """How many images each class fetches, so that all have equally many in the set, their queries included."""
    names = sorted(set(questions.classes))
    if names == [-1]:
        raise ConfigError("strategy class_balanced needs classes: one folder for each. Or try query_balanced.")
    own = {name: questions.classes.count(name) if members else 0 for name in names}
    shares = {name: max(0, budget // len(names) - own[name]) for name in names}
    if not any(shares.values()):
        raise ConfigError(f"budget {budget:,} leaves no image for each of {len(names)} classes. Raise it.")
    return shares


def _shuffled(index: PoolIndex, ends: Sequence[int], seed: int) -> list[list[tuple[int, float]]]:
    """The images of each source in an order by seed, which ids decide and rows do not."""
    return [
        [(int(place), float("nan")) for place in numpy_generator(seed, "curate", number).permutation(places)]
        for number, places in enumerate(index.by_source(ends))
    ]


def _until_met(
    fetch: Callable[[int], Candidates],
    take: Take,
    screen: Screen,
    *,
    first: int,
    most: int,
    plan: Plan,
    whole: int | None = None,
) -> Choice:
    """Double the lists until nobody's runs out before its share is met, or they hold all that may be had."""
    k = min(max(1, first), most)
    while True:
        lists = fetch(k)
        items = np.unique(np.array([item for own in lists for item, _ in own], dtype=np.int64))
        gate = screen.gate(items)
        picks, short = take(lists, gate, k == (whole or most))
        if not short or k == most:
            is_cut = bool(short) and k < (whole or most)
            return Choice(tuple(picks), plan, len(gate.duplicates), k, is_cut, len(screen.judged))
        k = min(2 * k, most)
