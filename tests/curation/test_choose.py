"""From questions to a choice: how shares are reckoned, and that lists grow until they are met."""

import pytest
import torch
import torch.nn.functional as F

from attar.config import CurateConfig
from attar.curation.choose import Questions, choose
from attar.curation.index import PoolIndex
from attar.curation.pool import Pool
from attar.curation.screen import Screen
from attar.errors import ConfigError
from small_pools import random_pool


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> PoolIndex:
    vectors = F.normalize(torch.randn(120, 8, generator=torch.Generator().manual_seed(0)), dim=1).half()
    return PoolIndex(Pool.open(random_pool(tmp_path_factory.mktemp("pool"), vectors)))


def questions(index: PoolIndex, *classes: int, texts: int = 0) -> Questions:
    """Questions that are images of the pool themselves."""
    names = tuple(f"query {number}" for number in range(len(classes)))
    return Questions(index.pool.vectors(range(len(classes))), names, classes, ("cat", "dog"), texts)


def config(**settings) -> CurateConfig:
    return CurateConfig.build({"pool": "pool", "queries": "queries", "out": "out"} | settings)


def chosen(index: PoolIndex, asks: Questions, *, members: int = 0, screen: Screen | None = None, **settings):
    return choose(index, asks, screen or Screen(index), config(**settings), members=members, ends=[40, len(index)])


def counts(picks, of) -> dict:
    found: dict = {}
    for pick in picks:
        found[of(pick)] = found.get(of(pick), 0) + 1
    return found


def test_images_and_names_share_what_is_fetched_by_the_share_that_is_set(index) -> None:
    asks = questions(index, 0, 0, 1, 0, 1, texts=2)
    choice = chosen(index, asks, budget=30, strategy="mixed", text_share=0.4)
    assert counts(choice.picks, lambda pick: pick.query) == {0: 6, 1: 6, 2: 6, 3: 6, 4: 6}
    assert (choice.plan.wanted, len(choice.picks)) == (30, 30)


def test_classes_have_equally_many_their_queries_included(index) -> None:
    asks = questions(index, 0, 0, 0, 1)
    choice = chosen(index, asks, members=4, budget=20, strategy="class_balanced")
    assert choice.plan.quotas == {0: 7, 1: 9}
    assert counts(choice.picks, lambda pick: asks.classes[pick.query]) == {0: 7, 1: 9}


def test_lists_grow_where_the_screen_refuses_their_beginnings(index) -> None:
    asks = questions(index, 0)
    nearest = index.search(asks.vectors, 100).place[0].tolist()
    choice = chosen(index, asks, screen=Screen(index, excluded=set(nearest[:90])), budget=5, include_queries=False)
    assert [pick.item for pick in choice.picks] == nearest[90:95]
    assert choice.listed >= 95
    assert not choice.is_cut
    assert choice.judged == choice.listed


def test_a_pool_that_is_used_up_is_a_shortfall_and_no_cut(index) -> None:
    choice = chosen(index, questions(index, 0), budget=500, include_queries=False)
    assert (len(choice.picks), choice.plan.wanted, choice.is_cut) == (120, 500, False)


def test_a_random_set_asks_nobody_and_follows_the_seed(index) -> None:
    nobody = Questions(torch.empty(0, 8, dtype=torch.float16), (), (), ())
    sets = [
        [pick.item for pick in chosen(index, nobody, budget=20, strategy="random", seed=seed).picks]
        for seed in (0, 0, 1)
    ]
    assert sets[0] == sets[1] != sets[2]
    assert len(set(sets[0])) == 20
    even = chosen(index, nobody, budget=20, strategy="random", balance_sources=True)
    assert counts(even.picks, lambda pick: bool(index.rows([pick.item])[0] < 40)) == {True: 10, False: 10}


@pytest.mark.parametrize(
    ("classes", "settings", "says"),
    [
        ((0, 1), {"budget": 2}, "budget 2 is used up by the 2 labelled images"),
        ((-1, -1), {"budget": 9, "strategy": "class_balanced"}, "class_balanced needs classes"),
        ((0, 0, 0, 1, 1, 1), {"budget": 7, "strategy": "class_balanced"}, "leaves no image for each of 2 classes"),
    ],
)
def test_budgets_and_strategies_that_give_nothing_are_refused(index, classes, settings, says) -> None:
    with pytest.raises(ConfigError, match=says):
        chosen(index, questions(index, *classes), members=len(classes), **settings)
