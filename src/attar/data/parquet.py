"""The images of a Parquet file as Arrow rows in the cache: Parquet has no random access to rows, an Arrow file has."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from attar.data.files import File, is_url
from attar.data.mapped import CachedRows, cached_rows
from attar.errors import DataError
from attar.utils.io import sha256_file
from attar.utils.progress import counting, track

_ROWS = 128  # images held in memory at a time
_FORMAT = 1  # raise when the layout of the cached files changes


def parquet_rows(file: File) -> CachedRows:
    """Open the cached rows of a Parquet file, or copy them once; they take the room of the images a second time.

    The table has a column `image`, the bytes of image files, and perhaps `label`, whole numbers or names. In the file
    `image` may be Hugging Face's {bytes, path}; a `label` that is neither is left out. The fingerprint is the SHA-256
    of the file.

    Raises:
        DataError: If the file is not Parquet, is damaged, or holds no images.
    """
    return cached_rows(file, "parquet", _FORMAT, partial(_build, file))[0]


def _build(file: File, folder: Path) -> dict[str, Any]:
    """Copy the rows of a file into `rows.arrow` in the folder; say what they are."""
    with _on_this_machine(file, folder) as path:
        fingerprint = sha256_file(path)
        try:
            parquet = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file} is not a Parquet file ({_reason(error)}).") from None
        with parquet:
            schema = _plain_schema(file, parquet.schema_arrow)
            total = math.ceil(parquet.metadata.num_rows / _ROWS)
            with pa.ipc.new_file(str(folder / "rows.arrow"), schema) as writer:
                for batch in track(
                    _batches(parquet, file, schema), f"copying {file.name}", total=total, unit="batches"
                ):
                    writer.write_batch(batch)
    return {"fingerprint": fingerprint}


@contextlib.contextmanager
def _on_this_machine(file: File, folder: Path) -> Iterator[Path]:
    """A path of the file; what lies behind a URL is fetched whole, since all of it is hashed, and removed after."""
    if not is_url(file.address):
        yield Path(file.address)
        return
    path = folder / "fetched.parquet"
    with file.open() as there, path.open("wb") as here, counting(f"fetching {file.name}", unit="MB") as show:
        for megabytes, chunk in enumerate(iter(lambda: there.read(1 << 20), b"")):
            here.write(chunk)
            show(megabytes)
    yield path
    path.unlink()


def _plain_schema(file: File, found: Any) -> Any:
    """`image` as bytes, and `label` as numbers or text."""
    if "image" not in found.names:
        raise DataError(f"{file} has no column 'image'; it has {', '.join(found.names)}.")
    if not _holds_bytes(found.field("image").type):
        raise DataError(
            f"column 'image' of {file} is {found.field('image').type};"
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


def _batches(parquet: Any, file: File, schema: Any) -> Iterator[Any]:
    try:
        for batch in parquet.iter_batches(batch_size=_ROWS, columns=schema.names):
            columns = [_plain(batch[field.name]).cast(field.type) for field in schema]
            yield pa.record_batch(columns, schema=schema)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} is damaged ({_reason(error)}).") from None


def _plain(column: Any) -> Any:
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
