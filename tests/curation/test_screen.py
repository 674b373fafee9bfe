"""Who may not enter a transfer set, for which reason, and what is remembered of it."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from attar.curation.index import PoolIndex
from attar.curation.pool import Pool
from attar.curation.screen import Guarded, Leak, Pixels, Screen
from attar.curation.select import Gate
from attar.data.sources import open_source
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
    assert screen.leaks[thirty] == Leak(pytest.approx(similar(1), abs=2e-3), "near")
    assert screen.leaks[two] == Leak(pytest.approx(similar(8), abs=2e-3), "far")
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


def noise(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (12, 12, 3)).astype(np.uint8)).resize(
        (64, 64)
    )


@pytest.fixture
def shown(index, tmp_path):
    """Images of the pool by row, of guarded ones 0 and 1; what is 30 and 90 shows a part of 1, 60 cannot be read."""
    part = noise(1).crop((20, 8, 60, 48)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    images = {0: noise(2), 2: noise(3), 30: part, 60: None, 62: noise(4), 90: part}
    for folder, kept in (("pool", [images[angle] for angle in DEGREES]), ("guarded", [noise(0), noise(1)])):
        (tmp_path / folder).mkdir()
        for number, image in enumerate(kept):
            image.save(tmp_path / folder / f"{number}.png") if image else (tmp_path / folder / f"{number}.png").touch()
    return open_source(str(tmp_path / "pool")), open_source(str(tmp_path / "guarded"))


def test_suspects_are_compared_by_pixels_and_those_that_cannot_be_read_stay_out(index, shown) -> None:
    pixels = Pixels(similar(56), *shown, rows=np.array([0, 1, 1]))
    screen = Screen(index, Guarded(directions(8, 9, 200), ("none", "whole", "whole"), similar(12), pixels))
    gate = screen.gate(EVERY)
    nought, two, thirty, sixty = places(index, 0, 2, 30, 60)
    assert {item: leak.found_by for item, leak in screen.leaks.items()} == {
        nought: "similarity",
        two: "similarity",
        thirty: "pixels",
        sixty: "unreadable",
    }
    assert screen.leaks[thirty] == Leak(pytest.approx(similar(21), abs=2e-3), "whole", "pixels")  # not the most similar
    assert let_in(index, gate) == [62, 90]  # other pixels, and too unlike to be compared
    assert (screen.suspects, screen.pairs) == (3, 6)


def test_the_nearest_guarded_images_are_compared_each_in_one_view(index, shown) -> None:
    pixels = Pixels(similar(25), *shown, rows=np.array([0, 0, 0, 1]))
    guarded = Guarded(directions(44, 46, 50, 54), ("none", "none", "none", "whole"), similar(12), pixels)
    screen = Screen(index, guarded)
    screen.gate(np.sort(places(index, 30)))
    assert screen.leaks == {places(index, 30)[0]: Leak(pytest.approx(similar(24), abs=2e-3), "whole", "pixels")}
    assert (screen.suspects, screen.pairs) == (1, 2)
