"""Scenes of the playground are kept once they are drawn, so a run draws them in its first epoch alone."""

from __future__ import annotations

import numpy as np

from attar.data.base import Rows, Source
from attar.data.merged import MergedSource
from attar.data.scenes import ArrangementSource, PlaygroundSource
from attar.data.subset import SubsetSource


def draw_scenes(source: Source) -> None:
    """Draw all that is kept, so that the steps after it take as long as those of later epochs.

    Loader processes inherit it if they are forked after that.
    """
    for row in kept_rows(source):
        source.read(int(row))


def kept_rows(source: Source) -> Rows:
    """Rows whose pixels are drawn once and kept."""
    if isinstance(source, PlaygroundSource | ArrangementSource):
        return np.arange(len(source) if source.keeps_scenes else 0, dtype=np.int64)
    if isinstance(source, SubsetSource):
        return np.flatnonzero(np.isin(source.rows, kept_rows(source.source)))
    if isinstance(source, MergedSource):
        ends = np.cumsum([len(part) for part in source.parts])
        rows = [part.rows(np.arange(len(part), dtype=np.int64)) for part in source.parts]
        kept = [np.isin(own, kept_rows(part.source)) for own, part in zip(rows, source.parts, strict=True)]
        return np.concatenate(
            [end - len(own) + np.flatnonzero(own) for end, own in zip(ends, kept, strict=True)], dtype=np.int64
        )
    return np.empty(0, dtype=np.int64)
