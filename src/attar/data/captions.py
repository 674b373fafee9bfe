"""Captions of images that are trained on: a file beside them, one caption an image, by what the source calls it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from attar.data.base import Source
from attar.errors import DataError


def read_captions(path: str | Path, source: Source) -> list[str]:
    """The caption of each image, in the order of the source; of several the first.

    Args:
        path: `.tsv` with a line IMAGE<TAB>CAPTION, or `.jsonl` with objects of `image` and `text`.
        source: The images. Each must have a caption; captions of other images are passed over.

    Raises:
        DataError: If the file cannot be read, or an image has none.
    """
    path = Path(path).expanduser()
    if path.suffix not in (".tsv", ".jsonl"):
        raise DataError(f"captions {path} are in no format known here. Give .tsv (image, caption) or .jsonl.")
    if not path.is_file():
        raise DataError(f"captions {path} do not exist. Give a file.")
    known: dict[str, str] = {}
    for image, text in _objects(path) if path.suffix == ".jsonl" else _lines(path):
        known.setdefault(image, text)
    names = [source.name(row) for row in range(len(source))]
    without = [name for name in names if name not in known]
    if without:
        raise DataError(
            f"{len(without):,} of {len(names):,} images have no caption in {path}, such as {without[0]}."
            " Call them there as attar does, or leave them out of --images."
        )
    return [known[name] for name in names]


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            image, tab, text = line.rstrip("\n").partition("\t")
            if not tab or not text.strip():
                raise DataError(f"line {number} of {path} is no IMAGE<TAB>CAPTION: '{line.strip()[:60]}'.")
            yield image, text.strip()


def _objects(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
                yield str(found["image"]), str(found["text"])
            except (ValueError, KeyError, TypeError):
                raise DataError(f"line {number} of {path} is no object of image and text: '{line[:60]}'.") from None
