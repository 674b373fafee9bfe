"""Images with captions: a folder with `captions.tsv`, or with a file as Karpathy's splits of COCO and Flickr30k are."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attar.data.files import local_path
from attar.data.labelled import Labelled
from attar.data.listed import ListedFiles
from attar.errors import DataError
from attar.utils.io import sha256_text

_TABLE = "captions.tsv"
_KARPATHY = "dataset_*.json"


@dataclass(frozen=True)
class Captioned:
    """Images, each with one caption or several.

    Attributes:
        images: In the order of the file; the label of an image is its place.
        captions: Of each image.
        metric: Name of what is reported.
    """

    images: Labelled
    captions: tuple[tuple[str, ...], ...]
    metric: str = "text_to_image@1"

    @property
    def parts(self) -> Mapping[str, Labelled]:
        """The images, as `test`."""
        return {"test": self.images}

    @property
    def origin(self) -> str:
        """For the record."""
        count = sum(map(len, self.captions))
        return f"{count:,} captions ({sha256_text(json.dumps(self.captions))[:8]})"


def open_captioned(place: str) -> Captioned:
    """The images of a folder that have captions.

    `captions.tsv` holds a line `image<TAB>caption` for each caption, `image` being a path below the folder; of
    `dataset_*.json` the images of the split `test` are taken, below the folder or its `images`.

    Raises:
        DataError: If there is neither file, it cannot be read, or an image is missing.
    """
    root = local_path(place).resolve()
    found: dict[str, list[str]] = {}
    for name, caption in _pairs(root):
        found.setdefault(name, []).append(caption)
    if not found:
        raise DataError(f"{root} has no captions. Give {_TABLE} a line IMAGE<TAB>CAPTION for each caption.")
    missing = next((name for name in found if not (root / name).is_file()), None)
    if missing is not None:
        raise DataError(f"{root / missing} does not exist, though it has a caption. Put the images there.")
    numbers = np.arange(len(found), dtype=np.int64)
    images = Labelled(ListedFiles(root, list(found)), numbers, numbers, ())
    return Captioned(images, tuple(map(tuple, found.values())))


def _pairs(root: Path) -> Iterable[tuple[str, str]]:
    """(path below the folder, caption) of each caption."""
    if (root / _TABLE).is_file():
        return _of_table(root / _TABLE)
    files = sorted(root.glob(_KARPATHY))
    if len(files) != 1:
        raise DataError(
            f"{root} has no {_TABLE} and {len(files) or 'no'} {_KARPATHY}. Write a line IMAGE<TAB>CAPTION for each"
            f" caption into {_TABLE}, or put one file of Karpathy's splits there."
        )
    return _of_karpathy(files[0])


def _of_table(file: Path) -> Iterable[tuple[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        for number, line in enumerate(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
            if len(line) != 2 or not all(line):
                raise DataError(f"{file}, line {number}: {len(line)} columns. A line is IMAGE<TAB>CAPTION.")
            yield line[0], line[1]


def _of_karpathy(file: Path) -> Iterable[tuple[str, str]]:
    try:
        images = json.loads(file.read_text(encoding="utf-8"))["images"]
        test = [image for image in images if image["split"] == "test"]
        below = "images/" if (file.parent / "images").is_dir() else ""
        for image in test:
            path = "/".join(part for part in (image.get("filepath", ""), image["filename"]) if part)
            yield from ((below + path, sentence["raw"]) for sentence in image["sentences"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is none of Karpathy's split files ({error!r}). Unpack it once more.") from None
