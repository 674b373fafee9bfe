"""Image files in the order of a list, with the labels that the list gives."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from attar.data.base import Labels, Problem
from attar.data.files import File, printable


class ListedFiles:
    """Image files below a folder, in the order given; a file may stand there several times.

    Takes as much memory as the paths have letters, and 8 bytes an image. No file is looked at before it is read.

    Args:
        root: The folder, an absolute path.
        paths: Paths below it, with forward slashes.
        labels: (n,) class of each, counted from 0; None for images without one class each.
        class_names: Names that `labels` index.
    """

    problems: tuple[Problem, ...] = ()

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        labels: Labels | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        self.root, self._labels, self._class_names = str(root), labels, list(class_names)
        self._paths = pa.array([os.fsencode(path) for path in paths], pa.large_binary())
        digest = hashlib.sha256(b"\0".join(self._paths.to_pylist()))
        digest.update(b"" if labels is None else labels.astype("<i8").tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, row: int) -> str:
        """The row's path below the folder."""
        return printable(self._paths[row].as_py())

    def uri(self, row: int) -> str:
        """The file's absolute path."""
        return self.file(row).uri

    def file(self, row: int) -> File:
        """The image of a row."""
        return File(f"{self.root}/{os.fsdecode(self._paths[row].as_py())}")

    def read(self, row: int) -> bytes:
        """Bytes of the file."""
        return self.file(row).read(name=self.name(row))

    def labels(self) -> tuple[Labels, list[str]] | None:
        """What the list says; None if it gives no class to each image."""
        return None if self._labels is None else (self._labels, self._class_names)
