"""What is learned from and what is chosen on, by the papers' rules; each gives positions in the training split."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from attar.data.base import Labels, Rows
from attar.utils.seeding import legacy_numpy_generator


def shuffled_fifth(count: int) -> tuple[Rows, Rows]:
    """(train, val) of so many images: the first floor(20 %) of NumPy's shuffle by seed 0 are val (spec §1.3.3)."""
    order = np.arange(count, dtype=np.int64)
    legacy_numpy_generator(0).shuffle(order)
    held_out = math.floor(0.2 * count)
    return order[held_out:], order[:held_out]


def first_fifth_of_each_class(labels: Labels) -> tuple[Rows, Rows]:
    """(train, val) as ELEVATER cuts: of each class the first ceil(20 %) in file order are val (spec §1.4).

    Args:
        labels: (n,) classes; or (n, K) zeros and ones, where val takes the first image of the first class that is
            still short, until each class has ceil(20 %) of its images. An image counts for all of its classes.
    """
    is_val = _greedy_cover(labels) if labels.ndim == 2 else _first_of_each(labels)
    return np.flatnonzero(~is_val), np.flatnonzero(is_val)


def _first_of_each(labels: Labels) -> NDArray[np.bool_]:
    is_val = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        is_val[rows[: math.ceil(len(rows) * 0.2)]] = True
    return is_val


def _greedy_cover(labels: Labels) -> NDArray[np.bool_]:
    is_val = np.zeros(len(labels), dtype=bool)
    has = labels > 0
    short = np.ceil(has.sum(axis=0) * 0.2)
    while (short > 0).any():
        row = np.flatnonzero(has[:, np.flatnonzero(short > 0)[0]] & ~is_val)[0]
        is_val[row] = True
        short -= has[row]
    return is_val


def drawn_with_replacement(class_sizes: Sequence[int], *, draws: int = 30) -> tuple[Rows, Rows]:
    """(train, test) positions of Caltech-101 in the papers' lineage: each class is drawn from with replacement.

    Images stand class after class. A draw that hits an image twice leaves it twice in train, so 102 classes give 3,060
    rows of 2,416 images; what was never drawn is test. NumPy's seed 0 (spec trap 8, SSLT and Proteus repositories).
    """
    generator, ends = legacy_numpy_generator(0), np.cumsum(class_sizes)
    train = np.concatenate(
        [
            np.sort(generator.choice(np.arange(end - size, end), draws))
            for size, end in zip(class_sizes, ends, strict=True)
        ]
    ).astype(np.int64)
    return train, np.setdiff1d(np.arange(ends[-1], dtype=np.int64), train)
