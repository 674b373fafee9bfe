"""Tables of images: CUB's numbered lines, GTSRB's CSV, JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attar.data.labelled import Labelled
from attar.errors import DataError
from attar.evaluation.datasets.layouts.folders import folder_names, read_folders
from attar.evaluation.datasets.layouts.reading import existing, from_one, lines_of, listed


@dataclass(frozen=True)
class CubTables:
    """`images.txt`, `image_class_labels.txt`, `train_test_split.txt` (1 is train), `classes.txt`, joined by number."""

    def read(self, folder: Path, split: str) -> Labelled:
        """Images of the split in the order of `images.txt`."""
        images = _numbered(folder / "images.txt")
        classes = _numbered(folder / "image_class_labels.txt")
        is_train = _numbered(folder / "train_test_split.txt")
        names = list(_numbered(folder / "classes.txt").values())
        chosen = [number for number in images if is_train.get(number) == ("1" if split == "train" else "0")]
        where = folder / "image_class_labels.txt"
        labels = from_one([int(classes.get(number, -1)) for number in chosen], len(names), where=where)
        return listed(folder, [f"images/{images[number]}" for number in chosen], labels, names, where=where)


def _numbered(path: Path) -> dict[str, str]:
    """`NUMBER VALUE` a line."""
    return dict(line.strip().split(" ", 1) for line in lines_of(path))


@dataclass(frozen=True)
class GtsrbFolders:
    """`GTSRB/Training/00000/*.ppm` for train; `GTSRB/Final_Test/Images` and `GT-final_test.csv` for test."""

    def read(self, folder: Path, split: str) -> Labelled:
        """Classes are the folders of train, 00000 and so on."""
        names = folder_names(existing(folder / "GTSRB" / "Training"))
        if split == "train":
            return read_folders(folder, "GTSRB/Training", names, names)
        path = existing(folder / "GT-final_test.csv")
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter=";"))
        if not rows or not {"Filename", "ClassId"} <= rows[0].keys():
            raise DataError(f"{path} must have the columns Filename and ClassId, parted by ';'. GT-final_test.test.csv"
                            " has no labels.")  # fmt: skip
        images = [f"GTSRB/Final_Test/Images/{row['Filename']}" for row in rows]
        return listed(folder, images, [int(row["ClassId"]) for row in rows], names, where=path)


@dataclass(frozen=True)
class JsonLines:
    """One JSON object a line, with `img` and `label`.

    Attributes:
        files: The file of each split.
        class_names: Names of the labels 0, 1, …
    """

    files: Mapping[str, str]
    class_names: Sequence[str]

    def read(self, folder: Path, split: str) -> Labelled:
        """Images in the order of the file."""
        path = folder / self.files[split]
        rows = [json.loads(line) for line in lines_of(path)]
        if any("label" not in row or "img" not in row for row in rows):
            raise DataError(f"{path} has a line without 'img' or 'label'. Take a split that has labels.")
        return listed(
            folder, [row["img"] for row in rows], [row["label"] for row in rows], self.class_names, where=path
        )
