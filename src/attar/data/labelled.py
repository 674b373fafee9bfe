"""Labelled images in two parts, one to learn from and one to be judged on."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from attar.data.base import Labels, Rows, Source
from attar.data.draws import some_of_each_class
from attar.data.files import SHARD_SUFFIXES, is_url, local_path
from attar.data.references import shown, split_reference
from attar.data.sources import open_source
from attar.errors import DataError, DecodeError

__all__ = ["Labelled", "Rows", "given_parts", "open_labelled", "open_parts"]

_LOOKED_AT = 64  # images whose bytes are in a fingerprint
_PART_NAMES = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class Labelled:
    """Chosen rows of a source, with their classes.

    Attributes:
        source: Where the images are.
        rows: (n,) rows of the source.
        labels: (n,) class of each; or (n, K) zeros and ones, where images have several (evaluation's data sets).
        class_names: Names that `labels` index.
    """

    source: Source
    rows: Rows
    labels: Labels
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 that tells these images from others: of source and rows, and of the bytes of a few of them.

        Equal file names and counts are common (`val` and `test`, a folder and its blurred copy), and to read a million
        files takes as long as to embed them.
        """
        digest = hashlib.sha256(self.source.fingerprint.encode())
        digest.update(np.ascontiguousarray(self.rows).tobytes())
        for position in np.unique(np.linspace(0, len(self) - 1, _LOOKED_AT).round().astype(int)) if len(self) else ():
            with contextlib.suppress(DecodeError):
                content = self.source.read(int(self.rows[position]))
                digest.update(content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes())
        return digest.hexdigest()

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
    parts = given_parts(reference)
    if "train" in parts and len(parts) > 1:
        train, test = open_parts([parts["train"], parts.get("val") or parts["test"]], reindex=reindex)
        return train, test
    (everything,) = open_parts([reference], reindex=reindex)
    is_test = some_of_each_class(everything.labels, lambda size: size // 2, seed=seed, key="split")
    return everything.take(np.flatnonzero(~is_test)), everything.take(np.flatnonzero(is_test))


def given_parts(reference: str) -> dict[str, str]:
    """References of the parts `train`, `val` and `test` that a folder has, as folders or as files of images."""
    place, _ = split_reference(reference)
    if is_url(place):
        return {}
    found: dict[str, str] = {}
    for part, names in _PART_NAMES.items():
        paths = [local_path(place) / f"{name}{ending}" for ending in ("", *SHARD_SUFFIXES) for name in names]
        if (path := next((path for path in paths if path.exists()), None)) is not None:
            found[part] = str(path) + reference.removeprefix(place)
    return found


def open_parts(references: Sequence[str], *, reindex: bool = False) -> list[Labelled]:
    """All labelled images of each reference.

    Raises:
        DataError: If there are no labels, one class only, or different classes in two of them.
    """
    parts = [_all_rows(reference, reindex) for reference in references]
    for reference, part in zip(references, parts, strict=True):
        if part.class_names != parts[0].class_names:
            odd = sorted(set(parts[0].class_names) ^ set(part.class_names))
            raise DataError(f"{references[0]} and {reference} have different classes, such as {', '.join(odd[:5])}.")
    return parts


def _all_rows(reference: str, reindex: bool) -> Labelled:
    source = open_source(reference, reindex=reindex)
    found = source.labels()
    if found is None:
        raise DataError(
            f"{shown(reference)} holds images without labels. Put each class into a folder of its own,"
            " or give a Parquet file a column 'label' of whole numbers or names."
        )
    labels, names = found
    if set(names) <= {name for known in _PART_NAMES.values() for name in known}:
        raise DataError(
            f"{reference} holds {', '.join(names)}, which are parts of a data set and no classes. Give one of them,"
            " or train beside val or test in a folder on this machine."
        )
    if len(np.unique(labels)) < 2:
        raise DataError(
            f"{shown(reference)} holds one class only ('{names[int(labels[0])]}'). k-NN needs two at least."
        )
    return Labelled(source, np.arange(len(source), dtype=np.int64), labels, tuple(names))
