"""Two models on the same images: neighbours, agreement, classes."""

from __future__ import annotations

import pytest
import torch

from attar.evaluation.side_by_side import Found, Outcome, agreement, by_class, find, predictions, shared

CIRCLE = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [-1.0, 0.0]])


def test_a_query_of_the_bank_does_not_find_itself():
    found = find(CIRCLE, CIRCLE, k=2, own=torch.arange(5))
    assert found.rows.shape == (5, 2)
    assert found.rows[:, 0].tolist() == [1, 0, 3, 2, 2]
    assert not (found.rows == torch.arange(5)[:, None]).any()


def test_a_query_with_many_equals_finds_k_of_them_and_not_itself():
    found = find(torch.ones(6, 2), torch.ones(6, 2), k=2, own=torch.arange(6))
    assert found.rows.shape == (6, 2)
    assert not (found.rows == torch.arange(6)[:, None]).any()


def test_other_images_find_the_nearest():
    assert find(CIRCLE, torch.tensor([[0.0, 2.0]]), k=1).rows.tolist() == [[2]]


def test_shared_says_which_neighbours_both_find():
    one, other = (Found(torch.ones(1, 3), torch.tensor([rows])) for rows in ([1, 2, 3], [3, 9, 1]))
    assert shared(one, other).tolist() == [[True, False, True]]
    assert shared(other, one).tolist() == [[True, False, True]]


def test_agreement_is_one_for_turned_features_and_minus_one_for_the_opposite_order():
    turned = CIRCLE @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    wider = torch.cat([turned, torch.zeros(5, 3)], dim=1)
    own = torch.arange(5)
    assert agreement((CIRCLE, CIRCLE), (wider, wider), own=own) == pytest.approx(torch.ones(5), abs=1e-5)
    bank, query = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert agreement((bank, query), (bank, -query)).item() == pytest.approx(-1.0)


def test_an_image_does_not_count_in_its_own_agreement():
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(4, 30, generator=generator) for _ in range(2))
    own = torch.arange(4)
    # unrelated features: the similarity of 1 to itself is all that they have in common
    assert agreement((one, one), (other, other)).min() > 0.7
    assert agreement((one, one), (other, other), own=own).min() < 0.7


def test_classes_are_voted_for():
    found = Found(torch.tensor([[0.9, 0.2, 0.2]]), torch.tensor([[0, 1, 2]]))
    labels = torch.tensor([1, 0, 0])
    assert predictions(found, labels, num_classes=2).tolist() == [1]  # one near neighbour outvotes two far ones


def test_gains_and_losses_are_counted_class_by_class():
    targets = torch.tensor([0, 0, 0, 0, 5, 5])
    one, other = torch.tensor([0, 0, 0, 5, 5, 0]), torch.tensor([0, 5, 5, 5, 5, 5])
    found = by_class(one, other, targets)
    assert (found[0].images, found[0].one, found[0].other) == (4, 0.75, 0.25)
    assert (found[5].images, found[5].one, found[5].other) == (2, 0.5, 1.0)


def test_the_margin_shrinks_with_images_and_is_never_nothing():
    right, wrong = torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)
    assert Outcome.of(right, right).margin > 0.3
    few = Outcome.of(right, torch.tensor([True, True, True, False])).margin
    many = Outcome.of(right.repeat(100), torch.tensor([True, True, True, False]).repeat(100)).margin
    assert many == pytest.approx(1.96 * (0.25 * 0.75 / 400) ** 0.5, rel=0.05)
    assert few > 5 * many
    assert Outcome.of(wrong, right).other == 1.0
