"""The order of views: a true shuffle that nobody stores, the same for any number of ranks."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attar.data.sampler import ViewOrder, permute

IMAGENET = 1_281_167


def places(start, stop):
    return np.arange(start, stop, dtype=np.int64)


def epoch(order, number):
    """(samples, views) of one epoch."""
    return order.at(places(number * order.epoch_length, (number + 1) * order.epoch_length))


# --- oracles of the Proteus spec, 6.8 -------------------------------------------------------------------------------


def test_imagenet_epochs_and_steps_are_those_of_the_paper():
    order = ViewOrder(IMAGENET, seed=0, repeats=3)
    assert order.epoch_length == 1_281_024
    assert [order.num_steps(1, batch) for batch in (1024, 512, 256)] == [1251, 2502, 5004]
    assert [order.num_steps(300, batch) for batch in (1024, 512, 256)] == [375_300, 750_600, 1_501_200]
    assert order.epoch_length // 8 == 160_128
    assert order.epoch_length // 4 == 320_256


def test_an_imagenet_epoch_shows_a_third_of_the_images_three_times():
    samples, views = epoch(ViewOrder(IMAGENET, seed=0, repeats=3), 1)
    counts = np.bincount(samples, minlength=IMAGENET)
    assert len(counts) == IMAGENET
    assert (counts == 3).sum() == 427_008
    assert (counts == 0).sum() == IMAGENET - 427_008
    assert np.bincount(views).tolist() == [0, 0, 0, 427_008, 427_008, 427_008]


@pytest.mark.parametrize(
    ("images", "epochs", "batch", "steps"),
    [(1000, 1, 768, 1), (1000, 1, 767, 2), (1000, 2.5, 100, 20), (50, 1, 64, 1), (50, 2, 64, 2), (1000, 0.001, 64, 1)],
)
def test_steps_of_other_lengths(images, epochs, batch, steps):
    assert ViewOrder(images, seed=0, repeats=3).num_steps(epochs, batch) == steps


# --- which views an epoch shows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "length", "repeats"), [(255, 255, 1), (256, 256, 3), (257, 256, 3), (1023, 768, 3)])
def test_repeats_begin_at_256_images(images, length, repeats):
    order = ViewOrder(images, seed=0, repeats=3)
    assert (order.epoch_length, order.views_per_sample) == (length, repeats)


@pytest.mark.parametrize("images", [1, 2, 50, 255])
@pytest.mark.parametrize("repeats", [1, 3])
def test_below_256_each_image_comes_once_an_epoch(images, repeats):
    order = ViewOrder(images, seed=0, repeats=repeats)
    for number in (0, 1, 7):
        samples, views = epoch(order, number)
        assert sorted(samples) == list(range(images))
        assert set(views) == {number}


def test_copies_are_neighbours_with_views_in_order():
    samples, views = epoch(ViewOrder(1000, seed=0, repeats=3), 2)
    assert (samples.reshape(-1, 3) == samples[::3, None]).all()
    assert (views.reshape(-1, 3) == [6, 7, 8]).all()


def test_without_repeats_every_image_but_the_odd_ones_comes_once():
    samples, views = epoch(ViewOrder(1000, seed=0), 0)
    assert len(set(samples)) == len(samples) == 768
    assert set(views) == {0}


@settings(max_examples=60, deadline=None)
@given(images=st.integers(1, 700), repeats=st.integers(1, 5), seed=st.integers(0, 2**63))
def test_no_view_comes_twice_within_and_across_epochs(images, repeats, seed):
    order = ViewOrder(images, seed=seed, repeats=repeats)
    samples, views = order.at(places(0, 4 * order.epoch_length))
    assert samples.min() >= 0
    assert samples.max() < images
    assert len(set(zip(samples.tolist(), views.tolist(), strict=True))) == 4 * order.epoch_length


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(epoch(ViewOrder(200, seed=seed), number)[0]) for seed in (0, 1) for number in (0, 1, 2)]
    assert len(set(orders)) == 6


def test_with_repeats_every_image_has_its_turn():
    # a fixed third of the images in every epoch would leave two thirds unseen
    order = ViewOrder(768, seed=0, repeats=3)
    seen = [set(epoch(order, number)[0].tolist()) for number in range(30)]
    assert len(set.union(*seen)) == 768


# --- the same stream for any number of ranks ------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 700),
    start=st.integers(0, 5000),
    cuts=st.lists(st.integers(0, 96), max_size=6),
    seed=st.integers(0, 1000),
)
def test_any_cut_of_a_steps_places_gives_the_same_samples(images, start, cuts, seed):
    order = ViewOrder(images, seed=seed, repeats=3)
    whole = order.at(places(start, start + 96))
    bounds = [0, *sorted(cuts), 96]
    parts = [order.at(places(start + a, start + b)) for a, b in itertools.pairwise(bounds)]
    for together, column in zip(whole, range(2), strict=True):
        np.testing.assert_array_equal(np.concatenate([part[column] for part in parts]), together)
    shuffled = np.random.default_rng(seed).permutation(places(start, start + 96))
    np.testing.assert_array_equal(order.at(shuffled)[0], whole[0][shuffled - start])


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_ranks_together_see_the_stream_of_one(ranks):
    order, batch = ViewOrder(300, seed=5, repeats=3), 24
    one = order.at(places(0, 40 * batch))
    share = batch // ranks
    for step in range(40):
        for rank in range(ranks):
            mine = order.at(places(step * batch + rank * share, step * batch + (rank + 1) * share))
            at = slice(step * batch + rank * share, step * batch + (rank + 1) * share)
            np.testing.assert_array_equal(mine, [column[at] for column in one])


def test_the_stream_does_not_change_between_versions():
    # a run that is resumed with a newer attar goes on with the same images; these numbers must never change
    samples, views = ViewOrder(IMAGENET, seed=0, repeats=3).at(np.array([0, 3, 6, 1_281_024, 10**9, 10**12]))
    assert samples.tolist() == [591852, 1021751, 425123, 164029, 862308, 355283]
    assert views.tolist() == [0, 0, 0, 3, 2341, 2341876]
    assert permute(places(0, 10), 10, key=1).tolist() == [2, 5, 0, 9, 7, 1, 3, 4, 8, 6]


# --- the permutation ------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(size=st.integers(1, 5000), key=st.integers(0, 2**64 - 1))
def test_permute_sends_every_position_to_one_of_its_own(size, key):
    assert np.array_equal(np.sort(permute(places(0, size), size, key)), places(0, size))


@pytest.mark.parametrize("size", [*range(1, 20), 255, 256, 257, 65_535, 65_536, 65_537, IMAGENET])
def test_permute_at_the_bounds_of_its_bits(size):
    found = permute(places(0, size), size, key=7)
    assert np.bincount(found, minlength=size).tolist() == [1] * size


@pytest.mark.parametrize("size", [10**9, 2**40 + 1, 2**52, 10**18])
def test_permute_of_very_many(size):
    positions = np.unique(np.random.default_rng(0).integers(0, size, 20_000))
    found = permute(positions, size, key=7)
    assert len(np.unique(found)) == len(positions)
    assert found.min() >= 0
    assert found.max() < size
    assert 0.49 < (found / size).mean() < 0.51


def assert_uniform(values, bins):
    """Chi-square within four standard deviations of what chance gives, on both sides."""
    counts = np.bincount(values, minlength=bins)
    assert len(counts) == bins
    expected = len(values) / bins
    chi_square, freedom = ((counts - expected) ** 2 / expected).sum(), bins - 1
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom), f"{chi_square:.1f} with {freedom} degrees of freedom"


@pytest.mark.parametrize("size", [4, 5, 13, 100])
def test_permute_is_uniform(size):
    both = np.array([permute(np.array([0, 1], dtype=np.int64), size, key) for key in range(2000)])
    first, second = both.T
    assert_uniform(first, size)
    assert_uniform(second, size)
    assert_uniform((second - first) % size - 1, size - 1)  # a rotation by the key would be uniform above


def test_permute_keeps_no_neighbourhood():
    found = permute(places(0, 10_000), 10_000, key=3)
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.04  # four standard deviations
    assert abs(np.corrcoef(places(0, 10_000), found)[0, 1]) < 0.04
    fixed = [int((permute(places(0, 500), 500, key) == places(0, 500)).sum()) for key in range(400)]
    assert 0.8 < np.mean(fixed) < 1.2  # one on average, whatever the size


def test_keys_that_are_neighbours_give_unrelated_orders():
    orders = np.array([permute(places(0, 300), 300, key) for key in range(60)])
    agree = (orders[:-1] == orders[1:]).sum(1)
    assert agree.max() < 10
    assert 0.4 < agree.mean() < 1.6


@pytest.mark.parametrize("repeats", [1, 2, 3])
@pytest.mark.parametrize("cycle", [None, 1, 2, 4])
@pytest.mark.parametrize("count", [100, 512, 700, 1500, 4000])
def test_how_many_different_views_are_shown(repeats: int, cycle: int | None, count: int) -> None:
    order = ViewOrder(600, seed=3, repeats=repeats, cycle=cycle)
    shown = len(set(zip(*(found.tolist() for found in order.at(np.arange(count))), strict=True)))
    assert order.distinct(count) == pytest.approx(shown, rel=0.03)


def test_views_come_again_after_a_cycle_and_images_keep_their_order() -> None:
    plain, cycled = ViewOrder(300, seed=1, repeats=2), ViewOrder(300, seed=1, repeats=2, cycle=3)
    places = np.arange(2000, dtype=np.int64)
    (samples, views), (same, again) = plain.at(places), cycled.at(places)
    assert np.array_equal(samples, same)
    assert np.array_equal(views % 3, again)
    assert set(again.tolist()) == {0, 1, 2}
