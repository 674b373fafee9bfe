"""What the readers share: files that say clearly what is wrong with them, and labels that are counted rightly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from attar.data.base import Labels
from attar.data.labelled import Labelled
from attar.data.listed import ListedFiles
from attar.errors import DataError


def listed(
    root: Path, paths: Sequence[str], labels: ArrayLike, class_names: Sequence[str], *, where: Path | None = None
) -> Labelled:
    """Image files below a folder as `Labelled`; labels (n,) classes from 0, or (n, K) zeros and ones.

    Raises:
        DataError: If there are none, or a label has no class.
    """
    found: Labels = np.asarray(labels, dtype=np.int64)
    if len(paths) == 0:
        raise DataError(f"{where or root} names no images. Unpack the archive once more.")
    if found.ndim == 1 and not (found.min() >= 0 and found.max() < len(class_names)):
        raise DataError(
            f"labels of {where or root} run from {found.min()} to {found.max()}, counted from 0, for"
            f" {len(class_names)} classes."
        )
    source = ListedFiles(root, paths, found if found.ndim == 1 else None, class_names)
    return Labelled(source, np.arange(len(paths), dtype=np.int64), found, tuple(class_names))


def from_one(numbers: ArrayLike, count: int, *, where: Path) -> Labels:
    """Labels from 0, of numbers that a file counts from 1.

    Raises:
        DataError: If they do not run within 1 to `count`, as when they were counted from 0.
    """
    found = np.asarray(numbers, dtype=np.int64)
    if found.size and not (found.min() >= 1 and found.max() <= count):
        raise DataError(
            f"{where}: classes run from {found.min()} to {found.max()}; the official file counts from 1 to {count}."
            " Take the official file, not one counted from 0."
        )
    return found - 1


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that hold something.

    Raises:
        DataError: If it is not there.
    """
    text = existing(path).read_text(encoding="utf-8")
    return [line for line in text.split("\n") if line.strip()]  # splitlines would also break at U+2028 within a caption


def existing(path: Path) -> Path:
    """The path, if a file or folder is there.

    Raises:
        DataError: If not.
    """
    if not path.exists():
        kind = "The official archive has it" if path.suffix else "The official archive has this folder"
        raise DataError(f"{path} does not exist. {kind}: unpack it once more, as it is.")
    return path
