"""The page of a transfer set: who asked, what was fetched, what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.data.base import Source
from attar.reports.page import environment
from attar.reports.pictures import thumbnail
from attar.utils.io import write_text


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
    page = (
        environment()
        .get_template("curate.html")
        .render(
            m=manifest,
            queries=[
                {
                    "name": query.name,
                    "group": query.group,
                    "image": thumbnail(*query.image) if query.image else None,
                    "fetched": [_shown(image) for image in query.fetched],
                }
                for query in examples["queries"]
            ],
            leaks=[_shown(image) for image in examples["leaks"]],
            shown_leaks=examples["shown_leaks"],
            bars=bars_of(manifest["similarity"]),
        )
    )
    write_text(path, page)


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
