"""Tar shards in WebDataset's naming: an index in the cache says where each image lies, and nothing is extracted.

`a/0001.jpg` and the `a/0001.cls` beside it are one sample, named up to the first dot of the file's name. The image is
the member whose ending is that of an image file and nothing more (`.seg.png` is something else), `.cls` holds its
class as a whole number. Everything else is passed over.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from attar.data.base import Problem
from attar.data.files import IMAGE_SUFFIXES, File, printable
from attar.data.mapped import ArrowFile, CachedRows, cached_rows
from attar.errors import DataError
from attar.utils.io import sha256_file

_FORMAT = 3  # raise when the layout of the cached files changes
_LARGEST_HEADER = 1 << 20  # bytes of a long name; a damaged length must not fill the memory
TOO_LARGE = 2**32 - 1  # bytes: what the index says of this size and of all beyond
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)  # WebDataset: key, ending


def shard_rows(file: File) -> tuple[CachedRows, tuple[Problem, ...]]:
    """(where each image of a shard lies, what of the shard is damaged), from the cache or by walking its headers once.

    The table has columns `name`, `offset`, `size`, which is `TOO_LARGE` at most, and `label`, which may be null. A
    damaged shard keeps the images before the damage, and as many count as lost as its other bytes would hold at their
    size. The fingerprint is over the columns: other bytes of equal length do not change it.

    Raises:
        DataError: If the file cannot be read, or is compressed.
    """
    rows, about = cached_rows(file, "tar", _FORMAT, partial(_build, file), "problems")
    return rows, tuple(Problem(**problem) for problem in about["problems"])


def _build(file: File, folder: Path) -> dict[str, Any]:
    columns = {"name": pa.binary(), "offset": pa.int64(), "size": pa.uint32(), "label": pa.int64()}  # small: all mapped
    rows, digest, problems = ArrowFile(folder / "rows.arrow", columns), hashlib.sha256(), []
    images = 0
    with file.open() as opened:
        _refuse_compressed(file, opened)
        try:
            for sample in _samples(opened):
                row = (sample.name, sample.offset, sample.size, sample.label)
                rows.append(*row)
                digest.update(repr(row).encode())
                images += 1
        except _Damage as damage:
            place = f"{file}: passed over from byte {damage.offset:,} on ({damage})"
            rest = opened.seek(0, os.SEEK_END) - damage.offset
            lost = max(1, math.ceil(rest * images / damage.offset)) if images else 1
            reason = f"{place}; {images:,} images before it are used."
            problems.append({"name": str(file), "reason": reason, "lost": lost})
    rows.close()
    sha256 = {"rows.arrow": sha256_file(folder / "rows.arrow")}
    return {"fingerprint": digest.hexdigest(), "problems": problems, "sha256": sha256}


def _refuse_compressed(file: File, opened: BinaryIO) -> None:
    head = opened.read(6)
    for magic, kind in _COMPRESSED.items():
        if head.startswith(magic):
            raise DataError(
                f"{file} is compressed ({kind}), so no image in it can be read by itself."
                " Decompress it once; the images in it are compressed already."
            )


@dataclass
class _Sample:
    """An image and its class: where its bytes lie."""

    key: str
    name: bytes = b""
    offset: int = 0
    size: int = 0
    label: int | None = None


class _Damage(Exception):  # noqa: N818  (it ends a shard, not the program)
    """A tar that goes wrong at a byte."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset = offset


def _samples(file: BinaryIO) -> Iterator[_Sample]:
    """Samples that have an image, in order: neighbours of one key.

    Raises:
        _Damage: After the last sample that is whole.
    """
    sample, has_labels = _Sample(""), False
    try:
        for member in _members(file):
            match = _NAME.fullmatch(member.name) if member.isreg() else None
            if match is None:
                continue
            if match[1] != sample.key:
                if sample.name:
                    yield sample
                sample = _Sample(match[1])
            if match[2] == "cls":
                file.seek(member.offset_data)
                sample.label = _label(file.read(min(member.size, 32)))
                has_labels = True
            elif f".{match[2].lower()}" in IMAGE_SUFFIXES and not sample.name:
                sample.name = member.name.encode(errors="surrogateescape")
                sample.offset, sample.size = member.offset_data, min(member.size, TOO_LARGE)
    except _Damage:
        if sample.name and (sample.label is not None or not has_labels):  # else its class lay behind the damage
            yield sample
        raise
    if sample.name:
        yield sample


def _label(text: bytes) -> int | None:
    try:
        label = int(text)
    except ValueError:
        return None
    return label if 0 <= label < 2**63 else None


def _members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Members that are whole, by their headers alone.

    Python's own TarFile takes a damaged header for the end of the archive; its headers one by one say what is wrong.

    Raises:
        _Damage: Where the archive goes wrong, or stops without the zeros that end one.
    """
    archive: Any = tarfile.TarFile(fileobj=io.BytesIO(bytes(2 * tarfile.BLOCKSIZE)), encoding="utf-8")
    archive.fileobj = _Headers(file)
    length = file.seek(0, os.SEEK_END)
    offset = 0
    while True:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            raise _Damage(offset, "it ends here, without the zeros that end a tar")
        if not any(block):
            _check_rest(file, offset)
            return
        file.seek(offset)
        archive.offset = offset
        try:
            member = tarfile.TarInfo.fromtarfile(archive)
        except (tarfile.TarError, ValueError, OverflowError, RecursionError, AttributeError, IndexError) as error:
            raise _Damage(offset, f"no tar header: {error}") from None
        if member.size < 0 or archive.offset <= offset:
            raise _Damage(offset, "no tar header: negative size")
        if member.issparse():
            raise _Damage(offset, f"{printable(os.fsencode(member.name))} is stored as a sparse file")
        if member.offset_data + member.size > length:
            raise _Damage(offset, f"cut in the middle of {printable(os.fsencode(member.name))}")
        yield member
        offset = archive.offset


def _check_rest(file: BinaryIO, offset: int) -> None:
    """Nothing but zeros may follow the first block of zeros."""
    while chunk := file.read(1 << 20):
        if any(chunk):
            raise _Damage(offset, "zeros, and more data behind them")


class _Headers:
    """A file that is read for headers only."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        """The next bytes."""
        if not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._read(size)
