"""Where images come from: a folder of any depth, a Parquet file, or the playground. One small protocol for all."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from attar.data.index import folder_index
from attar.data.playground import CLASS_NAMES, render_scene
from attar.errors import DataError, DecodeError
from attar.utils.io import cache_dir, new_folder

Labels = NDArray[np.int64]


class Source(Protocol):
    """Images by row. Opening one reads no pixels; a source can be pickled and opened again in a worker."""

    fingerprint: str

    def __len__(self) -> int: ...

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        """Encoded bytes, or pixels (H, W, 3) where the source makes them.

        Raises:
            DecodeError: If the row cannot be read any more.
        """
        ...

    def name(self, row: int) -> str:
        """What to call the row in messages: its path."""
        ...

    def labels(self) -> tuple[Labels, list[str]] | None:
        """(class index per row, class names), or None for a source without labels."""
        ...


def open_source(reference: str, *, reindex: bool = False) -> Source:
    """Open a folder, a `.parquet` file, or `playground:SEED` (with `?n=COUNT`).

    Raises:
        DataError: If there is nothing to open, or no image in it.
    """
    if reference == "playground" or reference.startswith("playground:"):
        return PlaygroundSource.parse(reference)
    path = Path(reference).expanduser()
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

    def __reduce__(self) -> tuple[type[FolderSource], tuple[Path]]:
        return FolderSource, (self.root,)

    def name(self, row: int) -> str:
        """The row's path below the folder."""
        return str(self._index.paths[row].as_py())

    def read(self, row: int) -> bytes:
        """Bytes of the file."""
        try:
            return (self.root / self.name(row)).read_bytes()
        except OSError as error:
            raise DecodeError(f"{self.name(row)}: cannot be read ({error.strerror}).") from None

    def labels(self) -> tuple[Labels, list[str]] | None:
        """The first folder on each path is its class; None where images lie directly in the root."""
        parts = pc.split_pattern(self._index.paths, "/", max_splits=1)
        if pc.min(pc.list_value_length(parts)).as_py() < 2:
            return None
        names = pc.list_element(parts, 0).combine_chunks().dictionary_encode()
        order = np.argsort(np.asarray(names.dictionary.to_pylist(), dtype=object))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        classes = names.dictionary.to_pylist()
        return rank[names.indices.to_numpy(zero_copy_only=False)], [str(classes[i]) for i in order]


class ParquetSource:
    """A Parquet file with an `image` column (bytes, or Hugging Face's {bytes, path}) and perhaps a `label` column.

    Parquet has no random access to rows, so the file is copied once into the cache as Arrow, which has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        status = self.path.stat()
        key = f"{self.path}:{status.st_size}:{status.st_mtime_ns}"
        self.fingerprint = hashlib.sha256(key.encode()).hexdigest()
        cached = cache_dir() / "parquet" / self.fingerprint[:24]
        if not (cached / "rows.arrow").is_file():
            _parquet_to_arrow(self.path, cached)
        self._table = pa.ipc.open_file(pa.memory_map(str(cached / "rows.arrow"))).read_all()
        if len(self._table) == 0:
            raise DataError(f"Parquet file {path} holds no rows.")

    def __len__(self) -> int:
        return len(self._table)

    def __reduce__(self) -> tuple[type[ParquetSource], tuple[Path]]:
        return ParquetSource, (self.path,)

    def name(self, row: int) -> str:
        """File name and row."""
        return f"{self.path.name}[{row}]"

    def read(self, row: int) -> bytes:
        """Encoded bytes of the row's image."""
        value = self._table["image"][row].as_py()
        if value is None:
            raise DecodeError(f"{self.name(row)}: the row has no image.")
        return bytes(value)

    def labels(self) -> tuple[Labels, list[str]] | None:
        """The `label` column as it is; class names are the numbers."""
        if "label" not in self._table.column_names:
            return None
        labels = self._table["label"].to_numpy().astype(np.int64)
        return labels, [str(i) for i in range(int(labels.max()) + 1)]


class PlaygroundSource:
    """Procedural scenes with their classes: `playground:SEED?n=COUNT`."""

    def __init__(self, seed: int, count: int) -> None:
        self.seed, self.count = seed, count
        self.fingerprint = hashlib.sha256(f"playground:{seed}:{count}".encode()).hexdigest()

    @classmethod
    def parse(cls, reference: str) -> PlaygroundSource:
        """Read `playground`, `playground:SEED` or `playground:SEED?n=COUNT`."""
        words, _, query = reference.removeprefix("playground").removeprefix(":").partition("?")
        count = query.removeprefix("n=") if query else "10000"
        if not (words or "0").isdigit() or not count.isdigit() or int(count) == 0:
            raise DataError(f"'{reference}' must look like playground:SEED?n=COUNT, both whole numbers.")
        return cls(int(words or 0), int(count))

    def __len__(self) -> int:
        return self.count

    def name(self, row: int) -> str:
        """Seed and row."""
        return f"playground:{self.seed}[{row}]"

    def read(self, row: int) -> NDArray[np.uint8]:
        """Pixels of the scene, (64, 64, 3)."""
        return render_scene(self.seed, row).image

    def labels(self) -> tuple[Labels, list[str]]:
        """Shape classes."""
        return np.arange(self.count, dtype=np.int64) % len(CLASS_NAMES), list(CLASS_NAMES)


def _parquet_to_arrow(path: Path, cached: Path) -> None:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a Parquet file ({str(error).splitlines()[0]}).") from None
    columns = [name for name in ("image", "label") if name in file.schema_arrow.names]
    if "image" not in columns:
        raise DataError(f"{path} has no column 'image'; it has {', '.join(file.schema_arrow.names)}.")
    schema = pa.schema([(name, pa.large_binary() if name == "image" else pa.int64()) for name in columns])
    with new_folder(cached) as folder, pa.ipc.new_file(str(folder / "rows.arrow"), schema) as writer:
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            writer.write_batch(pa.record_batch([_plain_column(batch[name], name) for name in columns], schema=schema))


def _plain_column(column: pa.Array, name: str) -> Any:
    if name == "label":
        return column.cast(pa.int64())
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    return column.cast(pa.large_binary())
