"""Images drawn from each class by seed: a few labels to learn from, a part to set apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from attar.data.base import Labels, Rows
from attar.errors import DataError
from attar.utils.seeding import numpy_generator

_ONE_IN = 5


def some_of_each_class(
    labels: Labels, how_many: Callable[[int], int], *, seed: int, key: str = "few shot"
) -> NDArray[np.bool_]:
    """(n,) bool: which images are drawn, without replacement.

    A class's draw depends on no other class, and where fewer are drawn by the same seed they are among those of a
    larger draw.

    Args:
        labels: (n,) classes.
        how_many: From the number of images of a class, how many of them are drawn.
        seed: Names the draw.
        key: Names its purpose: draws for different ones have nothing to do with each other.
    """
    is_drawn = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        is_drawn[numpy_generator(seed, key, int(label)).permutation(rows)[: how_many(len(rows))]] = True
    return is_drawn


def few_of_each_class(labels: Labels, count: int, *, seed: int, or_all: bool = False) -> Rows:
    """Rows, ascending, of `count` images of each class; the rows for a smaller count are among them.

    Args:
        labels: (n,) classes.
        count: Images of each class.
        seed: Names the draw.
        or_all: Of a class with fewer images take all it has.

    Raises:
        DataError: If a class has fewer images, without `or_all`.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    short = next((n for n, size in enumerate(sizes.tolist()) if size < count and not or_all), None)
    if short is not None:
        raise DataError(
            f"class {classes[short]} has {sizes[short]} images, fewer than the {count} to be drawn. Draw fewer."
        )
    return np.flatnonzero(some_of_each_class(labels, lambda _: count, seed=seed))


def share_of_images(count: int, share: float, *, seed: int) -> Rows:
    """Rows, ascending, of a share of `count` images, one at least; those of a smaller share are among them.

    Args:
        count: Images there are.
        share: In (0, 1].
        seed: Names the draw.
    """
    order = numpy_generator(seed, "share").permutation(count)
    return np.sort(order[: max(1, round(share * count))])


def fifth_of_each_class(labels: Labels, *, seed: int) -> NDArray[np.bool_]:
    """(n,) bool: a fifth of each class, to choose settings by; one image at least, and none of a class of one."""
    return some_of_each_class(
        labels, lambda size: min(size - 1, max(1, round(size / _ONE_IN))), seed=seed, key="hold out"
    )
