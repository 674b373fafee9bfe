"""Labelled images in two parts, one to learn from and one to be judged on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attar.data.base import Labels, Rows, Source
from attar.data.files import SHARD_SUFFIXES, is_url, local_path
from attar.data.references import split_reference
from attar.data.sources import open_source
from attar.errors import DataError
from attar.utils.seeding import numpy_generator

__all__ = ["Labelled", "Rows", "open_labelled"]

_TEST_NAMES = ("val", "test", "validation")


@dataclass(frozen=True)
class Labelled:
    """Chosen rows of a source, with their classes.

    Attributes:
        source: Where the images are.
        rows: (n,) rows of the source.
        labels: (n,) class of each.
        class_names: Names that `labels` index.
    """

    source: Source
    rows: Rows
    labels: Labels
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: Rows) -> Labelled:
        """The part at positions `chosen`."""
        return Labelled(self.source, self.rows[chosen], self.labels[chosen], self.class_names)


def open_labelled(reference: str, *, seed: int, reindex: bool = False) -> tuple[Labelled, Labelled]:
    """Open labelled images as (train, test).

    A folder with `train` and `val` (or `test`), each one folder per class, a Parquet file or a tar, keeps that split.
    One folder per class, Parquet files, tar shards or the playground is split in halves by seed, class by class.
    Options after `?` hold for both parts.

    Raises:
        DataError: If there are no labels, one class only, or the two parts have different classes.
    """
    place, _ = split_reference(reference)
    parts = None if is_url(place) else _given_split(local_path(place))
    if parts is not None:
        train, test = (_all_rows(str(part) + reference.removeprefix(place), reindex) for part in parts)
        if train.class_names != test.class_names:
            odd = sorted(set(train.class_names) ^ set(test.class_names))
            raise DataError(f"{parts[0]} and {parts[1]} have different classes, such as {', '.join(odd[:5])}.")
        return train, test
    everything = _all_rows(reference, reindex)
    is_test = _half_of_each_class(everything.labels, seed)
    return everything.take(np.flatnonzero(~is_test)), everything.take(np.flatnonzero(is_test))


def _given_split(folder: Path) -> tuple[Path, Path] | None:
    for ending in ("", *SHARD_SUFFIXES):
        train = folder / f"train{ending}"
        tests = [folder / f"{name}{ending}" for name in _TEST_NAMES if (folder / f"{name}{ending}").exists()]
        if train.exists() and tests:
            return train, tests[0]
    return None


def _all_rows(reference: str, reindex: bool) -> Labelled:
    source = open_source(reference, reindex=reindex)
    found = source.labels()
    if found is None:
        raise DataError(
            f"{reference} holds images without labels. Put each class into a folder of its own,"
            " or give a Parquet file a column 'label' of whole numbers or names."
        )
    labels, names = found
    if len(np.unique(labels)) < 2:
        raise DataError(f"{reference} holds one class only ('{names[int(labels[0])]}'). k-NN needs two at least.")
    return Labelled(source, np.arange(len(source), dtype=np.int64), labels, tuple(names))


def _half_of_each_class(labels: Labels, seed: int) -> NDArray[np.bool_]:
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        shuffled = numpy_generator(seed, "split", int(label)).permutation(rows)
        is_test[shuffled[: len(rows) // 2]] = True
    return is_test
