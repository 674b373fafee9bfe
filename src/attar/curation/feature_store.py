"""Arrays that training draws rows from: `.npy` files one behind the other, mapped and never held, and never wrong.

A folder is sealed when all of its files are there: `sealed.json` says what they were made by and the SHA-256 of each.
Who opens it says what they should be made by; another teacher, other images or an edited file are refused. What no
hash can tell (a tokeniser, a library that resizes otherwise) shows when the teacher is asked about a few of them anew.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from attar.curation.pool import Pool
from attar.curation.sentence_vectors import vectors_name
from attar.errors import DataError, WeightsError
from attar.utils.io import new_file, read_json, sha256_file, write_json
from attar.utils.run_directory import flat_changes

_SEALED = "sealed.json"
FRESH = 64
"""How many rows are asked about anew (spec dime_fm §6.5)."""
_LEAST_COSINE = 0.999


class MappedRows:
    """Rows of arrays of one width, memory-mapped, by their number in all of them together.

    Args:
        files: `.npy` files of (n_i, E), in order.

    Raises:
        DataError: If one cannot be read, or they do not fit together.
    """

    ndim = 2

    def __init__(self, files: Sequence[Path]) -> None:
        self._parts = [_mapped(file) for file in files]
        widths = {part.shape[1:] for part in self._parts}
        if len(widths) != 1:
            raise DataError(f"files in {files[0].parent} hold rows of different widths. Remove the folder.")
        self._ends = list(itertools.accumulate(len(part) for part in self._parts))
        self.shape: tuple[int, int] = (self._ends[-1], *widths.pop())

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """(m, E) of m rows, in the order asked for."""
        found = np.empty((len(rows), *self.shape[1:]), self._parts[0].dtype)
        owners = np.searchsorted(self._ends, rows, side="right")
        for owner in np.unique(owners):
            here = owners == owner
            first = self._ends[owner] - len(self._parts[owner])
            found[here] = self._parts[owner][rows[here] - first]
        return found


def write_pool_vectors(pool: Pool, folder: Path) -> None:
    """The vectors of a pool as `.npy` files, a shard each; those that are there are not done again."""
    for number in range(len(pool.firsts)):
        file = folder / vectors_name(number)
        if not file.is_file():
            vectors = np.concatenate([block.numpy() for _, block in pool.blocks(shards=[number])])
            with new_file(file) as temporary, temporary.open("wb") as stream:
                np.save(stream, vectors)


def seal(folder: Path, made_by: Mapping[str, Any], pattern: str = "*.npy") -> None:
    """Write down what the files of a folder were made by, and their hashes, once."""
    if not (folder / _SEALED).is_file():
        hashes = {file.name: sha256_file(file) for file in sorted(folder.glob(pattern))}
        write_json(folder / _SEALED, {"made_by": made_by, "sha256": hashes})


def is_sealed(folder: Path) -> bool:
    """Whether all of a folder's files were made."""
    return (folder / _SEALED).is_file()


def check_sealed(folder: Path, made_by: Mapping[str, Any], what: str) -> None:
    """Read a sealed folder, every byte of it, and refuse it if it is not what it should be.

    Args:
        folder: With `.npy` files.
        made_by: What they should be made by.
        what: They are called, in the plural.

    Raises:
        WeightsError: If they were made by something else: another teacher, other images or text.
        DataError: If a file is missing, or was changed since.
    """
    about = read_json(folder / _SEALED)
    now = json.loads(json.dumps(made_by))
    changes = [f"{key} was {old}, now {new}" for key, (old, new) in flat_changes(about["made_by"], now).items()]
    if changes:
        raise WeightsError(
            f"the teacher's {what} in {folder} were made otherwise: {'; '.join(changes[:6])}."
            " Give another --features folder, or the teacher and data of before."
        )
    for name, digest in about["sha256"].items():
        file = folder / name
        if not file.is_file():
            raise DataError(f"{file} is gone. Remove {folder} and give the same command again.")
        if (found := sha256_file(file)) != digest:
            raise DataError(
                f"{file} was changed since it was made (SHA-256 {found[:12]}..., then {digest[:12]}...)."
                f" Remove {folder} and give the same command again."
            )


def sealed_rows(folder: Path) -> MappedRows:
    """The rows of a folder that was checked."""
    return MappedRows([folder / name for name in read_json(folder / _SEALED)["sha256"]])


def check_fresh(stored: Tensor, fresh: Tensor, name: Callable[[int], str], what: str, folder: Path) -> None:
    """Refuse stored vectors that the teacher would not give today.

    Args:
        stored: (m, E).
        fresh: (m, E), of the same images or sentences, just made.
        name: Of one of them, for the message.
        what: They are called, in the plural.
        folder: Where they are stored.

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
            " teacher, tokeniser or way to resize. Remove it, or give another --features folder."
        )


def _mapped(file: Path) -> NDArray[Any]:
    try:
        found: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file} is damaged ({error}). Remove it and give the same command again.") from None
    if found.ndim != 2:
        raise DataError(f"{file} holds an array of shape {found.shape}, not of rows. Remove it.")
    return found
