"""The sorted index of an image folder: an Arrow file in the cache, memory-mapped, checked by folder times.

Memory does not grow with the number of images, and a second start looks at each folder once and at no file. Behind a
URL no folder times tell of a change: there the index is made once and trusted until it shall be made anew.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from attar.data.files import (
    IMAGE_SUFFIXES,
    File,
    find_below,
    is_url,
    local_path,
    printable,
    without_credentials,
)
from attar.data.mapped import ArrowFile, cache_folder, open_cached
from attar.errors import DataError, did_you_mean
from attar.utils.io import new_folder, sha256_file, write_json
from attar.utils.progress import counting

_FORMAT = 3  # raise when the layout of the cached files changes
_SETTLED_NS = 2_000_000_000  # no file system in use has coarser times


@dataclass(frozen=True)
class FolderIndex:
    """Paths of all images below a folder: the folder's own in sorted order, then those of each subfolder in turn.

    Attributes:
        root: The folder, an absolute path or a URL.
        paths: Memory-mapped column of paths relative to `root`, as bytes, with forward slashes.
        fingerprint: SHA-256 over the paths in order; two runs with equal fingerprints see equal rows.
        ignored: Files below the folder that were left out: hidden ones, and those that are no images by their name.
    """

    root: str
    paths: pa.ChunkedArray
    fingerprint: str
    ignored: int

    def __reduce__(self) -> tuple[Callable[..., FolderIndex], tuple[str, str]]:
        return _reopen, (self.root, self.fingerprint)

    def file(self, row: int) -> File:
        """The image of a row."""
        return File(f"{self.root.rstrip('/')}/{os.fsdecode(self.paths[row].as_py())}")

    def name(self, row: int) -> str:
        """The row's path below `root`, as text that can be printed."""
        return printable(self.paths[row].as_py())


def folder_index(root: str | Path, *, reindex: bool = False) -> FolderIndex:
    """Open the cached index of a folder, or make it.

    Args:
        root: Folder of images at any depth, or its URL; hidden files and folders are left out, symbolic links are
            followed.
        reindex: List the folder anew even if no folder's time has changed.

    Raises:
        DataError: If the folder does not exist, cannot be listed or holds no image.
    """
    root = str(root) if is_url(str(root)) else str(_existing(root))
    index = None if reindex else known_index(root)
    if index is None:
        _build(root)
        index = _open(root)
    if index is None:
        raise DataError(
            f"the index of {without_credentials(root)} cannot be read back from the cache. Check that disk."
        )
    if len(index.paths) == 0:
        raise DataError(
            f"folder {without_credentials(root)} holds no image ({index.ignored:,} other files)."
            f" Known endings: {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return index


def known_index(root: str) -> FolderIndex | None:
    """The index that was made before, if it still holds."""
    index = _open(root)
    return index if index is not None and (is_url(root) or _is_current(Path(root))) else None


def _existing(root: str | Path) -> Path:
    path = local_path(root)
    if not path.is_dir():
        raise DataError(f"image folder {path} does not exist." + _nearest_parent(path))
    return path


def _cached(root: str) -> Path:
    return cache_folder("index", _FORMAT, root)


def _open(root: str) -> FolderIndex | None:
    """The index as it was written; None if it is not there or not whole."""
    found = open_cached(_cached(root), "paths.arrow", "fingerprint", "ignored")
    return None if found is None else FolderIndex(root, found[1]["path"], found[0]["fingerprint"], found[0]["ignored"])


def _reopen(root: str, fingerprint: str) -> FolderIndex:
    """The same index in a loader's worker, whatever the folder's times say by now."""
    index = _open(root)
    if index is None or index.fingerprint != fingerprint:
        raise DataError(
            f"folder {without_credentials(root)} was indexed anew, with other images, while this run read it."
            " Start it again."
        )
    return index


def _is_current(root: Path) -> bool:
    """Whether every indexed folder still has the times it had: adding, removing or renaming a file changes them."""
    folders = pa.ipc.open_file(pa.memory_map(str(_cached(str(root)) / "folders.arrow")))
    for number in range(folders.num_record_batches):
        for row in folders.get_batch(number).to_pylist():
            try:
                status = (root / os.fsdecode(row["folder"])).stat()
            except OSError:
                return False
            if (status.st_mtime_ns, status.st_ctime_ns) != (row["mtime_ns"], row["ctime_ns"]):
                return False
    return True


def _build(root: str) -> None:
    digest = hashlib.sha256()
    images = ignored = 0
    name = printable(os.fsencode(without_credentials(root).rstrip("/").rpartition("/")[2]))
    with new_folder(_cached(root)) as folder, counting(f"indexing {name}", unit="images") as show:
        paths = ArrowFile(folder / "paths.arrow", {"path": pa.large_binary()})
        times = {"mtime_ns": pa.int64(), "ctime_ns": pa.int64()}
        folders = ArrowFile(folder / "folders.arrow", {"folder": pa.large_binary(), **times})
        for listed in _walk_url(root) if is_url(root) else _walk(Path(root)):
            folders.append(os.fsencode(listed.relative), listed.mtime_ns, listed.ctime_ns)
            for name in listed.images:
                path = os.fsencode(_join(listed.relative, name))
                digest.update(path + b"\0")
                paths.append(path)
            images, ignored = images + len(listed.images), ignored + listed.others
            show(images)
        paths.close()
        folders.close()
        about = {"images": images, "ignored": ignored, "fingerprint": digest.hexdigest()}
        hashes = {file: sha256_file(folder / file) for file in ("paths.arrow", "folders.arrow")}
        write_json(folder / "about.json", {"root": without_credentials(root), **about, "sha256": hashes})


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


def _walk_url(url: str) -> Iterator[_Listed]:
    """All in one listing, which is how servers do it best, in the order that `_walk` has."""
    found = [path for path in find_below(url) if not any(part.startswith(".") for part in path.split("/"))]
    images = sorted((path for path in found if _is_image(path)), key=_depth_first)
    yield _Listed("", -1, -1, images, len(found) - len(images))


def _depth_first(path: str) -> list[tuple[bool, str]]:
    """Sorts the files of a folder before its folders."""
    *folders, name = path.split("/")
    return [*((True, folder) for folder in folders), (False, name)]


def _is_image(name: str) -> bool:
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES


def _list(folder: Path) -> tuple[list[str], list[str], int]:
    images, folders, others = [], [], 0
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if _is_folder(entry):
                if not name.startswith("."):
                    folders.append(name)
            elif not name.startswith(".") and _is_image(name) and _is_file(entry):
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


def _nearest_parent(path: Path) -> str:
    for parent in path.parents:
        if parent.is_dir():
            beside = [folder.name for folder in parent.glob("*/")] if parent == path.parent else []
            return f"{did_you_mean(path.name, beside)} The nearest folder that does is {parent}."
    return ""
