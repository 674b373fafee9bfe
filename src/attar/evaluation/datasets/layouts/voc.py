"""Pascal VOC: several classes an image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attar.data.labelled import Labelled
from attar.errors import DataError
from attar.evaluation.datasets.layouts.reading import existing, lines_of, listed


@dataclass(frozen=True)
class VocLists:
    """`JPEGImages` and `ImageSets/Main/CLASS_SPLIT.txt` with lines of an image and 1, 0 or -1.

    Only 1 is positive: an image whose objects of a class are all difficult (0) counts as negative, as in Proteus and
    ELEVATER; the official kit would leave it out (spec trap 9).
    """

    def read(self, folder: Path, split: str) -> Labelled:
        """Labels (n, K) zeros and ones, classes in alphabetical order."""
        lists = existing(folder / "ImageSets" / "Main")
        names = sorted(path.name.removesuffix(f"_{split}.txt") for path in lists.glob(f"*_{split}.txt"))
        if not names:
            raise DataError(f"{lists} has no lists of '{split}', such as aeroplane_{split}.txt. Unpack the archive.")
        columns = [_flags(lists / f"{name}_{split}.txt") for name in names]
        images = columns[0][0]
        odd = next((name for name, (other, _) in zip(names, columns, strict=True) if other != images), None)
        if odd is not None:
            raise DataError(f"{lists} lists other images of '{split}' for '{odd}' than for '{names[0]}'.")
        labels = np.stack([flags == 1 for _, flags in columns], axis=1)
        return listed(folder, [f"JPEGImages/{image}.jpg" for image in images], labels, names, where=lists)


def _flags(path: Path) -> tuple[list[str], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    fields = [line.split() for line in lines_of(path)]
    if any(len(line) != 2 or line[1] not in ("1", "0", "-1") for line in fields):
        raise DataError(f"{path} must have lines of an image and 1, 0 or -1. Take the official file.")
    return [image for image, _ in fields], np.array([int(flag) for _, flag in fields], dtype=np.int64)
