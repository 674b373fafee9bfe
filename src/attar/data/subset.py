"""A share of a source's classes or images, and many crops of one image (Proteus' studies of its training data)."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from attar.data.base import Labels, Rows, Source, scaled
from attar.data.references import Options
from attar.data.sampler import permute
from attar.errors import DataError
from attar.utils.seeding import Key, derive


class SubsetSource:
    """Chosen rows of a source, in a given order; a row may be chosen many times. Takes 8 bytes a row."""

    def __init__(self, source: Source, rows: Rows) -> None:
        self.source, self.rows = source, rows
        self.problems = scaled(source.problems, len(rows) / len(source))
        self.fingerprint = hashlib.sha256(source.fingerprint.encode() + rows.astype("<i8").tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, row: int) -> str:
        """The name in the whole source."""
        return self.source.name(int(self.rows[row]))

    def uri(self, row: int) -> str:
        """Where the whole source has it."""
        return self.source.uri(int(self.rows[row]))

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        """What the whole source gives."""
        return self.source.read(int(self.rows[row]))

    def labels(self) -> tuple[Labels, list[str]] | None:
        """The classes that are left, in the order they had."""
        found = self.source.labels()
        if found is None:
            return None
        kept, labels = np.unique(found[0][self.rows], return_inverse=True)
        return labels.astype(np.int64), [found[1][label] for label in kept]


def subset(source: Source, options: Options, *, reference: str) -> Source:
    """What `classes`, `images` and `crops` leave of a source, in this order.

    A share takes the first part of one order by seed, so a fifth of the classes (or of a class's images) is among its
    half; it is rounded to whole ones, at least one. Without labels, `images` is a share of all.

    Raises:
        DataError: If a share of classes is asked for and there are no labels, or the one image is not there.
    """
    if options.classes < 1:
        source = SubsetSource(source, _of_classes(source, options, reference))
    if options.images < 1:
        source = SubsetSource(source, _of_images(source, options))
    if options.crops is not None:
        if options.image >= len(source):
            raise DataError(f"'{reference}': image is {options.image}, but there are {len(source):,}, counted from 0.")
        source = SubsetSource(source, np.full(options.crops, options.image, dtype=np.int64))
    return source


def _of_classes(source: Source, options: Options, reference: str) -> Rows:
    found = source.labels()
    if found is None:
        raise DataError(
            f"'{reference}' asks for a share of classes, but these images have no labels. Try images=SHARE."
        )
    labels, names = found
    return np.flatnonzero(np.isin(labels, _first(options.classes, len(names), options.subset_seed, "classes")))


def _of_images(source: Source, options: Options) -> Rows:
    found = source.labels()
    if found is None:
        return np.sort(_first(options.images, len(source), options.subset_seed, "images"))
    labels, names = found
    by_class = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=len(names)))
    chosen = [
        rows[
            _first(options.images, len(rows), options.subset_seed, "images", name)
        ]  # whichever other classes there are
        for name, rows in zip(names, np.split(by_class, ends[:-1]), strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def _first(share: float, size: int, seed: int, *keys: Key) -> Rows:
    """The first `share` of `size` things in an order by seed."""
    return permute(np.arange(max(1, round(share * size)), dtype=np.int64), size, derive(seed, *keys))
