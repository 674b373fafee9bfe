"""Annotations in MATLAB files, whose labels are counted from 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attar.data.labelled import Labelled
from attar.errors import DataError
from attar.evaluation.datasets.layouts.reading import existing, from_one, listed


@dataclass(frozen=True)
class CarsAnnotations:
    """Stanford Cars: `devkit/cars_meta.mat`, `devkit/cars_train_annos.mat`, `cars_test_annos_withlabels.mat`."""

    def read(self, folder: Path, split: str) -> Labelled:
        """Images of `cars_train` or `cars_test`, by the annotations of the split."""
        names = [str(name) for name in np.ravel(_matlab(folder / "devkit" / "cars_meta.mat", "class_names"))]
        path = folder / ("devkit/cars_train_annos.mat" if split == "train" else "cars_test_annos_withlabels.mat")
        found = np.atleast_1d(_matlab(path, "annotations"))
        if "class" not in (found.dtype.names or ()):
            raise DataError(f"{path} has no labels. The file of that name with field 'class' is due (…_withlabels).")
        images = [f"cars_{split}/{name}" for name in found["fname"]]
        return listed(folder, images, from_one(found["class"].tolist(), len(names), where=path), names, where=path)


@dataclass(frozen=True)
class FlowersAnnotations:
    """Oxford Flowers: `imagelabels.mat` and `setid.mat` beside `jpg/image_00001.jpg`; classes are numbers from 1."""

    def read(self, folder: Path, split: str) -> Labelled:
        """Images whose numbers `setid.mat` gives to the split; train is the small one."""
        path = folder / "imagelabels.mat"
        numbers = np.ravel(_matlab(path, "labels"))
        count = len(np.unique(numbers))
        labels = from_one(numbers, count, where=path)
        keys = {"train": "trnid", "val": "valid", "test": "tstid"}
        rows = from_one(np.ravel(_matlab(folder / "setid.mat", keys[split])), len(labels), where=folder / "setid.mat")
        images = [f"jpg/image_{row + 1:05}.jpg" for row in rows]
        return listed(folder, images, labels[rows], [str(number) for number in range(1, count + 1)], where=path)


def _matlab(path: Path, key: str) -> Any:
    from scipy.io import loadmat  # costs a tenth of a second, and few need it
    from scipy.io.matlab import MatReadError

    try:
        found = loadmat(existing(path), squeeze_me=True)
    except (MatReadError, ValueError, TypeError, NotImplementedError, OSError) as error:
        raise DataError(f"{path} is not a MATLAB file that can be read ({error}). Take the official one.") from None
    if key not in found:
        raise DataError(f"{path} has no '{key}'. Take the official file.")
    return found[key]
