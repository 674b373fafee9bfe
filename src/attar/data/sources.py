"""Where images come from: a folder of any depth, a Parquet file, or the playground. One small protocol for all."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from attar.data.base import Labels, Source
from attar.data.index import folder_index, local_path, printable
from attar.data.merged import MergedSource, Part
from attar.data.parquet import parquet_rows
from attar.data.playground import CLASS_NAMES, render_scene
from attar.data.references import split_reference
from attar.data.subset import subset
from attar.errors import DataError, DecodeError

__all__ = ["FolderSource", "Labels", "ParquetSource", "PlaygroundSource", "Source", "open_source"]

_PLAYGROUND = re.compile(r"playground(?::(\d+)(?:\?n=(\d+)(?:&variety=([01](?:\.\d+)?))?)?)?", re.ASCII)


def open_source(references: str | Sequence[str], *, reindex: bool = False) -> Source:
    """Open a folder, a `.parquet` file, or `playground:SEED` (with `?n=COUNT`); several become one, part after part.

    Raises:
        DataError: If there is nothing to open, or no image in it.
    """
    references = [references] if isinstance(references, str) else list(references)
    titles = _titles([split_reference(reference)[0] for reference in references])
    parts = []
    for reference, title in zip(references, titles, strict=True):
        place, options = split_reference(reference)
        source = subset(_open_place(place, reindex=reindex), options, reference=reference)
        parts.append(Part(source, options.weight, title, options.subset_seed))
    if len(parts) == 1 and parts[0].weight == 1:
        return parts[0].source
    return MergedSource(parts)


def _titles(places: list[str]) -> list[str]:
    """Short names that tell the places apart; one place needs none, nor does the playground, whose rows have it."""
    if len(places) == 1:
        return [""]
    short = {place: place.rstrip("/").rpartition("/")[2] for place in places}
    is_clear = len(set(short.values())) == len(short)
    return ["" if place.startswith("playground") else short[place] if is_clear else place for place in places]


def _open_place(place: str, *, reindex: bool) -> Source:
    if place == "playground" or place.startswith("playground:"):
        return PlaygroundSource.parse(place)
    path = local_path(place)
    if path.suffix == ".parquet" and path.is_file():
        return ParquetSource(path)
    if path.is_file():
        raise DataError(f"{path} is a file. Give a folder of images, a .parquet file, or playground:SEED.")
    if not path.is_dir() and path.suffix == ".parquet":
        raise DataError(f"Parquet file {path} does not exist.")
    return FolderSource(path, reindex=reindex)


class FolderSource:
    """Image files below a folder, in the order of its sorted index."""

    def __init__(self, root: Path, *, reindex: bool = False) -> None:
        self._index = folder_index(root, reindex=reindex)
        self.root = self._index.root
        self.fingerprint = self._index.fingerprint

    def __len__(self) -> int:
        return len(self._index.paths)

    def name(self, row: int) -> str:
        """The row's path below the folder."""
        return self._index.name(row)

    def read(self, row: int) -> bytes:
        """Bytes of the file."""
        try:
            return self._index.path(row).read_bytes()
        except OSError as error:
            raise DecodeError(f"{self.name(row)}: cannot be read ({error.strerror}).") from None

    def labels(self) -> tuple[Labels, list[str]] | None:
        """The first folder on each path is its class; None where images lie directly in the root."""
        parts = pc.split_pattern(self._index.paths, "/", max_splits=1)
        if pc.min(pc.list_value_length(parts)).as_py() < 2:
            return None
        folders = pc.list_element(parts, 0).combine_chunks().dictionary_encode()
        names = [printable(name) for name in folders.dictionary.to_pylist()]  # sorted, since the index is
        return folders.indices.to_numpy(zero_copy_only=False).astype(np.int64), names


class ParquetSource:
    """A Parquet file with an `image` column (bytes, or Hugging Face's {bytes, path}) and perhaps a `label` column."""

    def __init__(self, path: Path) -> None:
        self._rows = parquet_rows(local_path(path))
        self.path = self._rows.path
        self.fingerprint = self._rows.fingerprint

    def __len__(self) -> int:
        return len(self._rows.table)

    def name(self, row: int) -> str:
        """File name and row."""
        return f"{self.path.name}[{row}]"

    def read(self, row: int) -> bytes:
        """Encoded bytes of the row's image."""
        value = self._rows.table["image"][row].as_py()
        if value is None:
            raise DecodeError(f"{self.name(row)}: the row has no image.")
        return bytes(value)

    def labels(self) -> tuple[Labels, list[str]] | None:
        """The distinct values of the `label` column are the classes, in order; None without the column.

        Raises:
            DataError: If a row has no label, or a negative one, which is how unlabelled rows are marked.
        """
        if "label" not in self._rows.table.column_names:
            return None
        column = self._rows.table["label"]
        missing = pc.less(column, 0).fill_null(True) if pa.types.is_integer(column.type) else pc.is_null(column)
        if (row := pc.index(missing, True).as_py()) >= 0:
            raise DataError(f"{self.name(row)} has no label ({column[row].as_py()}). Take such rows out of the file.")
        values, labels = np.unique(column.to_numpy(), return_inverse=True)
        return labels.astype(np.int64), [str(value) for value in values]


@functools.lru_cache(maxsize=4096)  # 50 MB; drawing a scene costs as much as a small student's forward pass
def _pixels(seed: int, row: int, variety: float) -> NDArray[np.uint8]:
    image = render_scene(seed, row, variety=variety).image
    image.setflags(write=False)
    return image


class PlaygroundSource:
    """Procedural scenes with their classes: `playground:SEED?n=COUNT&variety=SHARE`."""

    def __init__(self, seed: int, count: int, variety: float = 1.0) -> None:
        self.seed, self.count, self.variety = seed, count, variety
        self.fingerprint = hashlib.sha256(f"playground:{seed}:{count}:{variety}".encode()).hexdigest()

    @classmethod
    def parse(cls, reference: str) -> PlaygroundSource:
        """Read `playground`, `playground:SEED`, `playground:SEED?n=COUNT` or `…&variety=SHARE`."""
        match = _PLAYGROUND.fullmatch(reference)
        seed, count, variety = (
            (int(match[1] or 0), int(match[2] or 10000), float(match[3] or 1)) if match else (0, 0, 0)
        )
        if count == 0 or variety > 1:
            raise DataError(
                f"'{reference}' must look like playground:SEED?n=COUNT, both whole numbers, COUNT at least 1;"
                " &variety=SHARE may follow, from 0 to 1."
            )
        return cls(seed, count, variety)

    def __len__(self) -> int:
        return self.count

    def name(self, row: int) -> str:
        """Seed and row."""
        return f"playground:{self.seed}[{row}]"

    def read(self, row: int) -> NDArray[np.uint8]:
        """Pixels of the scene, (64, 64, 3)."""
        return _pixels(self.seed, row, self.variety)

    def labels(self) -> tuple[Labels, list[str]]:
        """Shape classes."""
        return np.arange(self.count, dtype=np.int64) % len(CLASS_NAMES), list(CLASS_NAMES)
