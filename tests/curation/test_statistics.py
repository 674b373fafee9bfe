"""How well a set serves: shares, histogram and evenness, against values by hand."""

from __future__ import annotations

import math

import pytest
import torch

from attar.curation.choose import Choice, Plan, Questions
from attar.curation.select import Pick
from attar.curation.statistics import coverage, fill, histogram

QUESTIONS = Questions(torch.zeros(3, 2, dtype=torch.float16), ("a", "b", "c"), (0, 0, 1), ("cat", "dog"))


EACH_TWO = Plan(6, {0: 2, 1: 2, 2: 2})


def choice(*queries: int, plan: Plan = EACH_TWO) -> Choice:
    picks = [Pick(item, query, 0.5, 0, 0) for item, query in enumerate(queries)]
    return Choice(tuple(picks), plan, duplicates=0, listed=4, is_cut=False, judged=len(picks))


def test_shares_count_what_each_query_got_of_what_it_wanted() -> None:
    found = fill(choice(0, 0, 0, 1), QUESTIONS)  # more than wanted is no more than all
    assert found["mean"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert (found["lowest"], found["short"], found["queries_without"]) == (0.0, 2, 1)
    assert (found["sharing"], found["shares"]) == ("queries", 3)
    assert found["by_class"] == {"cat": 4}


def test_where_classes_share_it_counts_which_query_of_a_class_got_the_images_no_more() -> None:
    plan = Plan(6, {0: 3, 1: 3}, "classes")
    full = fill(choice(0, 0, 1, 2, 2, 2, plan=plan), QUESTIONS)
    assert (full["mean"], full["short"], full["sharing"], full["shares"]) == (1.0, 0, "classes", 2)
    assert fill(choice(0, 0, 1, 2, plan=plan), QUESTIONS)["mean"] == pytest.approx((1 + 1 / 3) / 2)


def test_evenness_is_the_number_of_equally_served_ones() -> None:
    even = coverage(choice(0, 1, 2), QUESTIONS, pool=12)
    assert even == {"pool": 0.25, "effective_queries": 3.0, "effective_classes": pytest.approx(1.8899, abs=1e-4)}
    assert coverage(choice(0, 0, 0), QUESTIONS, pool=12)["effective_queries"] == 1.0


def test_the_histogram_counts_every_known_similarity() -> None:
    # vectors of float16 are a little longer or shorter than 1, so an image and itself may be more than 1 alike
    found = histogram([0.31, 0.99, 1.0, 1.0006, math.nan])
    assert sum(found["counts"]) == 4
    assert found["edges"][0] <= 0.31
    assert histogram([math.nan])["counts"] == []
