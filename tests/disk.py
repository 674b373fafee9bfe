"""What a process asks of the disk, in order: whether a power cut between any two requests could leave a half."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Synced:
    """A file or folder was put on the disk, as it was then."""

    inode: int
    size: int
    changed: int  # nanoseconds


@dataclass(frozen=True)
class Renamed:
    """A file or folder took a name."""

    inode: int
    name: Path


@dataclass
class Disk:
    """All syncs and renames since the watch began."""

    asked: list[Synced | Renamed] = field(default_factory=list)

    def problems(self, target: Path) -> list[str]:
        """What a power cut may spoil of a file or folder that has got its name since: nothing, where all went well.

        The bytes of every file, and the names in every folder, must have been asked for before the rename, and must
        not have changed since; the folder above afterwards, or the name itself may be lost.
        """
        moved = [place for place, one in enumerate(self.asked) if isinstance(one, Renamed) and one.name == target]
        if not moved:
            return [f"{target.name} was not renamed"]
        before, after = self.asked[: moved[-1]], self.asked[moved[-1] :]
        found = [
            f"{path.name} was not synced before the rename"
            for path in [target, *target.rglob("*")]
            if not any(_is_of(one, path) for one in before)
        ]
        above = target.parent.stat().st_ino
        if not any(isinstance(one, Synced) and one.inode == above for one in after):
            found.append(f"the folder of {target.name} was not synced after the rename")
        return found


def _is_of(one: Synced | Renamed, path: Path) -> bool:
    """Whether this synced what is there now; a folder's own time changes when it is renamed, on some systems."""
    about = path.stat()
    if not isinstance(one, Synced) or one.inode != about.st_ino:
        return False
    return path.is_dir() or (one.size, one.changed) == (about.st_size, about.st_mtime_ns)


@contextmanager
def watched() -> Iterator[Disk]:
    """Within the block syncs and renames are written down, and done."""
    disk = Disk()
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        about = os.fstat(descriptor)
        disk.asked.append(Synced(about.st_ino, about.st_size, about.st_mtime_ns))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", synced)
        for name in ("rename", "replace"):
            patch.setattr(os, name, _watched_rename(getattr(os, name), disk))
        yield disk


def _watched_rename(move, disk: Disk):  # type: ignore[no-untyped-def]
    def moved(source, target):  # type: ignore[no-untyped-def]
        inode = os.stat(source).st_ino if os.path.exists(source) else 0
        move(source, target)
        disk.asked.append(Renamed(inode, Path(target)))

    return moved
