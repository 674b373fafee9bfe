"""Lists of labelled images: a text file with `filename,label` on each line, as Apple publishes its splits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from attar.data.labelled import Labelled
from attar.data.listed import ListedFiles
from attar.errors import DataError

LIST_SUFFIXES = (".csv", ".txt")
_HEADERS = ("filename,label", "image,label", "path,label")
_LOOKED_FOR = 20  # images whose place is looked up, to learn where those of a list lie


def is_list(reference: str) -> bool:
    """Whether a reference names a list of images."""
    path = Path(reference).expanduser()
    return path.suffix.lower() in LIST_SUFFIXES and path.is_file()


def open_list(path: Path, root: Path, *, class_names: Sequence[str] | None = None) -> Labelled:
    """The images of a list, in its order.

    An image lies at `root/FILENAME`, or at `root/LABEL/FILENAME` as Apple's data sets with a folder a class.

    Args:
        path: The list; a first line `filename,label` is passed over.
        root: Folder of the images.
        class_names: Classes of another list, which this one must keep to; by default its own, sorted.

    Raises:
        DataError: If the list cannot be read, is empty, names a class that is not known, or images that are not there.
    """
    rows = _rows(path)
    names = tuple(class_names) if class_names is not None else tuple(sorted({label for _, label in rows}))
    ranks = {name: number for number, name in enumerate(names)}
    strange = next((label for _, label in rows if label not in ranks), None)
    if strange is not None:
        raise DataError(f"{path} names the class '{strange}', which the labelled images do not have.")
    pattern = _pattern(rows, root, path)
    labels = np.array([ranks[label] for _, label in rows], dtype=np.int64)
    files = [pattern.format(label=label, file=file) if "{label}" in pattern else file for file, label in rows]
    source = ListedFiles(root.resolve(), files, labels, names)
    return Labelled(source, np.arange(len(rows), dtype=np.int64), labels, names)


def _rows(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"list {path} cannot be read: {error}. Give a text file with filename,label lines.") from None
    rows = []
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or (number == 1 and line.lower() in _HEADERS):
            continue
        file, comma, label = line.rpartition(",")
        if not comma or not file.strip() or not label.strip():
            raise DataError(f"{path}, line {number}: '{line[:60]}' is not filename,label.")
        rows.append((file.strip(), label.strip()))
    if not rows:
        raise DataError(f"list {path} names no images.")
    return rows


def _pattern(rows: Sequence[tuple[str, str]], root: Path, path: Path) -> str:
    """Where the list's images lie below the root, learned from a few of them."""
    looked_at = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, _LOOKED_FOR).astype(int))]
    for pattern in ("{file}", "{label}/{file}"):
        if any(os.path.exists(root / pattern.format(file=file, label=label)) for file, label in looked_at):
            return pattern
    file, label = rows[0]
    raise DataError(
        f"images of {path} are not below {root}: neither {file} nor {label}/{file} is there."
        " Give the folder they lie in with --images-root."
    )
