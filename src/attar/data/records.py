"""Raw pixels in records of equal length, one image each: the binary files of MNIST and CIFAR."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attar.data.base import Labels, Problem
from attar.data.files import File
from attar.errors import DataError
from attar.utils.io import sha256_file


@dataclass(frozen=True)
class RecordFile:
    """A file of a header, then records of equal length.

    Attributes:
        path: Where it is.
        header: Bytes before the first record.
        lead: Bytes of a record before its pixels, such as its label.
        shape: (C, H, W) of its pixels, one byte each.
    """

    path: Path
    header: int
    lead: int
    shape: tuple[int, int, int]

    @property
    def records(self) -> NDArray[np.uint8]:
        """(n, bytes of a record), memory-mapped.

        Raises:
            DataError: If the file is not there, or does not end with a whole record.
        """
        return _mapped(self)


@functools.lru_cache(maxsize=128)
def _mapped(file: RecordFile) -> NDArray[np.uint8]:
    if not file.path.is_file():
        raise DataError(f"{file.path} does not exist. Unpack the archive of the binary version there.")
    length = file.lead + int(np.prod(file.shape))
    size = file.path.stat().st_size - file.header
    if size <= 0 or size % length:
        raise DataError(
            f"{file.path} has {file.path.stat().st_size:,} bytes, which is no header of {file.header} and whole records"
            f" of {length:,}. Unpack it once more."
        )
    return np.memmap(file.path, np.uint8, "r", offset=file.header, shape=(size // length, length))


class RecordSource:
    """The images of several record files, file after file; they are mapped, not read, and opened again in a worker."""

    problems: tuple[Problem, ...] = ()

    def __init__(self, files: Sequence[RecordFile], labels: Labels, class_names: Sequence[str]) -> None:
        self.files, self._labels, self._class_names = tuple(files), labels, list(class_names)
        self._ends = np.cumsum([len(file.records) for file in files])
        self.fingerprint = hashlib.sha256("".join(sha256_file(file.path) for file in files).encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, row: int) -> str:
        """File name and record."""
        file, own = self._find(row)
        return f"{file.path.name}[{own}]"

    def uri(self, row: int) -> str:
        """The file's absolute path and the record."""
        file, own = self._find(row)
        return f"{File(str(file.path.absolute())).uri}#record={own}"

    def read(self, row: int) -> NDArray[np.uint8]:
        """(H, W, 3) pixels; of a grey image three equal channels."""
        file, own = self._find(row)
        pixels = file.records[own, file.lead :].reshape(file.shape).transpose(1, 2, 0)
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))

    def labels(self) -> tuple[Labels, list[str]]:
        """What was read beside the pixels."""
        return self._labels, self._class_names

    def _find(self, row: int) -> tuple[RecordFile, int]:
        number = int(np.searchsorted(self._ends, row, side="right"))
        file = self.files[number]
        return file, row - (int(self._ends[number]) - len(file.records))
