"""The section of a transfer set: what `attar curate` wrote down, with images that it fetched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from attar.data.base import Source
from attar.data.sources import open_source
from attar.data.transfer_set import IMAGES
from attar.errors import DataError, UserError
from attar.reports.curation import Fetched, Query, set_section
from attar.reports.section import Section
from attar.utils.io import read_json
from attar.utils.progress import Log

_QUERIES, _IMAGES = 12, 6


def section_of_set(folder: Path, log: Log) -> Section:
    """What the set says of itself, and a few queries with what they fetched; leaks are counted, and not shown.

    A set whose images are not where they were is shown without them, and says so.
    """
    manifest = read_json(folder / "manifest.json")
    try:
        return set_section(folder, manifest, {"queries": _examples(folder, manifest), "leaks": []})
    except UserError as error:
        log.say(f"           without pictures: {error}")
        return set_section(folder, manifest, {"queries": [], "leaks": []}, missing=str(error))


def _examples(folder: Path, manifest: Mapping[str, Any]) -> list[Query]:
    sources = {place["part"]: _open(folder, place) for place in manifest["places"]}
    rows: list[dict[str, Any]] = pq.read_table(folder / IMAGES).to_pylist()
    own = {row["id"]: row["row"] for row in rows if row["part"] == "queries"}
    fetched: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["part"] == "pool":
            fetched.setdefault(row["query"] or "random", []).append(row)
    names = sorted(fetched)
    chosen = np.unique(np.linspace(0, len(names) - 1, _QUERIES).round().astype(int)) if names else ()
    return [
        Query(
            name=name,
            group=fetched[name][0]["class"],
            image=(sources["queries"], own[name]) if name in own else None,
            fetched=tuple(
                Fetched(sources["pool"], row["row"], float("nan") if row["similarity"] is None else row["similarity"])
                for row in fetched[name][:_IMAGES]
            ),
        )
        for name in (names[number] for number in chosen)
    ]


def _open(folder: Path, place: dict[str, Any]) -> Source:
    source = open_source(place["references"])
    if source.fingerprint != place["fingerprint"]:
        raise DataError(
            f"{', '.join(place['references'])}: these are other images than those that the transfer set {folder} was"
            " chosen from. Bring them back as they were; its own report.html shows them as they stood."
        )
    return source
