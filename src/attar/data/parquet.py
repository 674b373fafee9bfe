"""The images of a Parquet file as Arrow rows in the cache: Parquet has no random access to rows, an Arrow file has."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from attar.errors import DataError
from attar.utils.io import cache_dir, new_folder, read_json, sha256_file, write_json
from attar.utils.progress import track

_ROWS = 128  # images held in memory at a time
_FORMAT = 1  # raise when the layout of the cached files changes


@dataclass(frozen=True)
class ParquetRows:
    """Rows of a Parquet file, memory-mapped.

    Attributes:
        path: The Parquet file.
        table: Column `image`, the bytes of image files; perhaps `label`, whole numbers or names.
        fingerprint: SHA-256 of the Parquet file; two runs with equal fingerprints see equal rows.
    """

    path: Path
    table: pa.Table
    fingerprint: str

    def __reduce__(self) -> tuple[Callable[..., ParquetRows], tuple[Path, str]]:
        return _reopen, (self.path, self.fingerprint)


def parquet_rows(path: Path) -> ParquetRows:
    """Open the cached rows of a Parquet file, or copy them once; they take the room of the images a second time.

    A column `image` holds bytes, or Hugging Face's {bytes, path}. A column `label` that holds neither whole numbers
    nor text is left out.

    Raises:
        DataError: If the file is not Parquet, is damaged, holds no images, or has no rows.
    """
    cached = _cached(path)
    rows = _open(cached, path) if _is_current(cached, path) else None
    if rows is None:
        _build(path, cached)
        rows = _open(cached, path)
    if rows is None:
        raise DataError(f"the rows of {path} cannot be read back from {cached}. Check that disk.")
    if len(rows.table) == 0:
        raise DataError(f"Parquet file {path} holds no rows.")
    return rows


def _cached(path: Path) -> Path:
    return cache_dir() / "parquet" / hashlib.sha256(b"%d:%b" % (_FORMAT, os.fsencode(path))).hexdigest()[:24]


def _open(cached: Path, path: Path) -> ParquetRows | None:
    """The rows as they were written; None if they are not there or not whole."""
    try:
        about = read_json(cached / "about.json")
        table = pa.ipc.open_file(pa.memory_map(str(cached / "rows.arrow"))).read_all()
        return ParquetRows(path, table, about["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def _reopen(path: Path, fingerprint: str) -> ParquetRows:
    """The same rows in a loader's worker, whatever has become of the Parquet file by now."""
    rows = _open(_cached(path), path)
    if rows is None or rows.fingerprint != fingerprint:
        raise DataError(f"Parquet file {path} changed while this run read it. Start it again.")
    return rows


def _is_current(cached: Path, path: Path) -> bool:
    try:
        about = read_json(cached / "about.json")
        return bool(about["file"] == _describe(path))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _describe(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _build(path: Path, cached: Path) -> None:
    try:
        described, fingerprint = _describe(path), sha256_file(path)
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a Parquet file ({_reason(error)}).") from None
    with file:
        schema = _plain_schema(path, file.schema_arrow)
        with new_folder(cached) as folder:
            with pa.ipc.new_file(str(folder / "rows.arrow"), schema) as writer:
                total = math.ceil(file.metadata.num_rows / _ROWS)
                for batch in track(_batches(file, path, schema), f"copying {path.name}", total=total, unit="batches"):
                    writer.write_batch(batch)
            write_json(folder / "about.json", {"file": described, "fingerprint": fingerprint})


def _plain_schema(path: Path, found: Any) -> Any:
    """`image` as bytes, and `label` as numbers or text."""
    if "image" not in found.names:
        raise DataError(f"{path} has no column 'image'; it has {', '.join(found.names)}.")
    if not _holds_bytes(found.field("image").type):
        raise DataError(
            f"column 'image' of {path} is {found.field('image').type};"
            " it must hold the bytes of image files, plain or as Hugging Face's {bytes, path}."
        )
    columns = [("image", pa.large_binary())]
    if "label" in found.names and (kind := _label_type(found.field("label").type)) is not None:
        columns.append(("label", kind))
    return pa.schema(columns)


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _label_type(kind: Any) -> Any:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return pa.int64()
    return pa.large_string() if pa.types.is_string(kind) or pa.types.is_large_string(kind) else None


def _batches(file: Any, path: Path, schema: Any) -> Iterator[Any]:
    try:
        for batch in file.iter_batches(batch_size=_ROWS, columns=schema.names):
            columns = [_plain(batch[field.name]).cast(field.type) for field in schema]
            yield pa.record_batch(columns, schema=schema)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged ({_reason(error)}).") from None


def _plain(column: Any) -> Any:
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
