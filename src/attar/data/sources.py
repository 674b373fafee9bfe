"""Where images come from: folders, tar shards, Parquet files, the playground, here or behind a URL."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from attar.data.base import Labels, Problem, Source
from attar.data.files import File, find_files, is_url, local_path, printable, without_credentials
from attar.data.index import FolderIndex, folder_index, known_index
from attar.data.listed import ListedFiles
from attar.data.mapped import CachedFiles
from attar.data.merged import MergedSource, Part
from attar.data.pack import PACK_FILE, class_names_beside
from attar.data.pairs import PairSource
from attar.data.parquet import parquet_rows
from attar.data.references import shown, split_reference
from attar.data.scenes import ArrangementSource, PlaygroundSource, open_playground
from attar.data.subset import SubsetSource, subset
from attar.data.tar import TOO_LARGE, shard_rows
from attar.data.transfer_set import is_transfer_set, open_transfer_set
from attar.errors import DataError, DecodeError
from attar.utils.progress import track

__all__ = [
    "ArrangementSource",
    "FolderSource",
    "Labels",
    "ParquetSource",
    "Place",
    "PlaygroundSource",
    "Source",
    "TarSource",
    "images_in_both",
    "named_places",
    "open_source",
    "share_a_place",
]


def open_source(references: str | Sequence[str], *, reindex: bool = False) -> Source:
    """Open images by reference; several become one source, part after part.

    A reference is a place and options (`attar.data.references`). A place is a folder of images, a `.tar` or `.parquet`
    file, a pattern of such files as `x-{000..012}.tar`, a folder of them, a transfer set of `attar curate`, or
    `playground:SEED` (with `?n=COUNT`; `attar.data.scenes` has the rest).

    Args:
        references: One or several.
        reindex: List folders of images anew instead of trusting their index.

    Raises:
        DataError: If there is nothing to open, or no image in it.
    """
    references = [references] if isinstance(references, str) else list(references)
    places, options = zip(*(split_reference(reference) for reference in references), strict=True)
    sources = [
        subset(_open_place(place, reindex=reindex), what, reference=shown(reference))
        for place, what, reference in zip(places, options, references, strict=True)
    ]
    if len(sources) == 1 and options[0].weight == 1:
        return sources[0]
    parts = zip(sources, options, _titles(places), strict=True)
    return MergedSource([Part(source, what.weight, title, what.subset_seed) for source, what, title in parts])


@dataclass(frozen=True)
class Place:
    """What is taken of a place.

    Attributes:
        name: Its reference, without credentials.
        images: How many.
        weight: How often each stands in an epoch.
        fingerprint: Of these images.
    """

    name: str
    images: int
    weight: float
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.name}: {self.images:,} images" + (f" x {self.weight:g}" if self.weight != 1 else "")


def named_places(references: Sequence[str], source: Source) -> list[Place]:
    """What a source that was opened by these references takes of each."""
    parts: Sequence[Part] = [Part(source)]  # which may have parts of its own, as a transfer set has
    if isinstance(source, MergedSource) and len(source.parts) == len(references):
        parts = source.parts
    return [
        Place(shown(reference), len(part.source), part.weight, part.source.fingerprint)
        for reference, part in zip(references, parts, strict=True)
    ]


def share_a_place(one: Source, other: Source) -> bool:
    """Whether two sources take images from the same place, all of them or a part: a folder or one below it, a file."""
    ours, theirs = _places_of(one), _places_of(other)
    return any(f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/") for a in ours for b in theirs)


def images_in_both(one: Source, other: Source) -> int:
    """How many images of one source are among those of another, by where they lie; equal files elsewhere are not."""
    return len(_addresses_near(one, other) & {one.uri(row) for row in range(len(one))})


def _addresses_near(one: Source, other: Source) -> set[str]:
    """Where the images of another source lie, of those of its parts that take some from the same place."""
    if not share_a_place(one, other):
        return set()
    if isinstance(other, MergedSource):
        return set().union(*(_addresses_near(one, part.source) for part in other.parts))
    return {other.uri(row) for row in range(len(other))}


def _places_of(source: Source) -> set[str]:
    """Addresses of the folders or files that a source takes its images from."""
    if isinstance(source, MergedSource):
        return set().union(*(_places_of(part.source) for part in source.parts))
    if isinstance(source, SubsetSource):
        return _places_of(source.source)
    if isinstance(source, FolderSource | PlaygroundSource | ArrangementSource | ListedFiles):
        return {source.root}
    return set(source.addresses) if isinstance(source, ParquetSource | TarSource | PairSource) else {source.fingerprint}


def _titles(places: Sequence[str]) -> list[str]:
    """What names of each place's rows shall begin with: as little as tells the places apart."""
    if len(places) == 1:
        return [""]
    shown = [without_credentials(place).rstrip("/") for place in places]
    short = {place: place.rpartition("/")[2].partition("{")[0] for place in shown}
    is_clear = len(set(short.values())) == len(short)
    return ["" if place.startswith("playground") else short[place] if is_clear else place for place in shown]


def _open_place(place: str, *, reindex: bool) -> Source:
    if place == "playground" or place.startswith("playground:"):
        return open_playground(place)
    if is_url(place) and not reindex and (index := known_index(place)) is not None:
        return FolderSource(index)
    if not is_url(place) and is_transfer_set(folder := local_path(place)):
        return open_transfer_set(folder, functools.partial(open_source, reindex=reindex))
    files = find_files(place)
    if files is None and not is_url(place) and (local_path(place) / PACK_FILE).is_file():
        raise DataError(
            f"{place} holds packed images, and other images or folders beside their shards. Take these out of it."
        )
    if files is None:
        return FolderSource(folder_index(place, reindex=reindex))
    return ParquetSource(files) if files[0].name.lower().endswith(".parquet") else TarSource(files)


class FolderSource:
    """Image files below a folder, in the order of its sorted index."""

    problems: tuple[Problem, ...] = ()

    def __init__(self, index: FolderIndex) -> None:
        self._index = index
        self.root, self.fingerprint = index.root, index.fingerprint

    def __len__(self) -> int:
        return len(self._index.paths)

    def name(self, row: int) -> str:
        """The row's path below the folder."""
        return self._index.name(row)

    def uri(self, row: int) -> str:
        """The file's absolute path, or its URL."""
        return self._index.file(row).uri

    def read(self, row: int) -> bytes:
        """Bytes of the file."""
        return self._index.file(row).read(name=self.name(row))

    def labels(self) -> tuple[Labels, list[str]] | None:
        """The first folder on each path is its class; None where images lie directly in the root."""
        parts = pc.split_pattern(self._index.paths, "/", max_splits=1)
        if pc.min(pc.list_value_length(parts)).as_py() < 2:
            return None
        folders = pc.list_element(parts, 0).combine_chunks().dictionary_encode()
        names = [printable(name) for name in folders.dictionary.to_pylist()]  # sorted, since the index is
        return folders.indices.to_numpy(zero_copy_only=False).astype(np.int64), names


class ParquetSource:
    """Parquet files with an `image` column (bytes, or Hugging Face's {bytes, path}) and perhaps a `label` column."""

    problems: tuple[Problem, ...] = ()

    def __init__(self, files: Sequence[File]) -> None:
        self.addresses = tuple(file.address for file in files)
        self._rows = CachedFiles([parquet_rows(file) for file in files])
        if len(self._rows) == 0:
            raise DataError(f"{_shown(files)} holds no rows.")
        self.fingerprint = self._rows.fingerprint

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, row: int) -> str:
        """File name and row."""
        part, own = self._rows.find(row)
        return f"{part.file.name}[{own}]"

    def uri(self, row: int) -> str:
        """The file and the row in it."""
        part, own = self._rows.find(row)
        return f"{part.file.uri}#row={own}"

    def read(self, row: int) -> bytes:
        """Encoded bytes of the row's image."""
        part, own = self._rows.find(row)
        value = part.table["image"][own].as_py()
        if value is None:
            raise DecodeError(f"{self.name(row)}: the row has no image.")
        return bytes(value)

    def labels(self) -> tuple[Labels, list[str]] | None:
        """The distinct values of the `label` column are the classes, in order; None without the column.

        Raises:
            DataError: If a row has no label, or a negative one, which is how unlabelled rows are marked.
        """
        return _classes(self, self._rows)


class TarSource:
    """Tar shards in WebDataset's naming, in the order of their members."""

    def __init__(self, files: Sequence[File]) -> None:
        self._class_names = class_names_beside(files)
        found = [shard_rows(file) for file in track(files, "indexing shards", total=len(files), unit="shards")]
        self.addresses = tuple(file.address for file in files)
        self._rows = CachedFiles([rows for rows, _ in found])
        fullest = max(rows.num_rows for rows, _ in found)  # shards of one place hold about as many
        self.problems = tuple(
            replace(problem, lost=max(problem.lost, fullest - rows.num_rows))
            for rows, problems in found
            for problem in problems
        )
        if len(self._rows) == 0:
            why = (
                self.problems[0].reason
                if self.problems
                else "Samples are named as WebDataset does: 0001.jpg, 0001.cls."
            )
            raise DataError(f"{_shown(files)} holds no image that can be read. {why}")
        self.fingerprint = self._rows.fingerprint

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, row: int) -> str:
        """The shard's name and the member's."""
        part, own = self._rows.find(row)
        return f"{part.file.name}/{printable(part.table['name'][own].as_py())}"

    def uri(self, row: int) -> str:
        """The shard and the member in it."""
        part, own = self._rows.find(row)
        return f"{part.file.uri}#{printable(part.table['name'][own].as_py())}"

    def read(self, row: int) -> bytes:
        """The member's bytes."""
        part, own = self._rows.find(row)
        start, size = part.table["offset"][own].as_py(), part.table["size"][own].as_py()
        if size == TOO_LARGE:
            raise DecodeError(f"{self.name(row)}: the file has 4 GiB or more, which no image has. Leave it out.")
        return part.file.read(start, start + size, name=self.name(row))

    def labels(self) -> tuple[Labels, list[str]] | None:
        """The distinct numbers in `.cls` members are the classes, in order; None if there are none.

        They are called by these numbers, those of packed images by the names they had before.

        Raises:
            DataError: If some samples have one and others have not.
        """
        found = _classes(self, self._rows)
        if found is None or self._class_names is None:
            return found
        labels, numbers = found
        if (largest := max(map(int, numbers))) >= len(self._class_names):
            first = int((labels == len(numbers) - 1).argmax())
            raise DataError(
                f"{self.name(first)} is of class {largest}, and {PACK_FILE} names {len(self._class_names)}. Take shards"
                " of other images out of that folder."
            )
        return labels, [self._class_names[int(number)] for number in numbers]


def _classes(source: Source, rows: CachedFiles) -> tuple[Labels, list[str]] | None:
    """The distinct values of the rows' `label` columns, and which one each row has; None if no row has any."""
    columns = [part.table["label"] for part in rows.parts if "label" in part.table.column_names]
    if not columns or sum(pc.sum(_unlabelled(column)).as_py() or 0 for column in columns) == len(rows):
        return None
    if len(columns) < len(rows.parts) or len({str(column.type) for column in columns}) > 1:
        first, *_, last = rows.parts
        raise DataError(
            f"files from {first.file.name} to {last.file.name} differ in their label column. Give them apart."
        )
    column = pa.chunked_array([chunk for column in columns for chunk in column.chunks], columns[0].type)
    if (row := pc.index(_unlabelled(column), True).as_py()) >= 0:
        raise DataError(f"{source.name(row)} has no label ({column[row].as_py()}). Take such rows out of the file.")
    values, labels = np.unique(column.to_numpy(), return_inverse=True)
    return labels.astype(np.int64), [str(value) for value in values]


def _unlabelled(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Where a label column holds nothing, or a negative number."""
    return pc.less(column, 0).fill_null(True) if pa.types.is_integer(column.type) else pc.is_null(column)


def _shown(files: Sequence[File]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1:,} more"
