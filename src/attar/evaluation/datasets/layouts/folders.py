"""One folder per class."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attar.data.files import IMAGE_SUFFIXES
from attar.data.labelled import Labelled
from attar.errors import DataError
from attar.evaluation.datasets.layouts.reading import existing, listed

_SUFFIXES = IMAGE_SUFFIXES | {".ppm"}


@dataclass(frozen=True)
class ClassFolders:
    """`PLACE/CLASS/image`, images and classes in sorted order.

    Attributes:
        places: Where each split lies, below the folder; empty for the folder itself.
        classes: Folder names in the order of labels, or what tells them; else the sorted folders are the classes.
        names: Names of the classes where they are not those of the folders.
    """

    places: Mapping[str, str]
    classes: Sequence[str] | Callable[[], Sequence[str]] | None = None
    names: Callable[[], Sequence[str]] | None = None

    def read(self, folder: Path, split: str) -> Labelled:
        """Every image below the split's class folders."""
        place = existing(folder / self.places[split])
        classes = self.classes() if callable(self.classes) else self.classes
        if classes is None:
            classes = folder_names(place)
        return read_folders(folder, self.places[split], classes, self.names() if self.names else classes)


def read_folders(
    root: Path,
    place: str,
    folders: Sequence[str],
    class_names: Sequence[str],
    *,
    passed_over: Collection[str] = (),
) -> Labelled:
    """Images of class folders in the order of labels; those of them that are not there have no images.

    Raises:
        DataError: If another folder lies beside them, or none of them is there.
    """
    strange = sorted(set(folder_names(root / place)) - {*folders, *passed_over})
    if strange:
        raise DataError(
            f"{root / place} has a folder '{strange[0]}', which is no class of this data set"
            f" ({len(folders)} classes, such as '{folders[0]}'). Move it elsewhere, or check what lies here."
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(folders):
        found = [f"{place}/{name}/{image}".lstrip("/") for image in image_names(root / place / name)]
        paths += found
        labels += [label] * len(found)
    return listed(root, paths, labels, class_names, where=root / place)


def folder_names(place: Path) -> list[str]:
    """Sorted names of the folders in a place, hidden ones left out."""
    with os.scandir(existing(place)) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def image_names(folder: Path) -> list[str]:
    """Sorted names of images in a folder; none where there is no folder."""
    return sorted(_images(folder)) if folder.is_dir() else []


def _images(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and os.path.splitext(entry.name)[1].lower() in _SUFFIXES:
                yield entry.name
