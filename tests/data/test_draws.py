from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from attar.data.draws import few_of_each_class, fifth_of_each_class, share_of_images, some_of_each_class
from attar.errors import DataError
from attar.utils.seeding import numpy_generator

LABELS = np.array([0] * 50 + [2] * 7 + [5] * 5)


def test_each_class_gives_as_many_images() -> None:
    rows = few_of_each_class(LABELS, 5, seed=0)
    assert np.bincount(LABELS[rows]).tolist() == [5, 0, 5, 0, 0, 5]
    assert len(set(rows.tolist())) == 15  # drawn without replacement
    assert (np.diff(rows) > 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_smaller_draw_is_part_of_a_larger_one(seed: int) -> None:
    # one permutation of all images cut short, or a generator that knows the count, would give other rows
    draws = [set(few_of_each_class(LABELS, count, seed=seed).tolist()) for count in range(1, 6)]
    assert all(small < large for small, large in pairwise(draws))


def test_a_draw_is_named_by_its_seed_purpose_and_class() -> None:
    labels = np.arange(60) % 3
    rows = few_of_each_class(labels, 4, seed=0)
    assert np.array_equal(rows, few_of_each_class(labels, 4, seed=0))
    assert not np.array_equal(rows, few_of_each_class(labels, 4, seed=1))
    other = some_of_each_class(labels, lambda _: 4, seed=0, key="another purpose")
    assert not np.array_equal(rows, np.flatnonzero(other))
    fewer = few_of_each_class(np.where(labels == 1, 0, labels), 4, seed=0)  # class 2 keeps its images
    assert np.array_equal(rows[labels[rows] == 2], fewer[labels[fewer] == 2])


def test_a_class_that_is_too_small_is_an_error() -> None:
    with pytest.raises(DataError, match="class 5 has 5 images, fewer than the 6 to be drawn"):
        few_of_each_class(LABELS, 6, seed=0)


def test_a_fifth_of_each_class_leaves_a_class_of_one_whole() -> None:
    labels = np.array([0] * 50 + [1] * 7 + [2] * 2 + [3])
    assert np.bincount(labels[fifth_of_each_class(labels, seed=0)], minlength=4).tolist() == [10, 1, 1, 0]


def test_a_small_class_gives_all_it_has_where_that_is_allowed() -> None:
    labels = np.array([0] * 9 + [1] * 3)
    assert np.bincount(labels[few_of_each_class(labels, 4, seed=0, or_all=True)]).tolist() == [4, 3]


def test_o8_caps_of_ham10k_give_the_published_counts() -> None:
    sizes = {"AKIEC": 327, "BCC": 514, "BKL": 1099, "DF": 115, "MEL": 1113, "NV": 6705, "VASC": 142}
    labels = numpy_generator(0, "order").permutation(np.repeat(np.arange(7), list(sizes.values())))
    caps = {100: 700, 250: 1507, 500: 2584, 1000: 4098}  # spec task_transfer §3.1
    draws = [few_of_each_class(labels, cap, seed=0, or_all=True) for cap in caps]
    assert [len(rows) for rows in draws] == list(caps.values())
    for cap, rows in zip(caps, draws, strict=True):
        assert np.bincount(labels[rows]).tolist() == [min(size, cap) for size in sizes.values()]
    assert all(set(small.tolist()) < set(large.tolist()) for small, large in pairwise(draws))


def test_a_smaller_share_is_part_of_a_larger_one():
    small, large = (set(share_of_images(40, share, seed=3).tolist()) for share in (0.125, 0.5))
    assert (len(small), len(large)) == (5, 20)
    assert small < large
    assert len(share_of_images(3, 0.01, seed=0)) == 1
    assert share_of_images(40, 0.5, seed=4).tolist() != sorted(large)
