"""Scenes of the playground are kept once they are drawn, so a run draws them in its first epoch alone."""

from __future__ import annotations

import numpy as np

from attar.data.base import Rows, Source
from attar.data.merged import MergedSource
from attar.data.scenes import ArrangementSource, PlaygroundSource
from attar.data.subset import SubsetSource


def draw_scenes(source: Source) -> None:
    """Draw all that is kept, so that the steps after it take as long as those of later epochs.

    Loader processes inherit it if they are forked after that. In a run several of them draw for themselves, each what
    comes its way in the first epochs: where drawing is much of the work, a plan for many loaders is rather short.
    """
    for row in kept_rows(source):
        source.read(int(row))


def kept_rows(source: Source) -> Rows:
    """Rows whose pixels are drawn once and kept, place by place: of one too large to keep, a share counts as none."""
    if isinstance(source, PlaygroundSource | ArrangementSource):
        return np.arange(len(source) if source.keeps_scenes else 0, dtype=np.int64)
    if isinstance(source, SubsetSource):
        return np.flatnonzero(np.isin(source.rows, kept_rows(source.source)))
    if isinstance(source, MergedSource):
        found, start = [np.empty(0, dtype=np.int64)], 0
        for part in source.parts:
            kept = kept_rows(part.source)
            if len(kept):  # else a part of millions of images would take their numbers' memory
                found.append(start + np.flatnonzero(np.isin(part.rows(np.arange(len(part), dtype=np.int64)), kept)))
            start += len(part)
        return np.concatenate(found)
    return np.empty(0, dtype=np.int64)
