"""Which data sets there are, and which of them lie below a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from attar.errors import MissingDatasetError
from attar.evaluation.datasets.catalogue import DATASETS, SUITES
from attar.evaluation.datasets.dataset import Count, Dataset
from attar.evaluation.datasets.opening import locate


@dataclass(frozen=True)
class Listing:
    """A data set for `attar evaluate --list`.

    Attributes:
        dataset: Its row of the table.
        suites: Suites that it is in.
        folder: Where it lies; None if it is missing.
    """

    dataset: Dataset
    suites: tuple[str, ...]
    folder: Path | None

    @property
    def expected(self) -> str:
        """The folder below the data root that it is looked for in, how to get it, and its terms."""
        marker = f" (with {self.dataset.marker} in it)" if self.dataset.marker else ""
        words = (f"{self.dataset.folders[0]}{marker}.", self.dataset.how_to_get, self.dataset.licence_note)
        return " ".join(filter(None, words))


def list_datasets(data_root: str | Path) -> list[Listing]:
    """Every data set of the table, with the folder that it lies in where it is there. No image is looked at."""
    return [_listing(dataset, data_root) for dataset in DATASETS.values()]


def _listing(dataset: Dataset, data_root: str | Path) -> Listing:
    suites = tuple(suite for suite, names in SUITES.items() if dataset.name in names)
    try:
        return Listing(dataset, suites, locate(dataset, data_root))
    except MissingDatasetError:
        return Listing(dataset, suites, None)


def markdown_table() -> str:
    """The table of `docs/datasets.md`, a line a data set."""
    head = "| name | what | folder below the data root | classes | images | metric | how to get it, terms | sources |"
    return "\n".join([head, "|---" * 8 + "|", *map(_markdown_row, DATASETS.values())]) + "\n"


def _markdown_row(dataset: Dataset) -> str:
    folders = [*dataset.folders, *(f"wds_{mirror}" for mirror in dataset.mirrors)]
    cells = [
        f"`{dataset.name}`",
        f"{dataset.title}. {dataset.note}".rstrip(". ") + ".",
        "<br>".join(f"`{folder}`" for folder in folders),
        str(dataset.num_classes or "–"),
        _counts(dataset),
        ", ".join(dataset.metrics),
        f"{dataset.how_to_get} {dataset.licence_note}",
        " ".join(dataset.sources),
    ]
    return f"| {' | '.join(cells)} |"


def _counts(dataset: Dataset) -> str:
    if len(dataset.splits) > 10:  # ImageNet-C
        return f"{len(dataset.splits)} x {_shown(next(iter(dataset.splits.values())))}"
    return "<br>".join(f"{split} {_shown(count)}" for split, count in dataset.splits.items())


def _shown(count: Count) -> str:
    numbers = " or ".join(f"{number:,}" for number in (count.images, *count.others))
    return f"{numbers} (a warning if not)" if count.is_soft else numbers
