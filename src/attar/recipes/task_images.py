"""The labelled images of a task: to learn from, to choose by, to report on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attar.config import TransferConfig
from attar.data.draws import few_of_each_class
from attar.data.labelled import Labelled, given_parts, open_parts
from attar.data.lists import is_list, open_list
from attar.data.subset import SubsetSource
from attar.errors import DataError
from attar.evaluation.splits import hold_out

_ONE_IN = 5  # images of a class that one is set apart of; of fewer it takes more than its share


@dataclass(frozen=True)
class TaskImages:
    """Labelled images in parts with the same classes.

    Attributes:
        train: To learn from.
        val: To choose by.
        test: To report on, None where there are none beside `val`.
        origin: Who made the parts, for the record.
    """

    train: Labelled
    val: Labelled
    test: Labelled | None
    origin: str

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    @property
    def parts(self) -> dict[str, Labelled]:
        """Those to judge on, by name."""
        return {"val": self.val} | ({} if self.test is None else {"test": self.test})

    @property
    def stream(self) -> SubsetSource:
        """The images to learn from as a source; row `i` has the class `train.labels[i]`."""
        return SubsetSource(self.train.source, self.train.rows)


def open_task_images(config: TransferConfig) -> TaskImages:
    """Open what `labelled`, `val` and `test` name, and draw `labels_per_class` of them.

    Without images to choose by, a fifth of each class of those to learn from is set apart, after the draw: what is
    chosen by costs labels too.

    Raises:
        DataError: If there are no labels, one class only, unknown classes, or too few images to set some apart.
    """
    parts = {} if is_list(config.labelled) else given_parts(config.labelled)
    learned = parts.get("train", config.labelled)
    train = _open(learned, config)
    val, test = (
        None if place is None else _open(place, config, class_names=train.class_names)
        for place in (config.val or parts.get("val"), config.test or parts.get("test"))
    )
    origin = "train as given"
    if config.labels_per_class is not None:
        rows = few_of_each_class(train.labels, config.labels_per_class, seed=config.seed, or_all=True)
        train = train.take(rows)
        origin = f"train: {config.labels_per_class} images of each class by seed {config.seed}"
        short = int(np.count_nonzero(np.unique(train.labels, return_counts=True)[1] < config.labels_per_class))
        if short:
            origin += f", of {short} of {len(train.class_names)} classes all they have, which is fewer"
    if val is not None:
        return TaskImages(train, val, test, f"{origin}; val as given")
    try:
        train, val = hold_out(train, seed=config.seed)
    except DataError as error:
        raise DataError(f"{error} Or give some to choose by with --val.") from None
    count = config.labels_per_class
    if count is None or count > _ONE_IN:
        return TaskImages(train, val, test, f"{origin}; val: a fifth of each class of it by seed {config.seed}")
    origin += f"; val: 1 of these {count} of each class, which leaves {count - 1} to learn from: give others with --val"
    return TaskImages(train, val, test, origin)


def _open(place: str, config: TransferConfig, *, class_names: Sequence[str] | None = None) -> Labelled:
    if is_list(place):
        path = Path(place).expanduser()
        root = Path(config.images_root).expanduser() if config.images_root else path.parent
        return open_list(path, root, class_names=class_names)
    (part,) = open_parts([place], reindex=config.reindex)
    return part if class_names is None else _in_classes_of(part, class_names, place)


def _in_classes_of(part: Labelled, class_names: Sequence[str], place: str) -> Labelled:
    """The same images with labels that count in other classes, of which some may be missing here."""
    strange = [name for name in part.class_names if name not in class_names]
    if strange:
        raise DataError(
            f"{place} has the class '{strange[0]}', which the labelled images do not have. Both must mean the same"
            f" {len(class_names)} classes, such as {', '.join(class_names[:3])}."
        )
    ranks = np.array([class_names.index(name) for name in part.class_names], dtype=np.int64)
    return Labelled(part.source, part.rows, ranks[part.labels], tuple(class_names))
