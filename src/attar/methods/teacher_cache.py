"""What a teacher has said of each view, kept on disk: it is asked once for each of an image's K views."""

from __future__ import annotations

import contextlib
import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.methods.answer_formats import EXACT, AnswerFormat
from attar.types import Batch, KeptRows
from attar.utils.distributed import one_of_each_machine_first
from attar.utils.io import read_json, remove_half_written, storage_errors, write_json
from attar.utils.locks import alone_at

Answers = tuple[Tensor, ...]

_ABOUT, _SUMS = "about.json", "sums.u32"
_SUM = np.dtype(np.uint32)
_THREADS = 4


class TeacherCache:
    """Answers by (image, view), in a file that grows on disk as views are answered, never in memory.

    The teacher is asked about the views of a batch of which nothing is known: where a file is lost or damaged, or
    ranks have no common disk, it is asked again and nothing else happens. What is handed out is what stands in the
    file, the first time too, so that all epochs learn from the same. Beside each answer stands its CRC-32, verified
    when a process first reads it, so that half of one is taken for none. Ranks make their first call together.

    Args:
        folder: Of the files; those of another identity are begun anew.
        num_samples: n, images.
        num_views: K, after which an image's views come again (`ViewOrder.cycle`).
        identity: What answers and their form depend on: teacher, images, views, format.
        answer_format: How they stand in the file.
    """

    def __init__(
        self,
        folder: Path,
        num_samples: int,
        num_views: int,
        identity: Mapping[str, Any],
        answer_format: AnswerFormat = EXACT,
    ) -> None:
        self.folder, self.num_samples, self.num_views = folder, num_samples, num_views
        self.identity = {**identity, "samples": num_samples, "views": num_views}
        self.format = answer_format
        self._files: _Files | None = None

    def __call__(self, batch: Batch, ask: Callable[[Tensor], Answers]) -> Answers:
        """The teacher's answers to a batch: kept ones, and new ones, which are kept.

        Args:
            batch: Whose samples and view ids are looked up.
            ask: Asks the teacher about views (b, 3, H, W); tensors (b, ...) of the same shapes for all batches.

        Raises:
            RunDirectoryError: If the disk takes no more.
        """
        rows = self._rows(batch)
        if self._files is None:
            self._files = self._opened(lambda: _ask_some(ask, batch.views[:1]))
        kept = batch.kept
        if kept is None or not kept.is_known.all():  # the step before this one may have answered what was not known
            kept = self._files.read(rows, pinned=batch.views.is_cuda)
        stored, lacking = kept.stored, np.flatnonzero(~kept.is_known)
        if len(lacking):
            places = lacking[np.sort(np.unique(rows[lacking], return_index=True)[1])]  # each once, as they come
            is_whole = len(places) == len(rows)
            answers = ask(batch.views) if is_whole else _ask_some(ask, batch.views[torch.from_numpy(places)])
            new = self.encoded(answers)
            with storage_errors(self.folder):
                self._files.write(rows[places], new.cpu().numpy())
            if is_whole:
                return self.decoded(new, self._files.shapes)
            number = {row: position for position, row in enumerate(rows[places])}
            stored[lacking] = new.cpu()[[number[row] for row in rows[lacking]]]
        return self.decoded(stored.to(batch.views.device, non_blocking=True), self._files.shapes)

    def fetch(self, batch: Batch) -> Batch:
        """The batch with what is kept of it, for a call that comes later; any thread may read ahead so."""
        if self._files is None:
            return batch
        return replace(batch, kept=self._files.read(self._rows(batch), pinned=torch.cuda.is_available()))

    def encoded(self, answers: Answers) -> Tensor:
        """(b, bytes of a view) uint8."""
        return torch.cat([self.format.encode(tensor.detach()) for tensor in answers], dim=1)

    def decoded(self, stored: Tensor, shapes: Sequence[Sequence[int]]) -> Answers:
        """Answers (b, ...) of these shapes, float32."""
        parts = torch.split(stored, [self.format.size(shape) for shape in shapes], dim=1)
        return tuple(self.format.decode(part, shape) for part, shape in zip(parts, shapes, strict=True))

    def bytes_per_view(self, shapes: Sequence[Sequence[int]]) -> int:
        """What one view takes on disk, with its checksum."""
        return sum(self.format.size(shape) for shape in shapes) + _SUM.itemsize

    def kept_identity(self) -> Mapping[str, Any] | None:
        """What answers that are there depend on, whether or not they are of this identity; None if none are there."""
        identity: Mapping[str, Any] | None = self._about().get("identity")
        return identity

    def num_kept(self) -> int:
        """How many answers are there, of this identity."""
        files = self._known_files()
        return 0 if files is None else int(np.count_nonzero(files.sums.rows))

    def are_kept(self) -> NDArray[np.bool_]:
        """(n * K,) whether the view sample * K + view was answered."""
        files = self._known_files()
        if files is None:
            return np.zeros(self.num_samples * self.num_views, np.bool_)
        return np.asarray(files.sums.rows[:, 0] != 0)

    def kept(self, sample: int, view_id: int) -> Answers | None:
        """The answer to one view, (1, ...) each, on the CPU; None if it is not there. Any rank may call it alone."""
        files = self._known_files()
        if files is None:
            return None
        kept = files.read(np.array([sample * self.num_views + view_id]))
        return self.decoded(kept.stored, files.shapes) if kept.is_known.all() else None

    def _rows(self, batch: Batch) -> NDArray[np.int64]:
        return (batch.samples * self.num_views + batch.view_ids).cpu().numpy()

    def _opened(self, ask_about_one: Callable[[], Answers]) -> _Files:
        """The files; to begin them, the teacher is asked about one view for the shapes of what it says."""
        with one_of_each_machine_first(), alone_at(self.folder / ".lock"):  # or two runs would begin one file
            remove_half_written(self.folder)
            return self._known_files() or self._new_files([list(tensor.shape[1:]) for tensor in ask_about_one()])

    def _about(self) -> dict[str, Any]:
        """What the folder says of its answers; nothing where it is damaged, so that they are begun anew."""
        with contextlib.suppress(OSError, ValueError):
            about = read_json(self.folder / _ABOUT)
            return about if isinstance(about, dict) else {}
        return {}

    def _known_files(self) -> _Files | None:
        """Those that are there, if they are of this identity."""
        about = self._about()
        if about.get("identity") != self.identity or "shapes" not in about:
            return None
        with contextlib.suppress(FileNotFoundError):
            return self._mapped(about["shapes"])
        return None

    def _new_files(self, shapes: list[list[int]]) -> _Files:
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / _ABOUT).unlink(missing_ok=True)
            for name in (self._values, _SUMS):
                (self.folder / name).unlink(missing_ok=True)  # who has opened the old one keeps it as it is
                (self.folder / name).touch()
            files = self._mapped(shapes)
        write_json(self.folder / _ABOUT, {"identity": self.identity, "shapes": shapes})
        return files

    def _mapped(self, shapes: list[list[int]]) -> _Files:
        """Raises FileNotFoundError where one is missing; what lacks of one that is too short is not known."""
        num_rows, width = self._size(shapes)
        values = _mapped(self.folder / self._values, (num_rows, width), np.dtype(np.uint8))
        sums = _mapped(self.folder / _SUMS, (num_rows, 1), _SUM)
        return _Files(values, sums, shapes, np.zeros(num_rows, np.bool_))

    @property
    def _values(self) -> str:
        return f"values.{self.format.suffix}"

    def _size(self, shapes: list[list[int]]) -> tuple[int, int]:
        """(rows, bytes of one)."""
        return self.num_samples * self.num_views, sum(self.format.size(shape) for shape in shapes)


@dataclass(frozen=True)
class _Files:
    """A row of bytes for each view, its tensors one after the other, and the row's CRC-32 or 0.

    Read through maps and written to the files: a new page of a map takes ten times as long as one of a file, and where
    a disk is full a file says so, while a map ends the process.

    Attributes:
        values: (n * K, bytes of a row) uint8.
        sums: (n * K, 1) uint32.
        shapes: Of a row's tensors.
        is_verified: (n * K,) whether this process has seen that row and checksum agree; a byte each.
    """

    values: _Mapped
    sums: _Mapped
    shapes: list[list[int]]
    is_verified: NDArray[np.bool_]

    def read(self, rows: NDArray[np.int64], *, pinned: bool = False) -> KeptRows:
        """What stands in the rows, as far as it is whole.

        Copied by one call without Python's lock, in one thread, and checksums are verified where a row is read for the
        first time: who reads ahead shall not hold up the thread that keeps a GPU busy, nor the loader's workers.
        """
        expected = self.sums.rows[rows, 0]  # before the values: others may be writing
        unverified = ~self.is_verified[rows]
        is_known = expected != 0
        pinned = pinned and bool(is_known.any())
        stored = torch.empty(len(rows), self.values.rows.shape[1], dtype=torch.uint8, pin_memory=pinned)
        if is_known.any():
            np.take(self.values.rows, rows, axis=0, out=stored.numpy(), mode="clip")  # any other mode copies once more
        for place in np.flatnonzero(is_known & unverified):
            is_known[place] = self.is_verified[rows[place]] = _sum_of(stored[place].numpy()) == expected[place]
        return KeptRows(stored, is_known)

    def write(self, rows: NDArray[np.int64], stored: NDArray[np.uint8]) -> None:
        """Rows of which nothing is known; checksums last, so that half a row is none."""
        with ThreadPoolExecutor(_THREADS) as threads:  # sums of large rows are taken side by side
            sums = np.array(list(threads.map(_sum_of, stored)), _SUM)
        self.values.write(rows, stored)
        self.sums.write(rows, sums[:, None])


@dataclass(frozen=True)
class _Mapped:
    """A file of equal rows, read through a map.

    Attributes:
        path: Of the file.
        inode: (device, number) of the file that is mapped: another run may have begun another one of that name.
        rows: All of them.
    """

    path: Path
    inode: tuple[int, int]
    rows: NDArray[Any]

    def write(self, numbers: NDArray[np.int64], rows: NDArray[Any]) -> None:
        """Write rows, unless the file is lost, or another one has its name: then they are let go."""
        with contextlib.suppress(FileNotFoundError), open(self.path, "r+b") as file:
            if _inode(file) == self.inode:
                for number, row in zip(numbers.tolist(), rows, strict=True):
                    file.seek(number * row.nbytes)
                    file.write(row.data)


def _mapped(path: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> _Mapped:
    """A file, as long as it shall be; new bytes are 0, and take no room yet where the file system has sparse files."""
    with open(path, "r+b") as file:
        size = math.prod(shape) * dtype.itemsize
        if os.fstat(file.fileno()).st_size < size:
            file.truncate(size)
        return _Mapped(path, _inode(file), np.memmap(file, dtype, "r", shape=shape))


def _inode(file: IO[bytes]) -> tuple[int, int]:
    about = os.fstat(file.fileno())
    return about.st_dev, about.st_ino


def _ask_some(ask: Callable[[Tensor], Answers], views: Tensor) -> Answers:
    """Answers to a part of a batch; a compiled teacher would be translated once more for each number of views."""
    with torch.compiler.set_stance("force_eager"):
        return ask(views)


def _sum_of(row: NDArray[np.uint8]) -> int:
    """Checksum of a row; never 0, which stands for a row that nobody has written."""
    return zlib.crc32(row.data) or 1
