"""Which images a report looks at: those given, else the run's monitor, else what the run learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from attar.config import DistillConfig, ReportConfig
from attar.data.labelled import Labelled, Rows
from attar.data.references import shown
from attar.data.sources import open_source
from attar.recipes.assembly import open_monitor
from attar.utils.seeding import numpy_generator


@dataclass(frozen=True)
class Sample:
    """Images to search among and images to search for.

    Attributes:
        place: What they are, for people.
        bank: To search among.
        queries: To search for, of each class one before any class has two; the bank itself where `is_one`.
        is_one: Whether queries and bank are the same images.
        crop_pct: Share of the resized image kept by the centre crop.
    """

    place: str
    bank: Labelled
    queries: Labelled
    is_one: bool
    crop_pct: float

    @property
    def has_classes(self) -> bool:
        """Whether there are two classes at least."""
        return len(self.bank.class_names) > 1


def sample_images(config: ReportConfig, settings: Mapping[str, Any], *, workers: int) -> Sample:
    """The images of a report on the run with these settings; at most `config.limit`, drawn by seed.

    Raises:
        UserError: If there are none, or the run's are not where they were.
    """
    if not config.images and settings.get("monitor") and "data" in settings:
        return _of_monitor(config, DistillConfig.build(settings), workers)
    what, places = ("the images given", config.images) if config.images else _of_run(settings)
    source = open_source(places)
    labels, names = source.labels() or (np.zeros(len(source), dtype=np.int64), [])
    everything = Labelled(source, np.arange(len(source), dtype=np.int64), labels, tuple(names))
    drawn = everything.take(_draw(len(everything), config.limit, config.seed, "images"))
    drawn = drawn.take(spread(drawn.labels))
    place = f"{len(drawn):,} of {what}: {'; '.join(map(shown, places))}."
    return Sample(place, drawn, drawn, is_one=True, crop_pct=1.0)


def _of_monitor(config: ReportConfig, trained: DistillConfig, workers: int) -> Sample:
    """The very images that the run's figures are from: its bank, and the half that it reports on."""
    monitor = open_monitor(trained, workers)
    assert monitor is not None
    assert trained.monitor is not None
    half = config.limit // 2
    bank = monitor.bank.take(_draw(len(monitor.bank), half, config.seed, "bank"))
    queries = monitor.report.take(_draw(len(monitor.report), half, config.seed, "queries"))
    queries = queries.take(spread(queries.labels))
    place = f"{len(queries):,} images of the run's monitor, searched for among {len(bank):,}: {shown(trained.monitor)}."
    return Sample(place, bank, queries, is_one=False, crop_pct=monitor.crop_pct)


def _of_run(settings: Mapping[str, Any]) -> tuple[str, Sequence[str]]:
    """What a run was judged on, or learned from, where that is a place of images."""
    if settings.get("monitor"):
        return "the run's monitor", [settings["monitor"]]
    if settings.get("labelled") and settings.get("task") == "classification" and not settings.get("images_root"):
        return "the labelled images", [settings.get("test") or settings.get("val") or settings["labelled"]]
    places = settings.get("data") or settings.get("images") or settings.get("pool") or settings.get("labelled") or ()
    return "the images learned from", [places] if isinstance(places, str) else places


def _draw(size: int, limit: int, seed: int, name: str) -> Rows:
    order: Rows = numpy_generator(seed, "report", name).permutation(size)[:limit]
    return order


def spread(labels: Rows) -> Rows:
    """Positions in an order in which every class comes once before one comes twice; within a class as they are.

    Example:
        >>> spread(np.array([7, 7, 7, 3, 3])).tolist()
        [0, 3, 1, 4, 2]
    """
    seen: dict[int, Any] = {}
    turns = [next(seen.setdefault(label, count())) for label in labels.tolist()]
    return np.argsort(turns, kind="stable")
