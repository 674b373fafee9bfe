"""Images in the three parts that an honest figure needs: to learn from, to choose by, to report."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from attar.data.draws import fifth_of_each_class
from attar.data.labelled import Labelled, given_parts, open_labelled, open_parts
from attar.errors import DataError
from attar.utils.io import sha256_text

_FIELDS = ("rows", "labels")


@dataclass(frozen=True)
class Splits:
    """Labelled images in three parts with the same classes.

    Attributes:
        train: To learn from.
        val: To choose settings by; learned from too once they are chosen.
        test: To report.
        origin: Who made the parts, for the record.
        metric: Name of what is reported.
    """

    train: Labelled
    val: Labelled
    test: Labelled
    origin: str
    metric: str = "top1"

    @property
    def num_classes(self) -> int:
        return len(self.train.class_names)

    @property
    def parts(self) -> dict[str, Labelled]:
        """The three by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @cached_property
    def official_train(self) -> Labelled:
        """What protocols that choose nothing on `val` learn from: `train`, with `val` where it was cut from it."""
        if self.train.source is not self.val.source:
            return self.train
        rows, labels = (np.concatenate([getattr(part, name) for part in (self.train, self.val)]) for name in _FIELDS)
        order = np.argsort(rows, kind="stable")
        return Labelled(self.train.source, rows[order], labels[order], self.train.class_names)


def open_splits(reference: str, *, seed: int, reindex: bool = False) -> Splits:
    """The parts of a user's labelled images.

    `train`, `val` and `test` (folders of classes, Parquet files or tars) are taken as they are. Where there is no `val`
    beside `test`, a fifth of each class of `train` is set apart to choose by; images in one place are halved first.

    Raises:
        DataError: If there are no labels, one class only, or the parts have different classes.
    """
    parts = given_parts(reference)
    if len(parts) == 3:
        train, val, test = open_parts([parts[part] for part in ("train", "val", "test")], reindex=reindex)
        return Splits(train, val, test, "train, val and test as given")
    train, test = open_labelled(reference, seed=seed, reindex=reindex)
    rest, val = hold_out(train, seed=seed)
    is_given = "train" in parts and len(parts) == 2
    halves = "train and test as given" if is_given else f"train and test: halves of each class by seed {seed}"
    return Splits(rest, val, test, f"{halves}; val: a fifth of each class of train by seed {seed}")


def images_hash(images: Labelled) -> str:
    """Hex SHA-256 of which images these are and of which classes: equal ones need be looked at once only."""
    return sha256_text(images.fingerprint + hashlib.sha256(images.labels.tobytes()).hexdigest())


def hold_out(images: Labelled, *, seed: int) -> tuple[Labelled, Labelled]:
    """(four fifths, one fifth) of each class; a class of one image stays with the first.

    Raises:
        DataError: If no class has two images.
    """
    is_val = fifth_of_each_class(images.labels, seed=seed)
    if not is_val.any():
        raise DataError(
            f"none of the {len(images)} images to learn from can be set apart to choose settings by:"
            " each is the only one of its class. Give more images."
        )
    return images.take(np.flatnonzero(~is_val)), images.take(np.flatnonzero(is_val))
