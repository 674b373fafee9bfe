"""What a teacher has said of each view, kept on disk: it is asked once for each of an image's K views."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.types import Batch
from attar.utils.io import read_json, storage_errors, write_json

Answers = tuple[Tensor, ...]

_ABOUT, _VALUES, _KNOWN = "about.json", "values.f32", "known.u8"


class TeacherCache:
    """Float32 answers by (image, view), in a file that grows on disk as views are answered, never in memory.

    A batch is read where all of its views are known, else the teacher is asked for the whole batch and its answers are
    kept: where a file is lost, or ranks have no common disk, the teacher is asked again and nothing else happens. An
    answer is marked as known after it is written.

    Args:
        folder: Of the files; those of another identity are begun anew.
        num_samples: n, images.
        num_views: K, after which an image's views come again (`ViewOrder.cycle`).
        identity: What answers depend on: teacher, images, views.
    """

    def __init__(self, folder: Path, num_samples: int, num_views: int, identity: Mapping[str, Any]) -> None:
        self.folder, self.num_samples, self.num_views = folder, num_samples, num_views
        self.identity = {**identity, "samples": num_samples, "views": num_views}
        self._files: _Files | None = None

    def __call__(self, batch: Batch, ask: Callable[[], Answers]) -> Answers:
        """The teacher's answers to a batch: kept ones, or new ones, which are kept.

        Args:
            batch: Whose samples and view ids are looked up.
            ask: Asks the teacher; tensors (B, ...) of the same shapes for all batches.
        """
        rows = (batch.samples * self.num_views + batch.view_ids).cpu().numpy()
        if self._files is None:
            self._files = self._known_files()
        if self._files is not None and self._files.known[rows].all():
            return self._files.read(rows, batch.views.device)
        answers = ask()
        if self._files is None:
            self._files = self._new_files([list(tensor.shape[1:]) for tensor in answers])
        self._files.write(rows, answers)
        return answers

    def _known_files(self) -> _Files | None:
        """Those that are there, if they are of this identity."""
        about = self.folder / _ABOUT
        found = read_json(about) if about.is_file() else None
        return self._mapped(found["shapes"], "r+") if found and found["identity"] == self.identity else None

    def _new_files(self, shapes: list[list[int]]) -> _Files:
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / _ABOUT).unlink(missing_ok=True)
            files = self._mapped(shapes, "w+")  # takes no room yet, where the file system has sparse files
        write_json(self.folder / _ABOUT, {"identity": self.identity, "shapes": shapes})
        return files

    def _mapped(self, shapes: list[list[int]], mode: Literal["r+", "w+"]) -> _Files:
        rows, width = self.num_samples * self.num_views, sum(math.prod(shape) for shape in shapes)
        values = np.memmap(self.folder / _VALUES, np.float32, mode, shape=(rows, width))
        return _Files(values, np.memmap(self.folder / _KNOWN, np.uint8, mode, shape=(rows,)), shapes)


@dataclass(frozen=True)
class _Files:
    """Mapped files: a row of values for each view, its tensors one after the other, and whether it is known."""

    values: NDArray[np.float32]
    known: NDArray[np.uint8]
    shapes: list[list[int]]

    def read(self, rows: NDArray[np.int64], device: torch.device) -> Answers:
        kept = torch.from_numpy(np.array(self.values[rows])).to(device)
        parts = torch.split(kept, [math.prod(shape) for shape in self.shapes], dim=1)
        return tuple(part.reshape(len(rows), *shape) for part, shape in zip(parts, self.shapes, strict=True))

    def write(self, rows: NDArray[np.int64], answers: Answers) -> None:
        self.values[rows] = torch.cat([tensor.detach().float().flatten(1) for tensor in answers], dim=1).cpu().numpy()
        self.known[rows] = 1
