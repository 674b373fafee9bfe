"""What is known of one data set: a row of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from attar.data.labelled import Labelled
from attar.data.pairs import Annotated
from attar.errors import ConfigError, did_you_mean

Kind = Literal["classification", "segmentation", "depth"]


class Layout(Protocol):
    """How files lie below a data set's folder."""

    def read(self, folder: Path, split: str) -> Labelled:
        """The images and labels of a split, in the order of the official files.

        Raises:
            DataError: If a file is missing or says something that cannot be.
        """
        ...


class PairLayout(Protocol):
    """How images and their annotations lie below a data set's folder."""

    def pairs(self, folder: Path, split: str) -> list[Annotated]:
        """Images with their annotations, in the order of their names.

        Raises:
            DataError: If a file is missing.
        """
        ...


@dataclass(frozen=True)
class Count:
    """How many images a split has.

    Attributes:
        images: The number that the papers used.
        others: Numbers that other true copies have.
        is_soft: Whether another number is a warning only: the figure is general knowledge, or copies differ.
    """

    images: int
    others: tuple[int, ...] = ()
    is_soft: bool = False

    def allows(self, found: int) -> bool:
        """Whether a true copy may have so many."""
        return found in (self.images, *self.others)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A row of the table of data sets.

    Attributes:
        name: What users write after `--tasks`.
        title: What its makers call it.
        num_classes: How many classes its labels have; 0 for depth.
        metrics: Names of what is reported, the main one first.
        splits: How many images each split has.
        layout: How its official files lie.
        folders: Where below the data root they may lie; the first is the one to name.
        marker: File that must be in the folder, where several data sets share it.
        how_to_get: Where users get it. attar downloads nothing.
        licence_note: What users should know of its terms; general knowledge, no legal advice.
        sources: Tags of the specification that stand behind the facts.
        kind: What is judged.
        is_multi_label: Whether labels are (n, K) zeros and ones.
        has_paper_val: Whether the papers choose on the `val` split that comes with it, and not on a cut of `train`.
        names: File or rule for class names in prompts (`attar.evaluation.datasets.prompts`).
        templates: File of prompt templates; None where no paper asks for zero-shot.
        mirrors: Names after `wds_` of its WebDataset mirrors.
        first_class: Number of the first class in annotations; below it is void.
        note: Traps.
    """

    name: str
    title: str
    num_classes: int
    metrics: tuple[str, ...]
    splits: Mapping[str, Count]
    layout: Layout | PairLayout
    folders: tuple[str, ...]
    how_to_get: str
    licence_note: str
    sources: tuple[str, ...]
    kind: Kind = "classification"
    is_multi_label: bool = False
    has_paper_val: bool = False
    names: str = "words"
    templates: str | None = None
    mirrors: tuple[str, ...] = ()
    marker: str = ""
    first_class: int = 0
    note: str = ""

    @property
    def metric(self) -> str:
        """The main metric."""
        return self.metrics[0]

    def count(self, split: str) -> Count:
        """How many images a split has.

        Raises:
            ConfigError: If there is no such split.
        """
        if split not in self.splits:
            known = ", ".join(list(self.splits)[:5])
            raise ConfigError(f"{self.name} has no split '{split}'.{did_you_mean(split, self.splits)} Known: {known}.")
        return self.splits[split]

    def with_counts(self, *, num_classes: int | None = None, **counts: int) -> Dataset:
        """The same row for a part of the data: other counts for some splits, and perhaps fewer classes."""
        splits = {**self.splits, **{split: Count(images) for split, images in counts.items()}}
        return replace(self, splits=splits, num_classes=self.num_classes if num_classes is None else num_classes)
