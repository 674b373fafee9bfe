import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attar.curation.grounding import assignment_greedy, facility_location, short_of, topk_union
from attar.curation.search import Found
from attar.curation.select import Gate, as_lists, best_match

SCORES = [[0.9, 0.8, 0.1, 0.2], [0.85, 0.2, 0.3, 0.1], [0.1, 0.15, 0.6, 0.55]]
"""Three images by four sentences (spec dime_fm 6.6)."""


def found_in(scores, k, places=None) -> Found:
    """The k most similar sentences of each image, of equal ones that with the lower place."""
    scores = np.asarray(scores, dtype=float)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return Found(torch.from_numpy(np.take_along_axis(scores, order, axis=1)), torch.from_numpy(order))


def tied_scores(seed, images=6, sentences=9):
    """Few values, so that many are equal."""
    return np.random.default_rng(seed).integers(0, 5, (images, sentences)) / 4


def test_the_union_of_the_nearest_is_that_of_the_specification():
    assert sorted(topk_union(found_in(SCORES, 1)).sentence) == [0, 2]
    assert sorted(topk_union(found_in(SCORES, 2)).sentence) == [0, 1, 2, 3]


def test_a_sentence_of_the_union_is_that_of_its_best_image():
    chosen = topk_union(found_in(SCORES, 2))
    assert chosen.sentence.tolist() == [0, 1, 2, 3]
    assert chosen.image.tolist() == [0, 0, 2, 2]
    assert chosen.similarity.tolist() == [0.9, 0.8, 0.6, 0.55]
    assert chosen.rank.tolist() == [0, 1, 0, 1]


def test_a_budget_takes_the_least_k_that_fills_it_and_the_best_of_that():
    scores = [[0.9, 0.8, 0.7, 0.1], [0.1, 0.2, 0.3, 0.4]]
    chosen = topk_union(found_in(scores, 4), count=2)
    assert chosen.sentence.tolist() == [0, 3]  # k = 1 is enough: 0.8 and 0.7 are better than 0.4, and second choices
    assert topk_union(found_in(scores, 4), count=3).sentence.tolist() == [0, 1, 3]
    assert len(topk_union(found_in(scores, 2), count=4)) == 4
    assert len(topk_union(found_in(scores, 1), count=4)) == 2  # no more is known


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_the_union_is_the_best_matches_of_lists_cut_at_k(seed, k):
    found = found_in(tied_scores(seed), k)
    lists = list(as_lists(found.place.numpy(), found.similarity.numpy()))
    picks, _ = best_match(lists, 100, Gate(), is_all=True)
    chosen = topk_union(found)
    assert chosen.sentence.tolist() == [pick.item for pick in picks]
    assert chosen.image.tolist() == [pick.query for pick in picks]
    assert chosen.rank.tolist() == [pick.rank for pick in picks]


def test_greedy_assignment_is_that_of_the_specification():
    chosen = assignment_greedy(found_in(SCORES, 4))
    assert list(zip(chosen.image.tolist(), chosen.sentence.tolist(), strict=True)) == [(0, 0), (2, 2), (1, 1)]
    assert chosen.similarity.sum() == pytest.approx(1.70)  # the best assignment has 2.25


def test_an_image_whose_candidates_are_all_taken_stays_short():
    chosen = assignment_greedy(found_in([[0.9, 0.1], [0.8, 0.2]], 1))
    assert chosen.image.tolist() == [0]
    assert short_of(chosen, images=2, per_image=1) == 1
    assert short_of(assignment_greedy(found_in([[0.9, 0.1], [0.8, 0.2]], 2)), images=2, per_image=1) == 0


def by_hand(scores, per_image, count):
    """Every pair in order of (similarity, sentence, image)."""
    pairs = sorted((-score, sentence, image) for (image, sentence), score in np.ndenumerate(scores))
    left, taken, picks = [per_image] * len(scores), set(), []
    for _, sentence, image in pairs:
        if len(picks) < count and left[image] and sentence not in taken:
            left[image] -= 1
            taken.add(sentence)
            picks.append((image, sentence))
    return picks


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 12))
def test_with_all_candidates_the_assignment_is_that_of_all_pairs(seed, per_image, count):
    scores = tied_scores(seed)
    chosen = assignment_greedy(found_in(scores, 9), per_image=per_image, count=count)
    assert list(zip(chosen.image.tolist(), chosen.sentence.tolist(), strict=True)) == by_hand(scores, per_image, count)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_more_candidates_change_nothing_where_no_image_is_short(seed, k):
    found = found_in(tied_scores(seed), k)
    chosen = assignment_greedy(found)
    if short_of(chosen, images=6, per_image=1) == 0:
        whole = assignment_greedy(found_in(tied_scores(seed), 9))
        assert chosen.sentence.tolist() == whole.sentence.tolist()
        assert chosen.image.tolist() == whole.image.tolist()


def served_by(scores, sentences):
    """The sum over images of the best similarity to one of the sentences."""
    return np.maximum(np.asarray(scores)[:, list(sentences)].max(axis=1), 0).sum()


def test_facility_location_is_that_of_the_specification():
    chosen = facility_location(found_in(SCORES, 4), count=2)
    assert chosen.sentence.tolist() == [0, 2]  # 0.9 + 0.85 + 0.1, then 0.5 more
    assert served_by(SCORES, chosen.sentence) == pytest.approx(2.35)
    assert chosen.image.tolist() == [0, 2]


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_lazy_greedy_is_greedy_and_near_the_best_choice(seed, count):
    # catches gains that are kept from an earlier round
    scores = np.random.default_rng(seed).normal(size=(6, 9))
    chosen = facility_location(found_in(scores, 9), count=count).sentence.tolist()
    by_hand = []
    for _ in range(len(chosen)):
        by_hand.append(max(range(9), key=lambda sentence: served_by(scores, [*by_hand, sentence])))
    assert chosen == by_hand
    best = max(served_by(scores, choice) for choice in itertools.combinations(range(9), count))
    assert served_by(scores, chosen) >= (1 - 1 / np.e) * best


def test_a_duplicate_adds_nothing():
    doubled = np.hstack([SCORES, SCORES])
    assert facility_location(found_in(doubled, 8), count=8).sentence.tolist() == [0, 2]


def test_nothing_found_is_nothing_chosen():
    assert len(facility_location(Found.nothing(3, 2), count=2)) == 0
    for choose in (topk_union, assignment_greedy):
        assert len(choose(Found.nothing(3, 2))) == 0
        assert len(choose(Found.nothing(3, 2), count=5)) == 0
