"""ImageNet's classes, and the shifted sets whose labels need more than a folder's name."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from attar.data.base import Labels
from attar.data.labelled import Labelled
from attar.errors import DataError
from attar.evaluation.datasets.layouts.folders import read_folders
from attar.evaluation.datasets.layouts.reading import existing, lines_of

_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.")


@functools.lru_cache
def imagenet_wnids(subset: Literal["all", "a", "r"] = "all") -> tuple[str, ...]:
    """WordNet ids in the order of labels: ImageNet's 1,000, or the 200 of ImageNet-A or -R (timm ships the lists)."""
    name = "imagenet_synsets.txt" if subset == "all" else f"imagenet_{subset}_synsets.txt"
    return tuple(sorted(_of_timm(name).split()))


def _of_timm(name: str) -> str:
    return (resources.files("timm") / "data" / "_info" / name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class ObjectNet:
    """`images/FOLDER/image` and the four files of `mappings`; the 113 folders that ImageNet has classes for.

    Labels are ranks of the sorted folders among those, class names are ObjectNet's own (WiSE-FT, CLIP_benchmark).
    """

    def read(self, folder: Path, split: str) -> Labelled:
        """Images of the shared classes; the other folders are left out."""
        names = _json(folder / "mappings" / "folder_to_objectnet_label.json")
        shared = [name for name in sorted(names) if names[name] in self._imagenet_names(folder)]
        missing = next((name for name in shared if not (folder / "images" / name).is_dir()), None)
        if missing is not None:
            raise DataError(f"{folder / 'images' / missing} does not exist. Unpack all of ObjectNet there.")
        return read_folders(folder, "images", shared, [names[name] for name in shared], passed_over=set(names))

    def indices(self, folder: Path) -> tuple[tuple[int, ...], ...]:
        """For each class, by label, the classes of a 1,000-way head that it stands for; 125 in all."""
        names = _json(folder / "mappings" / "folder_to_objectnet_label.json")
        to_imagenet = self._imagenet_names(folder)
        ranks = self._ranks(folder)
        try:
            return tuple(
                tuple(ranks[name] for name in to_imagenet[names[key]].split("; "))
                for key in sorted(names)
                if names[key] in to_imagenet
            )
        except KeyError as error:
            raise DataError(
                f"{folder / 'mappings'} has no ImageNet class named {error}. Take the official files."
            ) from None

    def _imagenet_names(self, folder: Path) -> dict[str, str]:
        return _json(folder / "mappings" / "objectnet_to_imagenet_1k.json")

    def _ranks(self, folder: Path) -> dict[str, int]:
        """Class of a 1,000-way head for each of ImageNet's label texts."""
        to_2012 = _json(folder / "mappings" / "pytorch_to_imagenet_2012_id.json")
        ours = {int(number): int(rank) for rank, number in to_2012.items()}
        texts = lines_of(folder / "mappings" / "imagenet_to_label_2012_v2")
        return {text.strip(): ours[number] for number, text in enumerate(texts) if number in ours}


@dataclass(frozen=True)
class ReaL:
    """ImageNet's validation images, `val/WNID/ILSVRC2012_val_00000001.JPEG`, with the labels of Beyer et al.

    `real.json` beside `val`, or else the copy that timm ships. Images without a label are left out.
    """

    def read(self, folder: Path, split: str) -> Labelled:
        """Labels (n, 1000) zeros and ones: a prediction is right if its place holds a one."""
        wnids = imagenet_wnids()
        images = read_folders(folder, "val", wnids, wnids)
        path = folder / "real.json"
        given: list[list[int]] = json.loads(
            path.read_text() if path.is_file() else _of_timm("imagenet_real_labels.json")
        )
        labels = np.zeros((len(images), len(wnids)), dtype=np.uint8)
        for row in range(len(images)):
            labels[row, given[_number(images.source.name(row), len(given)) - 1]] = 1
        kept = np.flatnonzero(labels.any(axis=1))
        return replace(images, rows=images.rows[kept], labels=cast(Labels, labels[kept]))


def _number(name: str, count: int) -> int:
    match = _VALIDATION.search(name)
    if match is None or not 1 <= int(match[1]) <= count:
        raise DataError(f"{name} is not named as ImageNet's {count:,} validation images are, so ReaL cannot label it.")
    return int(match[1])


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(existing(path).read_text(encoding="utf-8"))
    return found
