"""What a teacher has said of each view, kept on disk: it is asked once for each of an image's K views."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.types import Batch
from attar.utils.io import read_json, storage_errors, write_json

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
        self._values: np.memmap[Any, Any] | None = None
        self._known: np.memmap[Any, Any] | None = None
        self._shape: tuple[int, ...] = ()

    def __call__(self, batch: Batch, ask: Callable[[], Tensor]) -> Tensor:
        """The teacher's answers (B, ...) to a batch: kept ones, or new ones, which are kept.

        Args:
            batch: Whose samples and view ids are looked up.
            ask: Asks the teacher; its answers are of one shape for all batches.
        """
        rows = (batch.samples * self.num_views + batch.view_ids).cpu().numpy()
        if self._values is None:
            self._open()
        if self._values is not None and self._known is not None and self._known[rows].all():
            kept = torch.from_numpy(np.array(self._values[rows]))
            return kept.view(len(rows), *self._shape).to(batch.views.device)
        answers = ask()
        self._keep(rows, answers)
        return answers

    def _keep(self, rows: np.ndarray[Any, Any], answers: Tensor) -> None:
        if self._values is None:
            self._make(tuple(answers.shape[1:]))
        assert self._values is not None
        assert self._known is not None
        assert tuple(answers.shape[1:]) == self._shape, f"answers of {tuple(answers.shape[1:])} after {self._shape}"
        self._values[rows] = answers.detach().float().cpu().numpy().reshape(len(rows), -1)
        self._known[rows] = 1

    def _open(self) -> None:
        """The files that are there, if they are of this identity."""
        about = self.folder / _ABOUT
        if about.is_file():
            found = read_json(about)
            if found["identity"] == self.identity:
                self._map(tuple(found["shape"]), mode="r+")

    def _make(self, shape: tuple[int, ...]) -> None:
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._map(shape, mode="w+")  # sparse where the file system can: nothing is written yet
        write_json(self.folder / _ABOUT, {"identity": self.identity, "shape": shape})

    def _map(self, shape: tuple[int, ...], *, mode: str) -> None:
        rows, width = self.num_samples * self.num_views, int(np.prod(shape))
        self._shape = shape
        self._values = np.memmap(self.folder / _VALUES, np.float32, mode, shape=(rows, width))  # type: ignore[call-overload]
        self._known = np.memmap(self.folder / _KNOWN, np.uint8, mode, shape=(rows,))  # type: ignore[call-overload]
