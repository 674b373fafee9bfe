"""Caltech-101 in the papers' lineage: given lists, or the draw that made them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attar.data.labelled import Labelled
from attar.errors import DataError
from attar.evaluation.datasets.layouts.folders import folder_names, read_folders
from attar.evaluation.datasets.layouts.reading import existing, lines_of, listed
from attar.evaluation.datasets.splits import drawn_with_replacement


@dataclass(frozen=True)
class CaltechDraws:
    """`101_ObjectCategories/CLASS/image_0001.jpg`, all 102 folders being classes, BACKGROUND_Google too.

    The split is that of `train.txt` and `test.txt` (`CLASS/image_0001.jpg LABEL`) if both are there, else drawn.

    Attributes:
        draws: How many of each class are drawn for train; None where the lists must be there.
    """

    draws: int | None = 30
    place: str = "101_ObjectCategories"

    def read(self, folder: Path, split: str) -> Labelled:
        """The images of a split; one that was drawn twice stands twice in train."""
        names = folder_names(existing(folder / self.place))
        path = folder / f"{split}.txt"
        if self.draws is None or any((folder / f"{other}.txt").is_file() for other in ("train", "test")):
            return self._listed(folder, path, names)
        everything = read_folders(folder, self.place, names, names)
        train, test = drawn_with_replacement(np.bincount(everything.labels).tolist(), draws=self.draws)
        return everything.take(train if split == "train" else test)

    def _listed(self, folder: Path, path: Path, names: list[str]) -> Labelled:
        ranks = {name: label for label, name in enumerate(names)}
        paths, labels = [], []
        for number, line in enumerate(lines_of(path), 1):
            image, _, label = line.strip().rpartition(" ")
            if ranks.get(image.partition("/")[0], -1) != int(label if label.isdecimal() else -2):
                raise DataError(
                    f"{path}, line {number}: '{line.strip()[:60]}' must be CLASS/IMAGE and the rank of CLASS among the"
                    f" {len(names)} sorted folders, counted from 0. Is a folder missing, such as BACKGROUND_Google?"
                )
            paths.append(f"{self.place}/{image}")
            labels.append(int(label))
        return listed(folder, paths, labels, names, where=path)
