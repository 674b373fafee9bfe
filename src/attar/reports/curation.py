"""The page of a transfer set: who asked, what was fetched, what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.data.base import Source
from attar.reports.page import write_report
from attar.reports.pictures import thumbnail
from attar.reports.section import Section


@dataclass(frozen=True)
class Fetched:
    """An image of the pool.

    Attributes:
        source: Where it is.
        row: Which.
        similarity: To the query, or to what it is a copy of.
        like: What it is a copy of.
        found_by: What told that it is one.
    """

    source: Source
    row: int
    similarity: float
    like: str | None = None
    found_by: str | None = None


@dataclass(frozen=True)
class Query:
    """One that asked, with the first images it fetched.

    Attributes:
        name: An image's id, or a class's name.
        group: Its class.
        image: Source and row; None for a name.
        fetched: In order.
    """

    name: str
    group: str | None
    image: tuple[Source, int] | None
    fetched: tuple[Fetched, ...]


def write_curation_page(path: Path, manifest: Mapping[str, Any], examples: Mapping[str, Any]) -> None:
    """Write the self-contained page; needs the images that it shows, and no model."""
    write_report(path, [set_section(path.parent, manifest, examples)], title="Transfer set")


def set_section(
    folder: Path, manifest: Mapping[str, Any], examples: Mapping[str, Any], *, missing: str = ""
) -> Section:
    """The section of a set.

    Args:
        folder: Of the set.
        manifest: What the set says of itself.
        examples: `queries` with what they fetched, and `leaks`.
        missing: Why there are none.
    """
    return Section(
        kind="set",
        path=folder,
        verdict=_in_a_sentence(manifest),
        content={
            "manifest": manifest,
            "queries": [
                {
                    "name": query.name,
                    "group": query.group,
                    "image": thumbnail(*query.image) if query.image else None,
                    "fetched": [_shown(image) for image in query.fetched],
                }
                for query in examples["queries"]
            ],
            "leaks": [_shown(image) for image in examples["leaks"]],
            "shown_leaks": examples.get("shown_leaks", 0),
            "missing": missing,
            "bars": bars_of(manifest["similarity"]),
        },
    )


def _in_a_sentence(m: Mapping[str, Any]) -> str:
    """How many images, whence, and why fewer than wanted."""
    own = m["images"] - m["fetched"]
    labelled = f" and {own:,} labelled ones" if own else ""
    said = (
        f"{m['images']:,} images by {m['settings']['strategy']}: {m['fetched']:,} of the {m['pool']['images']:,}"
        f" in the pool{labelled}."
    )
    if not m["shortfall"]:
        return said
    why = "the pool has no more that may enter"
    if m["lists_cut"]:
        lists = f"lists of candidates end at {m['listed']:,} for each of {m['queries']['count']:,} queries"
        why = f"{lists}, and the pool may have more"
    return f"{said} {m['shortfall']:,} fewer than wanted: {why}."


def _shown(image: Fetched) -> dict[str, Any]:
    value = image.similarity
    return {
        "image": thumbnail(image.source, image.row),
        "name": image.source.name(image.row),
        "similarity": None if value != value else f"{value:.2f}",
        "like": "/".join(Path(image.like).parts[-2:]) if image.like else None,
        "found_by": image.found_by,
    }


def bars_of(histogram: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Bars of the histogram, as shares of the highest."""
    counts, edges = histogram["counts"], histogram["edges"]
    return [
        {"from": f"{edges[number]:.2f}", "count": count, "share": round(100 * count / max(counts), 1)}
        for number, count in enumerate(counts)
    ]
