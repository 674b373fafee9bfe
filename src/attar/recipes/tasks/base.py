"""What `attar transfer` asks of a task; each is one class that knows its labelled images, heads and figures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from attar.config import TransferConfig
from attar.config.transfer import AdaptConfig, FinetuneConfig, HeadKind
from attar.data.loader import Stream
from attar.data.sources import Source, images_in_both, share_a_place
from attar.evaluation.metrics import METRICS
from attar.methods import Task, TokenKind
from attar.models import Backbone, TaskModel

Rows = tuple[Tensor, ...]
"""What a task's metrics take, one entry an image in each."""

_SEEN = {
    "val": "so the student learns from them, without their labels, before they choose: val figures may be too high."
    " A set of `attar curate` holds its queries. Give others to choose by with --val.",
    "test": "so the student learns from what it is reported on: its figures prove nothing. Give others with --test.",
}


@dataclass(frozen=True)
class FittedHead:
    """A linear head on fixed features, and what it says of validation images it was not fitted on.

    Attributes:
        penalty: Chosen on them.
        val: What a fit on the training images alone gives on them.
        passes: Forward passes of the backbone that its features took.
    """

    penalty: float
    val: Rows
    passes: int


class OpenedTask(ABC):
    """A task with its labelled images: to learn from, to choose by, to report on.

    Attributes:
        losses: With labels, and with a teacher's predictions.
        tokens: Those of a teacher that task-agnostic baselines match.
        metrics: What is reported; by the first one moments are chosen.
        figure: Of the first one, in sentences; empty where a bare number says it.
        usage: How a finished model is used, for its card.
        class_names: Of the logits, in order.
        origin: Who made the parts, for the record.
        counts: Images by part, those to learn from first.
        hashes: Of `train` and `val`, for what a stage belongs to.
    """

    losses: ClassVar[Task]
    tokens: ClassVar[TokenKind]
    metrics: ClassVar[tuple[str, str]]
    figure: ClassVar[str]
    usage: ClassVar[str]
    class_names: tuple[str, ...]
    origin: str
    counts: Mapping[str, int]
    hashes: Mapping[str, str]

    @classmethod
    @abstractmethod
    def open(cls, config: TransferConfig, *, workers: int) -> Self:
        """Open the labelled images.

        Raises:
            DataError: If labels are missing, or there are too few of them.
        """

    @abstractmethod
    def few(self, count: int) -> Self:
        """The same task with so many images of each part at most."""

    @abstractmethod
    def new_model(self, backbone: Backbone, *, head: HeadKind) -> TaskModel:
        """With a new head on the backbone's device, initialised by torch's global generator."""

    def check_ships(self, model: TaskModel) -> None:  # noqa: B027  (most models do)
        """Refuse a student that could not be used once it is finished."""

    @abstractmethod
    def fit_head(self, model: TaskModel, *, refit: bool) -> FittedHead:
        """Fit a model's linear head on features of its backbone, computed once; the penalty is chosen on `val`.

        With `refit` the head is then fitted on `train` and `val` together.

        Raises:
            DataError: If no image can be read.
        """

    @abstractmethod
    def stream(self, backbone: Backbone, section: AdaptConfig | FinetuneConfig) -> Stream:
        """Labelled views for training a model of the backbone's size."""

    @abstractmethod
    def predict(self, model: TaskModel, part: str) -> Rows:
        """What a model says of a part's readable images, and their labels, as the metrics take it."""

    @abstractmethod
    def source_of(self, part: str) -> Source:
        """The images of a part that models are judged on."""

    @abstractmethod
    def details(self, rows: Rows) -> dict[str, Any]:
        """Figures beside the first metric."""

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """Settings that shape the figures."""

    @abstractmethod
    def gain(self, ours: Rows, theirs: Rows, *, seed: int) -> tuple[float, tuple[float, float]]:
        """How much more the first metric is on `ours` than on `theirs`, and its 95 % interval; images stay in pairs."""

    @property
    def judged_parts(self) -> tuple[str, ...]:
        """`val`, and `test` where there is one."""
        return tuple(part for part in self.counts if part != "train")

    @property
    def reported_on(self) -> str:
        """The part whose figures count: the test images, where there are some."""
        return self.judged_parts[-1]

    @property
    def num_labels(self) -> int:
        """Labelled images that something is learned or chosen by."""
        return self.counts["train"] + self.counts["val"]

    def shares_a_place(self, pool: Source, part: str) -> bool:
        """Whether images of a part lie where those of the pool do."""
        return share_a_place(pool, self.source_of(part))

    def seen_in(self, pool: Source) -> dict[str, str]:
        """By part, how many of its images are among the pool's and what that means; none where there are none.

        What is set apart of the labelled images by itself is there as soon as all of these are: curation adds them.
        """
        counts = {part: images_in_both(self.source_of(part), pool) for part in self.judged_parts}
        return {
            part: f"{count:,} of the {self.counts[part]:,} {part} images are in --pool, {_SEEN[part]}"
            for part, count in counts.items()
            if count
        }

    def value(self, rows: Rows) -> float:
        """The first metric."""
        return METRICS[self.metrics[0]](*rows)
