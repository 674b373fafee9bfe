"""PatchCamelyon's HDF5 files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attar.data.base import Labels, Problem
from attar.data.files import File
from attar.data.labelled import Labelled
from attar.errors import DataError
from attar.evaluation.datasets.layouts.reading import existing


@dataclass(frozen=True)
class PcamArrays:
    """`camelyonpatch_level_2_split_SPLIT_x.h5` and `…_y.h5`, unpacked; needs h5py."""

    def read(self, folder: Path, split: str) -> Labelled:
        """Patches in the order of the file; class 1 is tumour."""
        stem = f"camelyonpatch_level_2_split_{'valid' if split == 'val' else split}"
        path = existing(folder / f"{stem}_y.h5")
        with _open(path) as file:
            labels = np.asarray(file["y"]).reshape(-1).astype(np.int64)
        source = Hdf5Images(existing(folder / f"{stem}_x.h5"), "x", labels)
        return Labelled(source, np.arange(len(source), dtype=np.int64), labels, ("0", "1"))


class Hdf5Images:
    """An array (n, H, W, 3) of an HDF5 file; it is opened for each image, so that a worker may read too."""

    problems: tuple[Problem, ...] = ()

    def __init__(self, path: Path, key: str, labels: Labels) -> None:
        self.path, self.key, self._labels = path, key, labels
        with _open(path) as file:
            if len(file[key]) != len(labels):
                raise DataError(
                    f"{path} has {len(file[key]):,} images for {len(labels):,} labels. Unpack it once more."
                )
        about = f"{path.name}:{path.stat().st_size}"
        self.fingerprint = hashlib.sha256(about.encode() + labels.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._labels)

    def name(self, row: int) -> str:
        """File name and row."""
        return f"{self.path.name}[{row}]"

    def uri(self, row: int) -> str:
        """The file's absolute path, the array in it and the row."""
        return f"{File(str(self.path.absolute())).uri}#{self.key}/row={row}"

    def read(self, row: int) -> NDArray[np.uint8]:
        """(H, W, 3) pixels."""
        with _open(self.path) as file:
            return np.asarray(file[self.key][row], dtype=np.uint8)

    def labels(self) -> tuple[Labels, list[str]]:
        """What lies in the file of labels."""
        return self._labels, ["0", "1"]


def _open(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise DataError(
            f"{path} needs the package h5py, which is not installed: pip install h5py."
            " Or take the WebDataset mirror wds_vtab-pcam, which needs nothing."
        ) from None
    return h5py.File(path, "r")
