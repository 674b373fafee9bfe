"""The sorted index of an image folder: an Arrow file in the cache, memory-mapped, checked by folder times.

Memory does not grow with the number of images, and a second start looks at each folder once and at no file.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from attar.errors import DataError
from attar.utils.io import cache_dir, new_folder, read_json, sha256_file, write_json
from attar.utils.progress import counting

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_ROWS = 65_536  # paths per Arrow batch: a few megabytes
_FORMAT = 2  # raise when the layout of the cached files changes
_SETTLED_NS = 2_000_000_000  # no file system in use has coarser times


@dataclass(frozen=True)
class FolderIndex:
    """Paths of all images below a folder: the folder's own in sorted order, then those of each subfolder in turn.

    Attributes:
        root: The folder.
        paths: Memory-mapped column of paths relative to `root`, as bytes, with forward slashes.
        fingerprint: SHA-256 over the paths in order; two runs with equal fingerprints see equal rows.
        ignored: Files below the folder that were left out: hidden ones, and those that are no images by their name.
    """

    root: Path
    paths: pa.ChunkedArray
    fingerprint: str
    ignored: int

    def __reduce__(self) -> tuple[Callable[..., FolderIndex], tuple[Path, str]]:
        return _reopen, (self.root, self.fingerprint)

    def path(self, row: int) -> Path:
        """Where the image of a row lies."""
        return self.root / os.fsdecode(self.paths[row].as_py())

    def name(self, row: int) -> str:
        """The row's path below `root`, as text that can be printed."""
        return printable(self.paths[row].as_py())


def folder_index(root: Path, *, reindex: bool = False) -> FolderIndex:
    """Open the cached index of a folder, or make it.

    Args:
        root: Folder of images at any depth; hidden files and folders are left out, symbolic links are followed.
        reindex: List the folder anew even if no folder's time has changed.

    Raises:
        DataError: If the folder does not exist, cannot be listed or holds no image.
    """
    root = local_path(root)
    if not root.is_dir():
        raise DataError(f"image folder {root} does not exist." + _nearest_parent(root))
    cached = _cached(root)
    index = None if reindex else _open(cached, root)
    if index is None or not _is_current(cached, root):
        _build(root, cached)
        index = _open(cached, root)
    if index is None:
        raise DataError(f"the index of {root} cannot be read back from {cached}. Check that disk.")
    if len(index.paths) == 0:
        raise DataError(
            f"folder {root} holds no image ({index.ignored:,} other files)."
            f" Known endings: {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return index


def local_path(reference: str | Path) -> Path:
    """The absolute path that a reference means, which need not exist.

    Raises:
        DataError: If it cannot be looked at: a home that nobody has, no permission, a link to itself.
    """
    try:
        path = Path(reference).expanduser().resolve()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{reference} cannot be opened: {reason}. Check its name and permissions.") from None
    return path


def printable(name: bytes) -> str:
    """A file's name for messages: line breaks, control characters and bytes that are no text become escapes."""
    text = os.fsdecode(name)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _cached(root: Path) -> Path:
    return cache_dir() / "index" / hashlib.sha256(b"%d:%b" % (_FORMAT, os.fsencode(root))).hexdigest()[:24]


def _open(cached: Path, root: Path) -> FolderIndex | None:
    """The index as it was written; None if it is not there or not whole."""
    try:
        about = read_json(cached / "about.json")
        if _hashes(cached) != about["sha256"]:
            return None
        table = pa.ipc.open_file(pa.memory_map(str(cached / "paths.arrow"))).read_all()
        return FolderIndex(root, table["path"], about["fingerprint"], about["ignored"])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def _reopen(root: Path, fingerprint: str) -> FolderIndex:
    """The same index in a loader's worker, whatever the folder's times say by now."""
    index = _open(_cached(root), root)
    if index is None or index.fingerprint != fingerprint:
        raise DataError(f"folder {root} was indexed anew, with other images, while this run read it. Start it again.")
    return index


def _is_current(cached: Path, root: Path) -> bool:
    """Whether every indexed folder still has the times it had: adding, removing or renaming a file changes them."""
    folders = pa.ipc.open_file(pa.memory_map(str(cached / "folders.arrow")))
    for number in range(folders.num_record_batches):
        for row in folders.get_batch(number).to_pylist():
            try:
                status = (root / os.fsdecode(row["folder"])).stat()
            except OSError:
                return False
            if (status.st_mtime_ns, status.st_ctime_ns) != (row["mtime_ns"], row["ctime_ns"]):
                return False
    return True


def _build(root: Path, cached: Path) -> None:
    digest = hashlib.sha256()
    images = ignored = 0
    with new_folder(cached) as folder, counting(f"indexing {printable(os.fsencode(root.name))}", unit="images") as show:
        paths = _ArrowFile(folder / "paths.arrow", {"path": pa.large_binary()})
        times = {"mtime_ns": pa.int64(), "ctime_ns": pa.int64()}
        folders = _ArrowFile(folder / "folders.arrow", {"folder": pa.large_binary(), **times})
        for listed in _walk(root):
            folders.append(os.fsencode(listed.relative), listed.mtime_ns, listed.ctime_ns)
            for name in listed.images:
                path = os.fsencode(_join(listed.relative, name))
                digest.update(path + b"\0")
                paths.append(path)
            images, ignored = images + len(listed.images), ignored + listed.others
            show(images)
        paths.close()
        folders.close()
        about = {"root": str(root), "images": images, "ignored": ignored, "fingerprint": digest.hexdigest()}
        write_json(folder / "about.json", {**about, "sha256": _hashes(folder)})


def _hashes(cached: Path) -> list[str]:
    """Arrow does not notice a flipped bit, and may read beyond its file because of one."""
    return [sha256_file(cached / "paths.arrow"), sha256_file(cached / "folders.arrow")]


class _Listed(NamedTuple):
    """One folder: where it is below the root, its times, the names of its images, how many other files it has."""

    relative: str
    mtime_ns: int
    ctime_ns: int
    images: list[str]
    others: int


def _walk(root: Path) -> Iterator[_Listed]:
    """Depth first in sorted order, each folder once however many links lead to it."""
    stack = [""]
    visited: set[tuple[int, int]] = set()
    while stack:
        relative = stack.pop()
        try:
            status = (root / relative).stat()
            if (status.st_dev, status.st_ino) in visited:  # a symbolic link back up, or to a folder seen already
                continue
            visited.add((status.st_dev, status.st_ino))
            # Another file may come within the same tick of the clock and leave the time as it is: such a time proves
            # nothing, so it is not kept. The change time tells when an archive was unpacked with its old times.
            settled = abs(time.time_ns() - status.st_mtime_ns) > _SETTLED_NS
            images, folders, others = _list(root / relative)
        except OSError as error:
            raise DataError(
                f"folder {root / relative} cannot be listed: {error.strerror}. Check its permissions."
            ) from None
        stack.extend(_join(relative, name) for name in sorted(folders, reverse=True))
        yield _Listed(relative, status.st_mtime_ns if settled else -1, status.st_ctime_ns, sorted(images), others)


def _list(folder: Path) -> tuple[list[str], list[str], int]:
    images, folders, others = [], [], 0
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if _is_folder(entry):
                if not name.startswith("."):
                    folders.append(name)
            elif not name.startswith(".") and name[name.rfind(".") :].lower() in IMAGE_SUFFIXES and _is_file(entry):
                images.append(name)
            else:
                others += 1
    return images, folders, others


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that may not be entered
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether reading makes sense: no pipe or socket. A broken link keeps its row, and is reported when it is read."""
    return entry.is_symlink() or entry.is_file()


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


class _ArrowFile:
    """Rows into an Arrow file, batch by batch."""

    def __init__(self, path: Path, columns: dict[str, Any]) -> None:
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
