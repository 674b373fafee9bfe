"""The sorted index of an image folder: an Arrow file in the cache, memory-mapped, checked by folder times.

Memory does not grow with the number of images, and a second start reads one number per folder, not per file.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from attar.errors import DataError
from attar.utils.io import cache_dir, new_folder, read_json, write_json
from attar.utils.progress import console

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_ROWS = 65_536  # paths per Arrow batch: a few megabytes
_FORMAT = 1  # raise when the layout of the cached files changes


@dataclass(frozen=True)
class FolderIndex:
    """Paths of all images below a folder, in sorted order.

    Attributes:
        root: The folder.
        paths: Memory-mapped column of paths relative to `root`, with forward slashes.
        fingerprint: SHA-256 over the paths in order; two runs with equal fingerprints see equal rows.
        ignored: Files below the folder that are no images by their name.
    """

    root: Path
    paths: pa.ChunkedArray
    fingerprint: str
    ignored: int


def folder_index(root: Path, *, reindex: bool = False) -> FolderIndex:
    """Open the cached index of a folder, or make it.

    Args:
        root: Folder of images at any depth; hidden files and folders are left out, symbolic links are followed.
        reindex: List the folder anew even if no folder's time has changed.

    Raises:
        DataError: If the folder does not exist, cannot be listed or holds no image.
    """
    root = root.expanduser().resolve()
    if not root.is_dir():
        raise DataError(f"image folder {root} does not exist." + _nearest_parent(root))
    cached = cache_dir() / "index" / hashlib.sha256(f"{_FORMAT}:{root}".encode()).hexdigest()[:24]
    if reindex or not _is_current(cached, root):
        _build(root, cached)
    return _open(cached, root)


def _open(cached: Path, root: Path) -> FolderIndex:
    about = read_json(cached / "about.json")
    if about["images"] == 0:
        raise DataError(
            f"folder {root} holds no image ({about['ignored']:,} other files)."
            f" Known endings: {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    table = pa.ipc.open_file(pa.memory_map(str(cached / "paths.arrow"))).read_all()
    return FolderIndex(root, table["path"], about["fingerprint"], about["ignored"])


def _is_current(cached: Path, root: Path) -> bool:
    """Whether every indexed folder still has the time it had: adding, removing or renaming a file changes it."""
    try:
        folders = pa.ipc.open_file(pa.memory_map(str(cached / "folders.arrow")))
        for number in range(folders.num_record_batches):
            batch = folders.get_batch(number)
            for name, mtime in zip(batch["folder"].to_pylist(), batch["mtime_ns"].to_pylist(), strict=True):
                if os.stat(root / name).st_mtime_ns != mtime:
                    return False
        return (cached / "about.json").is_file()
    except (OSError, pa.ArrowInvalid, KeyError):
        return False


def _build(root: Path, cached: Path) -> None:
    digest = hashlib.sha256()
    images = ignored = 0
    started = last = time.monotonic()
    with new_folder(cached) as folder:
        paths = _ArrowFile(folder / "paths.arrow", {"path": pa.large_string()})
        folders = _ArrowFile(folder / "folders.arrow", {"folder": pa.large_string(), "mtime_ns": pa.int64()})
        for relative, mtime, names, others in _walk(root):
            folders.append(relative, mtime)
            ignored += others
            for name in names:
                path = f"{relative}/{name}" if relative else name
                digest.update(path.encode("utf-8", "surrogateescape") + b"\0")
                paths.append(path)
                images += 1
            now = time.monotonic()
            if now - started > 2 and now - last > (0.2 if console.is_terminal else 10):
                last = now
                end = "\r" if console.is_terminal else "\n"
                rate = images / (now - started)
                print(f"  indexing {root.name}  {images:,} images  {rate:,.0f}/s", end=end, file=sys.stdout, flush=True)
        paths.close()
        folders.close()
        about = {"root": str(root), "images": images, "ignored": ignored, "fingerprint": digest.hexdigest()}
        write_json(folder / "about.json", about)


def _walk(root: Path) -> Iterator[tuple[str, int, list[str], int]]:
    """Depth first in sorted order: (folder relative to root, its mtime, image names, number of other files)."""
    stack = [""]
    visited: set[tuple[int, int]] = set()
    while stack:
        relative = stack.pop()
        try:
            status = os.stat(root / relative)
            if (status.st_dev, status.st_ino) in visited:  # a symbolic link back up
                continue
            visited.add((status.st_dev, status.st_ino))
            names, folders, others = _list(root / relative)
        except OSError as error:
            raise DataError(
                f"folder {root / relative} cannot be listed: {error.strerror}. Check its permissions."
            ) from None
        stack.extend(f"{relative}/{name}" if relative else name for name in sorted(folders, reverse=True))
        yield relative, status.st_mtime_ns, sorted(names), others


def _list(folder: Path) -> tuple[list[str], list[str], int]:
    names, folders, others = [], [], 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                names.append(entry.name)
            else:
                others += 1
    return names, folders, others


class _ArrowFile:
    """Rows into an Arrow file, batch by batch."""

    def __init__(self, path: Path, columns: dict[str, pa.DataType]) -> None:
        self.schema = pa.schema(list(columns.items()))
        self.writer = pa.ipc.new_file(str(path), self.schema)
        self.rows: list[tuple[object, ...]] = []

    def append(self, *row: object) -> None:
        self.rows.append(row)
        if len(self.rows) == _ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self.writer.close()

    def _flush(self) -> None:
        if self.rows:
            columns = [list(column) for column in zip(*self.rows, strict=True)]
            arrays = [pa.array(values, field.type) for values, field in zip(columns, self.schema, strict=True)]
            self.writer.write_batch(pa.record_batch(arrays, schema=self.schema))
            self.rows.clear()


def _nearest_parent(path: Path) -> str:
    for parent in path.parents:
        if parent.is_dir():
            return f" The nearest folder that does is {parent}."
    return ""
