"""Files on this machine or behind a URL (fsspec), and what a user's word names: a file, a brace pattern, a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from attar.errors import AttarError, DataError, DecodeError, meant_beside

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
SHARD_SUFFIXES = (".tar", ".parquet")
_COMPRESSED = (".tgz", *(f".tar.{ending}" for ending in ("gz", "bz2", "xz", "zst", "lz4")))
_SPLITS = ("train", "val", "test")
_BUGS = (AssertionError, AttributeError, IndexError, KeyError, NameError, TypeError)
"""Ours, from the block that reads: they keep their names."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MOST_FILES = 100_000  # that one brace pattern may name


@dataclass(frozen=True)
class File:
    """A file by its absolute path or its URL. Credentials in a URL are used, and not shown."""

    address: str

    def __str__(self) -> str:
        return without_credentials(self.address)

    @property
    def name(self) -> str:
        """The last part of the address, as text that can be printed."""
        return printable(os.fsencode(str(self).rpartition("/")[2]))

    @property
    def uri(self) -> str:
        """The whole address, as text that can be printed."""
        return printable(os.fsencode(str(self)))

    def stamp(self) -> dict[str, int | str]:
        """What is another when the file is another: its size, and its time or the version that its server tells.

        Raises:
            DataError: If there is no such file, or it cannot be reached.
        """
        with _in_words(str(self), DataError):
            if not is_url(self.address):
                status = os.stat(self.address)
                return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
            system, path = _connect(self.address)
            about = system.info(path)
            version = f"{system.ukey(path)} {about.get('ETag', '')}"  # for https, ukey is the address alone
            return {"bytes": int(about["size"]), "version": version}

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The file, to seek and read in.

        Raises:
            DataError: If it cannot be read.
        """
        with _in_words(str(self), DataError), contextlib.ExitStack() as stack:
            if is_url(self.address):
                system, path = _connect(self.address)
                yield stack.enter_context(system.open(path, "rb"))
            else:
                yield stack.enter_context(Path(self.address).open("rb"))

    def read(self, start: int = 0, end: int | None = None, *, name: str) -> bytes:
        """The bytes from `start` to before `end`. Nothing stays open or connected, so a forked worker may ask too.

        Raises:
            DecodeError: If they cannot be read, or there are fewer; its message begins with `name`.
        """
        with _in_words(name, DecodeError):
            if is_url(self.address):
                system, path = _connect(self.address)
                data = bytes(system.cat_file(path, start or None, end))
            else:
                with Path(self.address).open("rb") as file:
                    file.seek(start)
                    data = file.read() if end is None else file.read(end - start)
        if end is not None and len(data) < end - start:
            raise DecodeError(f"{name}: cut short, {len(data)} bytes in place of {end - start}.")
        return data


def find_files(place: str) -> list[File] | None:
    """The files that a place names: one, those of a pattern such as x-{000..012}.tar, or the shards in a folder.

    None stands for a folder of images, which may not exist.

    Raises:
        DataError: If it cannot be looked at, or names several splits or files of several kinds.
    """
    if "{" in place and (is_url(place) or not local_path(place).exists()):
        files = [File(one if is_url(one) else str(local_path(one))) for one in expand_braces(place)]
    elif is_url(place):
        files = [File(place)] if _suffix(without_credentials(place)) else _shards(place, _list_url(place))
    else:
        path = local_path(place)
        files = _shards(str(path), _list_folder(path)) if path.is_dir() else _one_file(path)
    if len({_suffix(file.name) for file in files}) > 1:
        raise DataError(f"{without_credentials(place)} names files of several kinds. Give .tar or .parquet files only.")
    return files or None


def is_url(place: str) -> bool:
    """Whether a place is an address for fsspec, such as s3://bucket/folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.\-]*(://|::)", place) is not None


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


def expand_braces(pattern: str) -> list[str]:
    """`x-{00..02}` and `x-{a,b}` as the names they stand for, in order, leading zeros kept.

    Raises:
        DataError: If braces hold something else, or stand for too many names.

    Example:
        >>> expand_braces("{a,b}-{09..11}.tar")
        ['a-09.tar', 'a-10.tar', 'a-11.tar', 'b-09.tar', 'b-10.tar', 'b-11.tar']
    """
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1], re.ASCII)
    if span is None and "," not in match[1]:
        raise DataError(f"'{without_credentials(pattern)}': {match[0]} must be a span {{000..012}} or a list {{a,b}}.")
    if span is not None and not 0 <= int(span[2]) - int(span[1]) < _MOST_FILES:
        raise DataError(f"'{without_credentials(pattern)}': {match[0]} must count up, to {_MOST_FILES:,} at most.")
    words = match[1].split(",") if span is None else _count(span[1], span[2])
    rests = expand_braces(pattern[match.end() :])
    if len(words) * len(rests) > _MOST_FILES:
        raise DataError(f"'{without_credentials(pattern)}' names more than {_MOST_FILES:,} files.")
    return [pattern[: match.start()] + word + rest for word in words for rest in rests]


def without_credentials(text: str) -> str:
    """Text whose URLs have lost user, password and signature."""
    hidden = re.compile(r"(?<=://)[^/@]*@|[?#].*")
    return re.sub(r"\w[\w+.\-]*://[^\s'\"]+", lambda url: hidden.sub("", url[0]), text)


def printable(name: bytes) -> str:
    """A file's name for messages: line breaks, control characters and bytes that are no text become escapes."""
    text = os.fsdecode(name)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def find_below(url: str) -> list[str]:
    """Paths of all files below a URL, relative to it.

    Raises:
        DataError: If it cannot be listed.
    """
    with _in_words(without_credentials(url), DataError):
        system, path = _connect(url)
        root = path.rstrip("/") + "/"
        return [found.removeprefix(root) for found in system.find(path) if found.startswith(root)]


def _count(first: str, last: str) -> list[str]:
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]


def _one_file(path: Path) -> list[File]:
    if _suffix(path.name):
        return [File(str(path))]
    if path.exists():
        raise DataError(f"{path} is a file. Give a folder of images, .tar or .parquet files, or playground:SEED.")
    return []


def _suffix(name: str) -> str:
    """`.tar` or `.parquet`, also for a tar that is compressed; else nothing."""
    name = name.lower()
    return ".tar" if name.endswith(_COMPRESSED) else next((end for end in SHARD_SUFFIXES if name.endswith(end)), "")


def _list_folder(folder: Path) -> Iterator[tuple[str, bool]]:
    try:
        entries = os.scandir(folder)
    except OSError:  # the index of images will say what is wrong
        return
    with entries:
        for entry in entries:
            yield entry.name, os.path.isdir(entry.path)


def _list_url(url: str) -> Iterator[tuple[str, bool]]:
    with _in_words(without_credentials(url), DataError):
        system, path = _connect(url)
        for found in system.ls(path, detail=True):
            yield found["name"].rstrip("/").rpartition("/")[2], found["type"] == "directory"


def _shards(folder: str, entries: Iterable[tuple[str, bool]]) -> list[File]:
    """The sorted shards of a folder; none where images or folders lie beside them."""
    shards = []
    for name, is_folder in entries:
        if name.startswith("."):
            continue
        if is_folder or os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
            return []
        if _suffix(name):
            shards.append(name)
    splits = [split for split in _SPLITS if any(name.lower().startswith(split) for name in shards)]
    if len(splits) > 1:
        raise DataError(
            f"{without_credentials(folder)} holds the shards of several splits ({', '.join(splits)})."
            f" Name one, such as {splits[0]}-{{000..012}}{_suffix(shards[0])}."
        )
    return [File(f"{folder.rstrip('/')}/{name}") for name in sorted(shards)]


def _connect(url: str) -> tuple[Any, str]:
    """(file system, path in it); made anew in each process, since a connection does not survive a fork."""
    system, path = fsspec.url_to_fs(url)
    return system, str(path)


@contextlib.contextmanager
def _in_words(what: str, kind: type[DataError]) -> Iterator[None]:
    """Whatever the package of a protocol raises, as an error of ours that shows no credentials."""
    try:
        yield
    except (AttarError, *_BUGS):
        raise
    except ImportError as error:
        raise DataError(f"{what} needs a package that is not installed: {error}.") from None
    except Exception as error:  # each protocol's package has errors of its own
        if getattr(error, "errno", None) in _NO_ROOM:  # of what is written meanwhile, not of what is read
            raise
        if isinstance(error, FileNotFoundError) and kind is DataError:
            rule = "does not exist or cannot be reached" if is_url(what) else "does not exist"
            meant = "" if is_url(what) else meant_beside(Path(what).expanduser())
            raise DataError(f"{what} {rule}.{meant} Check its name.") from None
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise kind(f"{what}: cannot be read ({without_credentials(reason)}).") from None
