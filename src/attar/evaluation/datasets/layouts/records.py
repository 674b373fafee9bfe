"""The binary files of CIFAR and MNIST. (CIFAR's other archive is made of pickles, which may run code: not read.)"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attar.data.base import Labels
from attar.data.labelled import Labelled
from attar.data.records import RecordFile, RecordSource
from attar.errors import DataError
from attar.evaluation.datasets.layouts.reading import existing, lines_of


@dataclass(frozen=True)
class CifarRecords:
    """CIFAR's binary version: `lead` bytes of labels, the last of them the class, then 3 x 32 x 32 pixels.

    Attributes:
        files: Those of each split.
        lead: 1 for CIFAR-10; 2 for CIFAR-100, whose first byte is the coarse class.
        names: File of class names.
    """

    files: Mapping[str, Sequence[str]]
    lead: int
    names: str

    def read(self, folder: Path, split: str) -> Labelled:
        """Images in the order of the files."""
        files = [RecordFile(folder / name, 0, self.lead, (3, 32, 32)) for name in self.files[split]]
        labels = np.concatenate([file.records[:, self.lead - 1] for file in files]).astype(np.int64)
        return _labelled(files, labels, [line.strip() for line in lines_of(folder / self.names)])


@dataclass(frozen=True)
class MnistRecords:
    """MNIST's four files, as `raw/train-images-idx3-ubyte`, unpacked."""

    def read(self, folder: Path, split: str) -> Labelled:
        """Grey digits; `read` of the source gives them three equal channels."""
        stem = "train" if split == "train" else "t10k"
        images, numbers = (existing(folder / "raw" / f"{stem}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
        with images.open("rb") as file:
            magic, _, height, width = struct.unpack(">4i", file.read(16))
        if magic != 2051 or numbers.read_bytes()[:4] != struct.pack(">i", 2049):
            raise DataError(f"{images} or {numbers.name} is not in IDX format. Unpack the .gz file there.")
        labels = np.fromfile(numbers, np.uint8, offset=8).astype(np.int64)
        return _labelled([RecordFile(images, 16, 0, (1, height, width))], labels, [str(digit) for digit in range(10)])


def _labelled(files: Sequence[RecordFile], labels: Labels, names: Sequence[str]) -> Labelled:
    source = RecordSource(files, labels, names)
    if len(source) != len(labels) or labels.max() >= len(names):
        raise DataError(
            f"{files[0].path.parent}: {len(source):,} images, {len(labels):,} labels up to {labels.max()} and"
            f" {len(names)} class names do not fit each other. Unpack the archive once more."
        )
    return Labelled(source, np.arange(len(labels), dtype=np.int64), labels, tuple(names))
