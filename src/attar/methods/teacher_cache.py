"""What a teacher has said of each view, kept on disk: it is asked once for each of an image's K views."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.types import Batch
from attar.utils.distributed import one_of_each_machine_first
from attar.utils.io import read_json, storage_errors, write_json
from attar.utils.locks import alone_at

Answers = tuple[Tensor, ...]

_ABOUT, _VALUES, _SUMS = "about.json", "values.f32", "sums.u32"


class TeacherCache:
    """Float32 answers by (image, view), in a file that grows on disk as views are answered, never in memory.

    A batch is read where all of its views are known, else the teacher is asked for the whole batch and its answers are
    kept: where a file is lost or damaged, or ranks have no common disk, the teacher is asked again and nothing else
    happens. Beside each answer stands its CRC-32, so that half of one is taken for none. Ranks call together.

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
        if self._files is not None and (kept := self._files.read(rows, batch.views.device)) is not None:
            return kept
        answers = ask()
        if self._files is None:  # ranks are here together, and know the shapes by now
            with one_of_each_machine_first(), alone_at(self.folder / ".lock"):  # or two runs would begin one file
                shapes = [list(tensor.shape[1:]) for tensor in answers]
                self._files = self._known_files(shapes) or self._new_files(shapes)
        self._files.write(rows, answers)
        return answers

    def kept_identity(self) -> Mapping[str, Any] | None:
        """What answers that are there depend on, whether or not they are of this identity; None if none are there."""
        identity: Mapping[str, Any] | None = self._about().get("identity")
        return identity

    def num_kept(self) -> int:
        """How many answers are there, of this identity."""
        files = self._known_files()
        return 0 if files is None else int(np.count_nonzero(files.sums))

    def kept(self, sample: int, view_id: int) -> Answers | None:
        """The answer to one view, (1, ...) each, on the CPU; None if it is not there. Any rank may call it alone."""
        files = self._known_files()
        row = np.array([sample * self.num_views + view_id])
        return None if files is None else files.read(row, torch.device("cpu"))

    def _about(self) -> dict[str, Any]:
        """What the folder says of its answers; nothing where it is damaged, so that they are begun anew."""
        with contextlib.suppress(OSError, ValueError):
            about = read_json(self.folder / _ABOUT)
            return about if isinstance(about, dict) else {}
        return {}

    def _known_files(self, shapes: list[list[int]] | None = None) -> _Files | None:
        """Those that are there, if they are of this identity, and of these shapes where they are known."""
        about = self._about()
        wanted = about.get("shapes", []) if shapes is None else shapes
        if about != {"identity": self.identity, "shapes": wanted}:
            return None
        with contextlib.suppress(FileNotFoundError):
            return self._mapped(wanted, "r+")
        return None

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
        return _Files(values, np.memmap(self.folder / _SUMS, np.uint32, mode, shape=(rows,)), shapes)


@dataclass(frozen=True)
class _Files:
    """Mapped files: a row of values for each view, its tensors one after the other, and the row's CRC-32 or 0."""

    values: NDArray[np.float32]
    sums: NDArray[np.uint32]
    shapes: list[list[int]]

    def read(self, rows: NDArray[np.int64], device: torch.device) -> Answers | None:
        """What stands there; None if a view is unknown."""
        expected = self.sums[rows]
        if not expected.all():
            return None
        values = np.array(self.values[rows])
        if (_sums_of(values) != expected).any():
            return None
        kept = torch.from_numpy(values).to(device)
        parts = torch.split(kept, [math.prod(shape) for shape in self.shapes], dim=1)
        return tuple(part.reshape(len(rows), *shape) for part, shape in zip(parts, self.shapes, strict=True))

    def write(self, rows: NDArray[np.int64], answers: Answers) -> None:
        values = torch.cat([tensor.detach().float().flatten(1) for tensor in answers], dim=1).cpu().numpy()
        self.values[rows], self.sums[rows] = values, _sums_of(values)


def _sums_of(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """(n,) checksums of rows; never 0, which stands for a row that nobody has written."""
    return np.array([zlib.crc32(row.tobytes()) or 1 for row in values], dtype=np.uint32)
