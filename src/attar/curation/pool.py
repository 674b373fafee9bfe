"""A pool: embeddings of many images in Parquet shards, with a manifest that says what they are of, and by what.

A folder holds `manifest.json` and `shard-00000.parquet`, `shard-00001.parquet`, ... with the columns

    id         string                               what the source calls the image; no two are equal in a pool
    uri        string                               where it lies, for other tools
    embedding  fixed_size_list<halffloat>[width]    of length 1; zeros where the image cannot be read

Row i of the pool, shard after shard, is row i of the source that the manifest's places open.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from attar.config import Config
from attar.data.base import Source
from attar.data.sources import open_source
from attar.errors import ConfigError, DataError, meant_beside
from attar.types import BadFile
from attar.utils.io import new_file, read_json, sha256_file, sha256_text

FORMAT = 1
"""Of the folder; to be raised when a reader of this one would misread the next."""

_ROW_GROUP = 4096  # rows that a reader must hold at once: 6 MB of 768 numbers
_UNREADABLE = b"attar.unreadable"  # key of a shard's own list of them


class PoolModel(Config):
    """What made the vectors."""

    reference: str
    weights: str
    file: str | None = Field(description="name of the weight file, without its folder")
    sha256: str | None = Field(description="of that file")
    licence: str | None
    fingerprint: str = Field(description="of all weights as they were used")
    img_size: int = Field(ge=1)
    pos_embed: Literal["official", "timm"] = Field("official", description="how position tables were resampled")
    seed: int = Field(0, ge=0, description="names the weights where they are random")
    trust_torchscript: bool = Field(
        False, description="whether the weight file was allowed to be a TorchScript archive"
    )
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class PoolView(Config):
    """How the model saw the images: short side to img_size / crop_pct, centre of img_size."""

    img_size: int = Field(ge=1)
    crop_pct: float = Field(gt=0, le=1)
    implementation: str


class PoolShard(Config):
    """One file of a pool."""

    file: str = Field(pattern=r"^[\w.-]+\.parquet$", description="name within the folder")
    rows: int = Field(ge=1)
    unreadable: int = Field(ge=0)
    size_bytes: int = Field(ge=1)
    sha256: str


class Manifest(Config):
    """What `manifest.json` holds."""

    format: Literal[1] = 1
    versions: dict[str, str] = Field(description="of attar and of what shapes a vector")
    model: PoolModel
    view: PoolView
    vector: Literal["embed"] = "embed"
    precision: Literal["fp32", "bf16"]
    dtype: Literal["float16"] = "float16"
    normalised: Literal[True] = True
    width: int = Field(ge=1, description="numbers in a vector")
    count: int = Field(ge=1)
    unreadable: int = Field(ge=0, description="images that cannot be read; their vectors are zeros")
    places: tuple[str, ...] = Field(min_length=1, description="references that `open_source` takes")
    fingerprint: str = Field(description="of the source they open")
    shard_size: int = Field(ge=1, description="rows of each shard but the last")
    batch_size: int = Field(ge=1, description="rows of a forward pass, on which last digits depend")
    shards: tuple[PoolShard, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _sums(self) -> Self:
        for name, total in (("rows", self.count), ("unreadable", self.unreadable)):
            found = sum(getattr(shard, name) for shard in self.shards)
            if found != total:
                raise ValueError(f"its shards have {found:,} {name}, it says {total:,}")
        return self


class Pool:
    """Embedded images in a folder; vectors are read in blocks, so that memory does not grow with their number.

    Attributes:
        folder: Where it lies.
        manifest: What it says of itself.
        firsts: Row of the pool that each shard begins with.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.firsts = np.cumsum([0, *(shard.rows for shard in manifest.shards)])[:-1]

    @classmethod
    def open(cls, folder: str | Path, *, check_hashes: bool = False) -> Self:
        """Open what `attar embed` has written.

        Args:
            folder: Its `--out`.
            check_hashes: Read every shard and compare its SHA-256, too; without it sizes must agree.

        Raises:
            DataError: If it is no pool, one of another version, not finished or damaged.
        """
        folder = Path(folder).expanduser().resolve()
        manifest = _read_manifest(folder / "manifest.json")
        for shard in manifest.shards:
            _check(folder / shard.file, shard, check_hashes)
        return cls(folder, manifest)

    def check(self, number: int) -> None:
        """Read a shard and compare its SHA-256.

        Raises:
            DataError: If it is not what was embedded.
        """
        shard = self.manifest.shards[number]
        _check(self.folder / shard.file, shard, check_hashes=True)

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return self.manifest.width

    @cached_property
    def fingerprint(self) -> str:
        """Two pools with equal fingerprints have equal rows: ids, addresses and vectors."""
        return sha256_text(json.dumps([shard.sha256 for shard in self.manifest.shards]))

    def blocks(self, *, rows: int = _ROW_GROUP, shards: Sequence[int] | None = None) -> Iterator[tuple[int, Tensor]]:
        """(first row, vectors (n, D) float16 with n <= rows), in order.

        Vectors have length 1, up to the rounding of float16, or are all zero, which no search may return.

        Args:
            rows: The most in a block.
            shards: Numbers of the shards to read, as when a search is split over processes; all by default.

        Raises:
            DataError: If a shard cannot be read.
        """
        for number in range(len(self.firsts)) if shards is None else shards:
            first = int(self.firsts[number])
            for batch in self._batches(number, "embedding", rows):
                values = batch.column(0).flatten().to_numpy(zero_copy_only=True)
                yield first, torch.from_numpy(values.reshape(-1, self.width).copy())
                first += batch.num_rows

    def unreadable(self) -> list[BadFile]:
        """Images that cannot be read, in order, as the shards tell.

        Raises:
            DataError: If a shard is damaged.
        """
        shards = [self.folder / shard.file for shard in self.manifest.shards if shard.unreadable]
        return [bad for path in shards for bad in read_unreadable(path)]

    def ids(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """What the source calls these rows, in the order asked for."""
        return self._texts("id", rows)

    def uris(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Where these rows lie, in the order asked for."""
        return self._texts("uri", rows)

    def vectors(self, rows: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """(n, D) float16 of these rows, in the order asked for."""
        vectors = np.zeros((len(rows), self.width), dtype=np.float16)
        for where, found in self._found("embedding", rows):
            vectors[where] = found.flatten().to_numpy(zero_copy_only=True).reshape(-1, self.width)
        return torch.from_numpy(vectors)

    def source(self, *, reindex: bool = False) -> Source:
        """The images, row by row those of the pool.

        Raises:
            DataError: If they cannot be opened, or are not the ones that were embedded.
        """
        source = open_source(self.manifest.places, reindex=reindex)
        if source.fingerprint != self.manifest.fingerprint:
            raise DataError(
                f"{', '.join(self.manifest.places)}: these are {len(source):,} other images than the {len(self):,} in"
                f" the pool {self.folder} (fingerprint {source.fingerprint[:12]}, there"
                f" {self.manifest.fingerprint[:12]}). Bring them back as they were, or embed them anew into another"
                " folder."
            )
        return source

    def _batches(self, number: int, column: str, rows: int) -> Iterator[Any]:
        path = self.folder / self.manifest.shards[number].file
        try:
            with pq.ParquetFile(path, memory_map=True) as file:
                yield from file.iter_batches(batch_size=rows, columns=[column], use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, str(error).strip().splitlines()[0]) from None

    def _texts(self, column: str, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
        texts = np.empty(len(rows), dtype=object)
        for where, found in self._found(column, rows):
            texts[where] = found.to_pylist()
        return list(texts)

    def _found(self, column: str, rows: Sequence[int] | NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Any]]:
        """(positions among `rows`, an Arrow array of their values), a stretch of a shard at a time."""
        wanted = np.asarray(rows, dtype=np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"rows from {wanted.min()} to {wanted.max()}: the pool has {len(self):,}")
        shards = np.searchsorted(self.firsts, wanted, side="right") - 1
        for number in np.unique(shards):
            where = np.flatnonzero(shards == number)
            first = int(self.firsts[number])
            for batch in self._batches(int(number), column, _ROW_GROUP):
                here = where[(wanted[where] >= first) & (wanted[where] < first + batch.num_rows)]
                yield here, batch.column(0).take(pa.array(wanted[here] - first))
                first += batch.num_rows


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05}.parquet"


def write_shard(
    path: Path, ids: Sequence[str], uris: Sequence[str], embeddings: NDArray[np.float16], unreadable: Sequence[BadFile]
) -> None:
    """Write one shard, whole or not at all; equal rows give equal bytes.

    Args:
        path: Where it shall be.
        ids: n names.
        uris: n addresses.
        embeddings: (n, D).
        unreadable: Images whose vectors are zeros, with their rows in the pool and the reasons.
    """
    element = pa.field("element", pa.float16(), nullable=False)
    kind = pa.list_(element, embeddings.shape[1])
    bad = json.dumps([[file.sample, file.name, file.reason] for file in unreadable])
    names = [pa.field("id", pa.string(), nullable=False), pa.field("uri", pa.string(), nullable=False)]
    schema = pa.schema([*names, pa.field("embedding", kind, nullable=False)], {_UNREADABLE: bad.encode()})
    values = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), type=kind)
    table = pa.Table.from_arrays([pa.array(ids, pa.string()), pa.array(uris, pa.string()), values], schema=schema)
    with new_file(path) as temporary:
        pq.write_table(
            table,
            temporary,
            row_group_size=_ROW_GROUP,
            use_dictionary=False,
            compression={"id": "zstd", "uri": "zstd", "embedding.list.element": "none"},
            write_statistics=False,
        )


def read_unreadable(path: Path) -> list[BadFile]:
    """What a shard says of images that could not be read.

    Raises:
        DataError: If it is no shard, or is damaged.
    """
    try:
        words = json.loads(pq.read_schema(path).metadata[_UNREADABLE])
        return [BadFile(*word) for word in words]
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, str(error).strip().splitlines()[0]) from None


def describe_shard(path: Path) -> PoolShard:
    """A shard's entry in the manifest; reads all of it.

    Raises:
        DataError: If it is no shard, or is damaged.
    """
    unreadable = len(read_unreadable(path))
    rows = pq.read_metadata(path).num_rows
    return PoolShard(
        file=path.name, rows=rows, unreadable=unreadable, size_bytes=path.stat().st_size, sha256=sha256_file(path)
    )


def _read_manifest(path: Path) -> Manifest:
    if not path.parent.is_dir():
        raise DataError(f"there is no folder {path.parent}.{meant_beside(path.parent)} Give the --out of attar embed.")
    if not path.is_file():
        found = (
            "its shards are not all there: give the same attar embed command again"
            if any(path.parent.glob("shard-*.parquet"))
            else "give the --out of attar embed"
        )
        raise DataError(f"{path.parent} holds no manifest.json, so it is no finished pool; {found}.")
    try:
        content = read_json(path)
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    if isinstance(content, dict) and content.get("format") != FORMAT:
        raise DataError(
            f"{path} is of format {content.get('format')!r}, this attar reads format {FORMAT}."
            " Use the version that wrote it, or embed the images again."
        )
    try:
        return Manifest.build(content)
    except (ConfigError, TypeError, ValueError) as error:
        raise _damaged(path, str(error)) from None


def _check(path: Path, shard: PoolShard, check_hashes: bool) -> None:
    if not path.is_file():
        raise _damaged(path, "it is not there")
    if (size := path.stat().st_size) != shard.size_bytes:
        raise _damaged(path, f"it has {size:,} bytes, the manifest says {shard.size_bytes:,}")
    if check_hashes and (digest := sha256_file(path)) != shard.sha256:
        raise _damaged(path, f"its SHA-256 is {digest[:12]}..., the manifest says {shard.sha256[:12]}...")


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is damaged: {reason.rstrip('.')}. Remove it and give the same attar embed command again.")
