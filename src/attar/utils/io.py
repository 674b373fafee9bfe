"""Files that are either whole or absent: write to a temporary name, sync, rename, sync the folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir
from safetensors import SafetensorError

from attar.errors import DamagedFileError, RunDirectoryError, first_line

_CHUNK = 1 << 20
_SUFFIX = ".part"  # of what is being written: a name that nobody else gives, as what has it is removed
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.part")
_ATTEMPTS = 50  # to be the one who renames, when several processes make the same folder
_given_by: ContextVar[tuple[tuple[Path, str], ...]] = ContextVar("given_by", default=())
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)  # None: raised by a library that tells no number


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """Hex SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        RunDirectoryError: If the folder cannot be written or the disk is full.
    """
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Write a temporary file, then put it at `path` in one rename; what stood there goes.

    If the block raises, nothing at `path` has changed.

    Raises:
        RunDirectoryError: If the folder cannot be written or the disk is full.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            os.chmod(temporary, 0o666 & ~_umask())
            sync_file(temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def remove_half_written(folder: Path, *names: str, older_than_s: float = 0.0) -> None:
    """Remove what killed writers have left in a folder, where nobody else may be writing.

    Args:
        folder: Where `new_file` and `new_folder` wrote; what lies deeper stays.
        names: Patterns of the folders that were written there, such as `step-*`. Hidden folders of others stay.
        older_than_s: Age from which on it goes, where others may be writing after all.
    """
    files = (path for path in folder.glob(".*") if path.is_file() and _TEMPORARY.fullmatch(path.name))
    folders = (path for name in names for path in folder.glob(f".{name}.*") if path.is_dir())
    for path in (*files, *folders):
        with contextlib.suppress(OSError):  # another has just removed it
            # without an age the clock is not asked: that of a file server may be ahead of this machine's
            if not older_than_s or time.time() - path.stat().st_mtime >= older_than_s:
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder whose name says that it is whole: it loses the name first, so that no half ever has it.

    A kill on the way leaves a hidden sibling, as a writer's does. What cannot be removed stays, without a word.
    """
    aside = path.with_name(f".{path.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, keys in the given order; NaN becomes null."""
    write_text(path, json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: If it cannot be read.
        DamagedFileError: If it holds no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(
            f"{path} is damaged: it holds no JSON ({first_line(error)}). Restore it, or have it made anew."
        ) from None


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append one JSON object to a file of lines, and sync it; a line that a killed writer left half is ended first."""
    with storage_errors(path), path.open("ab+") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            file.write(b"\n")
        file.write((json.dumps(_plain(dict(line))) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON objects of a file of lines; what a killed writer left half is passed over, a missing file is empty."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            line = json.loads(text)
            if isinstance(line, dict):
                found.append(line)
    return found


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a fresh folder, then put it at `target` in one rename; what stood there goes.

    The block gets a temporary sibling. If it raises, nothing at `target` has changed.
    """
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            os.chmod(temporary, 0o777 & ~_umask())
            yield temporary
            for path in sorted(temporary.rglob("*")):
                if path.is_file():
                    os.chmod(path, 0o666 & ~_umask())  # some writers make private files
                    sync_file(path)
                elif path.is_dir():
                    sync_folder(path)
            sync_folder(temporary)
            _put_in_place(temporary, target)
            sync_folder(target.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _put_in_place(folder: Path, target: Path) -> None:
    """Rename `folder` to `target` and remove what stood there; other processes may be doing the same."""
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        for attempt in range(_ATTEMPTS):
            replaced = aside / str(attempt)
            with contextlib.suppress(FileNotFoundError):
                os.rename(target, replaced)
            try:
                os.rename(folder, target)
                return
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and attempt < _ATTEMPTS - 1:
                    continue  # another process was quicker
                if replaced.exists():
                    os.rename(replaced, target)
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Ask the system to put a file's bytes on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Ask the system to put a folder's entries on the disk (not possible on Windows)."""
    if os.name == "posix":
        sync_file(path)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors about a place to write into one clear sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in _NO_ROOM:
            remedy = "Free some space, then give the same command again."
        elif path.is_relative_to(cache_dir()):
            remedy = "Set ATTAR_CACHE to a folder you may write."
        else:
            flag = next((flag for place, flag in _given_by.get() if path.is_relative_to(place)), "--out")
            remedy = f"Choose a folder you may write with {flag}."
        reason = getattr(error, "strerror", None) or str(error)
        raise RunDirectoryError(f"cannot write {path}: {reason}. {remedy}") from None


@contextlib.contextmanager
def given_by(flag: str, place: Path) -> Iterator[None]:
    """Within the block errors about writing to a place, or below it, name the flag that it was given by."""
    token = _given_by.set(((place, flag), *_given_by.get()))
    try:
        yield
    finally:
        _given_by.reset(token)


def cache_dir() -> Path:
    """Folder for things that can be made again: `$ATTAR_CACHE`, else the user's cache directory."""
    return Path(os.environ.get("ATTAR_CACHE") or user_cache_dir("attar"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
