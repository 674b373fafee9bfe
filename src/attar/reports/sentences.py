"""The page of chosen sentences: how many stayed at each step, and examples beside the images that chose them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.data.base import Source
from attar.reports.curation import bars_of
from attar.reports.page import environment
from attar.reports.pictures import thumbnail
from attar.utils.io import write_text


@dataclass(frozen=True)
class Example:
    """An image with sentences that are its own.

    Attributes:
        name: Its id.
        image: Source and row; None where the images are there no longer.
        sentences: With their similarity, the most similar first.
    """

    name: str
    image: tuple[Source, int] | None
    sentences: tuple[tuple[str, float], ...]


def write_sentences_page(path: Path, manifest: Mapping[str, Any], examples: Sequence[Example]) -> None:
    """Write the self-contained page; needs the images that it shows, and no model."""
    page = (
        environment()
        .get_template("sentences.html")
        .render(
            title="Sentences",
            m=manifest,
            examples=[
                {
                    "name": example.name,
                    "image": thumbnail(*example.image) if example.image else None,
                    "sentences": [{"text": text, "similarity": f"{value:.2f}"} for text, value in example.sentences],
                }
                for example in examples
            ],
            bars=bars_of(manifest["similarity"]),
        )
    )
    write_text(path, page)
