"""Arrays that training draws rows from: `.npy` files one behind the other, mapped when asked for and never held.

What a folder's files are made by stands in `made_by.json` before the first of them, so that those of a run that was
stopped are not mixed with others. When all are there the folder is sealed: `sealed.json` says the same, and the SHA-256
of each file. Who opens it says what they should be made by; another teacher, other images or an edited file are
refused. What no hash can tell (a tokeniser, a library that resizes otherwise) shows when the teacher is asked about a
few of them anew, unless none of these few differs.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from attar.curation.pool import Pool
from attar.curation.sentence_vectors import vectors_name
from attar.errors import DataError, WeightsError
from attar.utils.io import new_file, read_json, remove_half_written, sha256_file, write_json
from attar.utils.progress import track
from attar.utils.run_directory import flat_changes, refuse_changes

_BEGUN, _SEALED = "made_by.json", "sealed.json"
_OPEN = 32  # files of a store that stay mapped
FRESH = 64
"""How many rows are asked about anew (spec dime_fm §6.5)."""
_LEAST_COSINE = 0.999


class MappedRows:
    """Rows of arrays of one width, memory-mapped, by their number in all of them together.

    A file is mapped when a row of it is asked for, and few stay so: a mapped one takes a descriptor, of which a process
    may have 1,024 or fewer, and there may be ten thousand files.

    Args:
        files: One or more `.npy` files of (n_i, E), in order.

    Raises:
        DataError: If one cannot be read, or they do not fit together.
    """

    ndim = 2

    def __init__(self, files: Sequence[Path]) -> None:
        self._parts = [_Part.of(file) for file in files]
        kinds = {(part.dtype, part.shape[1]) for part in self._parts}
        if len(kinds) != 1:
            raise DataError(
                f"files in {files[0].parent} hold rows of different widths or types. Remove the folder and give the"
                " same command again."
            )
        self._ends = np.cumsum([part.shape[0] for part in self._parts])
        self.shape: tuple[int, int] = (int(self._ends[-1]), self._parts[0].shape[1])
        self._mapped = functools.lru_cache(_OPEN)(_Part.mapped)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """(m, E) of m rows, in the order asked for."""
        found = np.empty((len(rows), *self.shape[1:]), self._parts[0].dtype)
        for part, first, here in self._owners(rows):
            found[here] = self._mapped(part)[rows[here] - first]
        return found

    def by_file(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """These rows, those of one file together."""
        return [rows[here] for _, _, here in self._owners(rows)]

    def replaced(self, rows: NDArray[np.int64], values: NDArray[Any]) -> Iterator[Path]:
        """Write other values (m, E) into the files of m rows, each when it is asked for; the files that changed."""
        for part, first, here in self._owners(rows):
            whole = np.array(self._mapped(part))
            whole[rows[here] - first] = values[here]
            write_rows(part.file, whole)
            yield part.file

    def _owners(self, rows: NDArray[np.int64]) -> Iterator[tuple[_Part, int, NDArray[np.bool_]]]:
        """(a file, number of its first row, which of these rows lie in it) of each file that has some."""
        owners = np.searchsorted(self._ends, rows, side="right")
        for owner in np.unique(owners):
            part = self._parts[owner]
            yield part, int(self._ends[owner]) - part.shape[0], owners == owner


@dataclass(frozen=True)
class _Part:
    """Where the rows of a `.npy` file lie in it: to map it again takes a quarter of the time of a first look."""

    file: Path
    dtype: np.dtype[Any]
    shape: tuple[int, int]
    offset: int

    @classmethod
    def of(cls, file: Path) -> Self:
        with _reading(file):
            found = np.load(file, mmap_mode="r", allow_pickle=False)
        if found.ndim != 2 or not found.flags.c_contiguous:
            raise DataError(f"{file} holds an array of shape {found.shape}, not of rows. Remove it.")
        return cls(file, found.dtype, found.shape, found.offset)

    def mapped(self) -> NDArray[Any]:
        with _reading(self.file):
            return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)


def write_pool_vectors(pool: Pool, folder: Path) -> None:
    """The vectors of a pool as `.npy` files, a shard each; those that are there are not done again.

    Raises:
        DataError: If a shard is not what was embedded.
        Interrupted: If a signal came.
    """
    for number in track(range(len(pool.firsts)), "copying vectors", total=len(pool.firsts), unit="shards"):
        file = folder / vectors_name(number)
        if not file.is_file():
            pool.check(number)
            write_rows(file, np.concatenate([block.numpy() for _, block in pool.blocks(shards=[number])]))


def begin(folder: Path, made_by: Mapping[str, Any], what: str, *, copied_from: Path | None = None) -> bool:
    """Whether files of a folder are still to be made; what they are made by is then written down.

    Args:
        folder: Of the store; it may not be there yet.
        made_by: What its files should be made by.
        what: They are called, in the plural.
        copied_from: Folder that they are copied from, if any: a remedy must reach that one too.

    Raises:
        WeightsError: If files that are there were made by something else.
        DataError: If nobody knows what they were made by.
    """
    if (folder / _SEALED).is_file():
        return False
    if (folder / _BEGUN).is_file():
        check_made_by(folder, _read(folder / _BEGUN), made_by, what, copied_from=copied_from)
    elif file := next(folder.glob("*.npy"), None):
        raise DataError(
            f"nobody knows what {file} was made by. Remove {folder} and give the same command again, or give another"
            " --features folder."
        )
    else:
        write_json(folder / _BEGUN, made_by)
    remove_half_written(folder)
    return True


def seal(folder: Path, count: int, unreadable: Sequence[int] = ()) -> None:
    """Write down, once all of a folder's files are there, that they are, and their hashes.

    Args:
        folder: With `.npy` files.
        count: Rows that they should have.
        unreadable: Those that are zero because nobody could be asked about them.

    Raises:
        DataError: If they do not have so many rows, or one is damaged.
        Interrupted: If a signal came.
    """
    files = sorted(folder.glob("*.npy"))
    rows = len(MappedRows(files)) if files else 0
    if rows != count:
        raise DataError(
            f"{folder} holds {rows:,} rows in {len(files):,} files, and should hold {count:,}. Remove it and give the"
            " same command again."
        )
    watched = track(files, "hashing features", total=len(files), unit="files")
    hashes = {file.name: sha256_file(file) for file in watched}
    about = {"made_by": _read(folder / _BEGUN), "sha256": hashes, "unreadable": [int(row) for row in unreadable]}
    write_json(folder / _SEALED, about)


def is_sealed(folder: Path) -> bool:
    """Whether all of a folder's files were made."""
    return (folder / _SEALED).is_file()


def check_made_by(
    folder: Path, before: Mapping[str, Any], made_by: Mapping[str, Any], what: str, *, copied_from: Path | None = None
) -> None:
    """Refuse what was made by something else.

    Args:
        folder: Where it lies.
        before: What it was made by.
        made_by: What it should be made by.
        what: It is called, in the plural.
        copied_from: Folder that it is copied from, if any.

    Raises:
        WeightsError: With what differs.
    """
    refuse_changes(
        flat_changes(dict(before), json.loads(json.dumps(made_by))),
        f"the teacher's {what} in {folder} were made otherwise",
        remedy="Give another --features folder, or the teacher and data of before; or remove"
        f" {_all_of(folder, copied_from)}.",
        error=WeightsError,
    )


def check_sealed(folder: Path, made_by: Mapping[str, Any], what: str, *, copied_from: Path | None = None) -> None:
    """Read a sealed folder, every byte of it, and refuse it if it is not what it should be.

    Args:
        folder: With `.npy` files.
        made_by: What they should be made by.
        what: They are called, in the plural.
        copied_from: Folder that they are copied from, if any.

    Raises:
        WeightsError: If they were made by something else: another teacher, other images or text.
        DataError: If a file is missing, or was changed since.
        Interrupted: If a signal came.
    """
    about = _sealed(folder)
    check_made_by(folder, about["made_by"], made_by, what, copied_from=copied_from)
    hashes = about["sha256"]
    for name, digest in track(hashes.items(), f"checking {what}", total=len(hashes), unit="files"):
        file = folder / name
        if not file.is_file():
            raise DataError(f"{file} is gone. Remove {folder} and give the same command again.")
        with _reading(file):
            found = sha256_file(file)
        if found != digest:
            raise DataError(
                f"{file} was changed since it was made (SHA-256 {found[:12]}..., then {digest[:12]}...)."
                f" Remove {folder} and give the same command again."
            )


def sealed_rows(folder: Path) -> MappedRows:
    """The rows of a folder that was checked."""
    return MappedRows([folder / name for name in _sealed(folder)["sha256"]])


def unreadable_rows(folder: Path) -> NDArray[np.int64]:
    """Numbers of the rows of a sealed folder that are zero because nobody could be asked about them."""
    return np.array(_sealed(folder)["unreadable"], np.int64)


def replace_rows(folder: Path, places: NDArray[np.int64], values: NDArray[Any]) -> None:
    """Write values (m, E) into m rows of a sealed folder that were unreadable.

    If it is stopped, the folder is to be sealed anew.
    """
    about, rows = _sealed(folder), sealed_rows(folder)
    write_json(folder / _BEGUN, about["made_by"])
    (folder / _SEALED).unlink()
    changed = {file.name: sha256_file(file) for file in rows.replaced(places, values)}
    left = np.setdiff1d(about["unreadable"], places).tolist()
    write_json(folder / _SEALED, about | {"sha256": about["sha256"] | changed, "unreadable": left})


def write_rows(file: Path, rows: NDArray[Any]) -> None:
    """One `.npy` file, whole or not at all."""
    with new_file(file) as temporary, temporary.open("wb") as stream:
        np.save(stream, rows)


def check_fresh(
    stored: Tensor,
    fresh: Tensor,
    name: Callable[[int], str],
    what: str,
    folder: Path,
    *,
    copied_from: Path | None = None,
) -> None:
    """Refuse stored vectors that the teacher would not give today.

    Args:
        stored: (m, E).
        fresh: (m, E), of the same images or sentences, just made.
        name: Of one of them, for the message.
        what: They are called, in the plural.
        folder: Where they are stored.
        copied_from: Folder that they are copied from, if any.

    Raises:
        WeightsError: If a cosine is below 0.999.
    """
    if stored.shape != fresh.shape:
        raise WeightsError(
            f"the teacher's {what} in {folder} are {stored.shape[1]} wide, this teacher gives {fresh.shape[1]}."
            " Give another --features folder, or the teacher of before."
        )
    cosines = F.cosine_similarity(stored.float(), fresh.float().cpu(), dim=1)
    worst = int(cosines.argmin())
    if not cosines[worst] >= _LEAST_COSINE:
        raise WeightsError(
            f"the teacher's {what} in {folder} are not what it says today: {name(worst)} has a cosine of"
            f" {cosines[worst]:.3f} to its stored vector, {_LEAST_COSINE} is the least. The store was made by another"
            f" teacher, tokeniser or way to resize. Remove {_all_of(folder, copied_from)}, or give another --features"
            " folder."
        )


def check_tokens(stored: NDArray[Any], fresh: NDArray[Any], texts: Sequence[str], folder: Path) -> None:
    """Refuse stored token numbers that the tokeniser would not give today.

    Args:
        stored: (m, L).
        fresh: (m, L), of the same texts, just made.
        texts: m, for the message.
        folder: Where they are stored.

    Raises:
        WeightsError: If one differs.
    """
    alike = stored.shape == fresh.shape and (stored == fresh).all(axis=1)
    if not np.all(alike):
        raise WeightsError(
            f"the tokens in {folder} are not those of the teacher's tokeniser today, such as of"
            f" '{texts[int(np.argmin(alike))]}'. Remove {folder} and give the same command again, or install the"
            " tokeniser of before."
        )


def _all_of(folder: Path, copied_from: Path | None) -> str:
    """What must go, so that nothing of it comes back."""
    return f"{folder}" if copied_from is None else f"{folder} and {copied_from}"


def _sealed(folder: Path) -> dict[str, Any]:
    """What the files were made by, the hash of each, and which rows nobody could be asked about."""
    about = _read(folder / _SEALED)
    kinds = {"made_by": dict, "sha256": dict, "unreadable": list}
    if not all(isinstance(about.get(key), kind) for key, kind in kinds.items()) or not about["sha256"]:
        raise _damaged(folder / _SEALED, "it names no files, or not what is unreadable")
    return about


def _read(file: Path) -> dict[str, Any]:
    with _reading(file):
        found = read_json(file)
    if not isinstance(found, dict):
        raise _damaged(file, "it is no object")
    return found


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Tell what is wrong with a file from what is wrong with the machine, such as too many open files."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror or error}. It may well be whole, so keep it: mend that"
            " (ulimit -n is how many files may be open) and give the same command again."
        ) from None
    except (ValueError, EOFError) as error:
        raise _damaged(file, str(error)) from None


def _damaged(file: Path, reason: str) -> DataError:
    return DataError(f"{file} is damaged ({reason}). Remove {file.parent} and give the same command again.")
