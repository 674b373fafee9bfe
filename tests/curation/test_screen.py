"""Who may not enter a transfer set, for which reason, and what is remembered of it."""

import math

import numpy as np
import pytest
import torch

from attar.curation.index import PoolIndex
from attar.curation.pool import Pool
from attar.curation.screen import Guarded, Screen
from attar.curation.select import Gate
from small_pools import random_pool

DEGREES = (0, 2, 30, 60, 62, 90)


def directions(*degrees: float) -> torch.Tensor:
    """(n, 2) float16 vectors of length 1."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1).half()


@pytest.fixture
def index(tmp_path) -> PoolIndex:
    return PoolIndex(Pool.open(random_pool(tmp_path, directions(*DEGREES))))


def places(index: PoolIndex, *degrees: float) -> list[int]:
    """Where the images of these directions stand in the order of ids."""
    rows = index.rows(range(len(index))).tolist()
    return [rows.index(DEGREES.index(angle)) for angle in degrees]


def let_in(index: PoolIndex, gate: Gate) -> list[int]:
    """The directions that a gate lets in, asked in their order."""
    return [angle for angle, place in zip(DEGREES, places(index, *DEGREES), strict=True) if gate.take(place)]


def similar(degrees: float) -> float:
    return math.cos(math.radians(degrees))


EVERY = np.arange(len(DEGREES))


def test_a_copy_of_a_guarded_image_is_refused_with_the_one_it_is_most_like(index) -> None:
    guarded = Guarded(directions(10, 31, 200), ("far", "near", "away"), similar(12))
    screen = Screen(index, guarded)
    gate = screen.gate(EVERY)
    (thirty, two, nought) = places(index, 30, 2, 0)
    assert screen.leaks.keys() == {thirty, two, nought}
    assert screen.leaks[thirty] == (pytest.approx(similar(1), abs=2e-3), "near")
    assert screen.leaks[two] == (pytest.approx(similar(8), abs=2e-3), "far")
    assert let_in(index, gate) == [60, 62, 90]


def test_without_a_threshold_nothing_is_a_duplicate_nor_a_copy_of_a_member(index) -> None:
    assert let_in(index, Screen(index, members=directions(0)).gate(EVERY)) == list(DEGREES)


def test_copies_of_members_and_excluded_images_never_enter_and_of_near_duplicates_one(index) -> None:
    screen = Screen(index, excluded=places(index, 90), members=directions(0), duplicate_threshold=similar(3))
    gate = screen.gate(EVERY)
    assert screen.copies_of_members == set(places(index, 0, 2))
    assert let_in(index, gate) == [30, 60]
    assert gate.duplicates == set(places(index, 62))


def test_what_was_judged_once_is_not_judged_again(index) -> None:
    screen = Screen(index, Guarded(directions(0), ("test",), similar(3)))
    screen.gate(np.sort(places(index, 0, 30)))
    assert screen.leaks.keys() == set(places(index, 0))
    screen.leaks.clear()
    screen.gate(EVERY)
    assert screen.leaks.keys() == set(places(index, 2))  # the new one alone
    assert screen.judged == set(range(len(DEGREES)))
