"""The images of a task: a data set of the table, or labelled images of one's own."""

from __future__ import annotations

from functools import cache

import numpy as np

from attar.config.evaluate import EvaluateConfig
from attar.data.labelled import Labelled
from attar.data.views import EvaluationView
from attar.errors import ConfigError, MissingDatasetError
from attar.evaluation.datasets import CORRUPTIONS, DATASETS, find_dataset, open_dataset, open_training
from attar.evaluation.datasets.opening import locate
from attar.evaluation.splits import Splits, open_splits

_SPLIT_BY = "as the papers split it"
_BORDER = 2  # pixels of ObjectNet's red frame (WiSE-FT; whether DIME-FM cuts it is unconfirmed)


def is_benchmark(place: str) -> bool:
    """Whether a place is a data set of the table."""
    return place in DATASETS


def data_root_for(place: str, config: EvaluateConfig) -> str:
    """The folder that the data sets lie in.

    Raises:
        ConfigError: If it is not set.
    """
    if config.data_root is None:
        raise ConfigError(
            f"'{place}' is a data set of the table, and data_root is not set. Try --data-root DIR; for a folder of"
            f" that name ./{place}."
        )
    return config.data_root


@cache
def open_learned(place: str, config: EvaluateConfig) -> Splits:
    """Images to learn from, to choose by and to report; data sets of the table as the papers split them.

    Several protocols look at the same images, and a million files are listed once; `open_learned.cache_clear()`
    forgets them.

    Raises:
        ConfigError: If it is on a data set of the table, and there is no `data_root`, or nothing to learn from.
        MissingDatasetError: If the data set is not below `data_root`.
        DataError: If the images cannot be used.
    """
    if not is_benchmark(place):
        return open_splits(place, seed=config.seed, reindex=config.reindex)
    root = data_root_for(place, config)
    train, val = open_training(place, root)
    if config.mode == "honest" and place == "caltech101":  # drawn with replacement: some images stand in both
        seen = {val.source.name(int(row)) for row in val.rows}
        train = train.take(np.array([n for n, row in enumerate(train.rows) if train.source.name(int(row)) not in seen]))
    test = open_dataset(place, root, "test")
    return Splits(train, val, test, _SPLIT_BY, metric=test.dataset.metric)


def open_tests(place: str, config: EvaluateConfig) -> dict[str, Labelled]:
    """What is reported, as `test`; of ImageNet-C the 15 x 5 splits by their names. Errors as `open_learned`."""
    if not is_benchmark(place):
        return {"test": open_splits(place, seed=config.seed, reindex=config.reindex).test}
    root = data_root_for(place, config)
    if place != "imagenet-c":
        return {"test": open_dataset(place, root, "test")}
    splits = [f"{name}/{severity}" for name in CORRUPTIONS for severity in range(1, 6)]
    folder = locate(dataset := find_dataset(place), root)
    missing = [split for split in splits if not (folder / split).is_dir()]
    if missing:
        raise MissingDatasetError(
            f"{len(missing)} of the {len(splits)} splits of {dataset.title} are not in {folder}, such as {missing[0]};"
            f" a mean over the rest would be no mCE. {dataset.how_to_get}"
        )
    return {split: open_dataset(place, root, split) for split in splits}


def centre_view(place: str, img_size: int, crop_pct: float) -> EvaluationView:
    """How a model sees the images of a place, by the papers' rules for it.

    ObjectNet loses its frame, KITTI's wide images are squashed as in ELEVATER, and ImageNet-C, whose images have 224
    pixels, is not enlarged to be cropped; how DINOv2 crops it is unconfirmed.
    """
    if place == "imagenet-c":
        crop_pct = 1.0
    return EvaluationView(
        img_size, crop_pct, squash=place == "kitti_distance", border=_BORDER if place == "objectnet" else 0
    )
