"""A transfer set as `attar curate` writes it: chosen rows of other places, without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from attar.data.base import Source
from attar.data.merged import MergedSource, Part
from attar.data.subset import SubsetSource
from attar.errors import DataError
from attar.utils.io import read_json

KIND = "attar transfer set"
"""What its manifest says it is."""

IMAGES = "images.parquet"


class UnlabelledRows(SubsetSource):
    """Chosen rows of a source that tell nobody their labels: a transfer set has none, wherever it was taken from."""

    def labels(self) -> None:
        """None."""
        return


def is_transfer_set(folder: Path) -> bool:
    """Whether a folder holds a transfer set."""
    if not (folder / IMAGES).is_file() or not (folder / "manifest.json").is_file():
        return False
    try:
        content = read_json(folder / "manifest.json")
    except ValueError:
        return False
    return isinstance(content, dict) and content.get("kind") == KIND


def open_transfer_set(folder: Path, open_source: Callable[[Sequence[str]], Source]) -> Source:
    """The images of a set in its order: those of the pool, then the queries that are part of it.

    Raises:
        DataError: If the set is damaged, or the places hold other images than they did.
    """
    parts = read_json(folder / "manifest.json")["places"]
    try:
        table = pq.read_table(folder / IMAGES, columns=["part", "row"])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{folder / IMAGES} is damaged: {error}. Give the same attar curate command again.") from None
    part, rows = (table[name].to_numpy(zero_copy_only=False) for name in ("part", "row"))
    found = [_part(folder, entry, rows[part == entry["part"]], open_source) for entry in parts]
    found = [source for source in found if len(source)]
    return found[0] if len(found) == 1 else MergedSource([Part(source) for source in found])


def _part(folder: Path, entry: dict[str, Any], rows: Any, open_source: Callable[[Sequence[str]], Source]) -> Source:
    source = open_source(entry["references"])
    if source.fingerprint != entry["fingerprint"]:
        raise DataError(
            f"{', '.join(entry['references'])}: these are other images than those that the transfer set {folder} was"
            f" chosen from (fingerprint {source.fingerprint[:12]}, there {entry['fingerprint'][:12]})."
            " Bring them back as they were, or curate again."
        )
    return UnlabelledRows(source, np.asarray(rows, dtype=np.int64))
