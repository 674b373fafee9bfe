"""Tables in the cache, memory-mapped: made once from a file or folder, opened by every start and every worker."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from attar.data.files import File
from attar.errors import DataError
from attar.utils.io import cache_dir, new_folder, read_json, sha256_file, write_json

_ROWS = 65_536  # rows of an index per Arrow batch: a few megabytes
_BYTES = 1 << 26  # of names in a batch, which may be long; Arrow has room for 2 GiB
_OPEN_TABLES = 128  # memory maps kept at a time: each is an open file, of which a process may have few


def cache_folder(kind: str, version: int, address: str | Path) -> Path:
    """Where the cache keeps what was made of an address; raise `version` when its layout changes."""
    return cache_dir() / kind / hashlib.sha256(b"%d:%b" % (version, os.fsencode(address))).hexdigest()[:24]


def open_cached(folder: Path, table: str, *keys: str) -> tuple[dict[str, Any], pa.Table] | None:
    """(what was written down, the table of that name, memory-mapped); None if they, or `keys`, are not there and whole.

    Arrow does not notice a flipped bit, and may read beyond its file because of one: files whose `sha256` was written
    down are checked.
    """
    try:
        about = read_json(folder / "about.json")
        is_whole = all(key in about for key in keys) and all(
            sha256_file(folder / file) == digest for file, digest in about.get("sha256", {}).items()
        )
        if not is_whole:
            return None
        return about, pa.ipc.open_file(pa.memory_map(str(folder / table))).read_all()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException):
        return None


@dataclass(frozen=True)
class CachedRows:
    """The rows of a file as a table in the cache.

    Attributes:
        file: What the rows come from.
        folder: Where the cache keeps them.
        fingerprint: Two tables with equal fingerprints hold equal rows.
        num_rows: How many.
    """

    file: File
    folder: Path
    fingerprint: str
    num_rows: int

    @property
    def table(self) -> pa.Table:
        """The rows, whatever has become of the file by now.

        Raises:
            DataError: If other rows lie in their place.
        """
        return _open_table(self)


@functools.lru_cache(maxsize=_OPEN_TABLES)
def _open_table(rows: CachedRows) -> pa.Table:
    found = open_cached(rows.folder, "rows.arrow", "fingerprint")
    if found is None or found[0]["fingerprint"] != rows.fingerprint:
        raise DataError(f"{rows.file} changed while this run read it. Start it again.")
    return found[1]


def cached_rows(
    file: File, kind: str, version: int, build: Callable[[Path], dict[str, Any]], *keys: str
) -> tuple[CachedRows, dict[str, Any]]:
    """(rows of a file, what was written down about them), made by `build` unless they are there and up to date.

    Args:
        file: What the rows come from.
        kind: Name of the cache's shelf.
        version: Of the layout.
        build: Writes `rows.arrow` into a folder and returns what to write down: `fingerprint` and `keys`.
        keys: What else must be written down.

    Raises:
        DataError: If the file cannot be read.
    """
    folder, stamp = cache_folder(kind, version, file.address), file.stamp()
    look = functools.partial(open_cached, folder, "rows.arrow", "file", "fingerprint", *keys)
    found = look()
    if found is None or found[0]["file"] != stamp:
        with new_folder(folder) as temporary:
            write_json(temporary / "about.json", {"file": stamp, **build(temporary)})
        found = look()
    if found is None:
        raise DataError(f"the rows of {file} cannot be read back from {folder}. Check that disk.")
    about, table = found
    rows = CachedRows(file, folder, about["fingerprint"], len(table))
    _open_table(rows)  # and keep it: another process may soon put other rows in their place
    return rows, about


def combined(fingerprints: Sequence[str]) -> str:
    """The fingerprint of several things in order; of one, its own."""
    if len(fingerprints) == 1:
        return fingerprints[0]
    return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()


class CachedFiles:
    """The rows of several files, file after file."""

    def __init__(self, parts: Sequence[CachedRows]) -> None:
        self.parts = tuple(parts)
        self._ends = np.cumsum([part.num_rows for part in parts])
        self.fingerprint = combined([part.fingerprint for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def find(self, row: int) -> tuple[CachedRows, int]:
        """(the file that holds a row, which row of the file it is)."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        part = self.parts[number]
        return part, row - (int(self._ends[number]) - part.num_rows)


class ArrowFile:
    """Rows into an Arrow file, batch by batch."""

    def __init__(self, path: Path, columns: dict[str, Any]) -> None:
        self.schema = pa.schema(list(columns.items()))
        self.writer = pa.ipc.new_file(str(path), self.schema)
        self.rows: list[tuple[object, ...]] = []
        self.bytes = 0

    def append(self, *row: object) -> None:
        """One row, in the order of the columns."""
        self.rows.append(row)
        self.bytes += sum(len(value) for value in row if isinstance(value, bytes))
        if len(self.rows) == _ROWS or self.bytes >= _BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        self._flush()
        self.writer.close()

    def _flush(self) -> None:
        if self.rows:
            columns = [list(column) for column in zip(*self.rows, strict=True)]
            arrays = [pa.array(values, field.type) for values, field in zip(columns, self.schema, strict=True)]
            self.writer.write_batch(pa.record_batch(arrays, schema=self.schema))
            self.rows.clear()
            self.bytes = 0
