"""What the training loop asks of a method. A paper is one file that fulfils this."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Protocol

from torch import Tensor, nn

from attar.methods.teacher_cache import Answers, TeacherCache
from attar.models import Backbone
from attar.types import Batch, StepOutput
from attar.utils.distributed import world_size


class Method(Protocol):
    """One way to teach a student.

    Attributes:
        title: What reports and model cards call it.
        learner: All that is trained (student, heads, mask token): what a wrapper for many ranks wraps and what a
            checkpoint holds. The frozen teacher is no part of it.
        student: The backbone inside the learner that will ship.
    """

    title: str
    learner: nn.Module
    student: Backbone

    def training_step(self, batch: Batch) -> StepOutput:
        """Loss of one batch, as its share of the global batch's mean.

        Shares add up: over the parts of an accumulated step and over ranks, their sum is the loss of the whole
        batch. So the loop knows neither how many parts there are nor what the means run over.
        """
        ...

    def fetch(self, batch: Batch) -> Batch:
        """The batch with what its step will need from disk; by default as it is.

        On a GPU called by a thread of its own, while the batch before this one is trained on; elsewhere not at all.
        """
        return batch

    def prepare(self, batches: Iterable[Batch]) -> str | None:
        """What the log shall say of the first batches, before the first step of a new run; by default nothing.

        Called by all ranks, each with its share. Here a method measures what it must know.
        """
        return None


def first_views(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """The first batches, until they hold so many views of all ranks together."""
    for batch in batches:
        yield batch
        count -= len(batch.views) * world_size()  # as large on each rank: all end at the same one
        if count <= 0:
            return


class Taught(Method):
    """A method whose teacher is asked about each view by itself, so that what it says can be kept.

    Attributes:
        cache: Where it is kept, for views whose number comes again (`ViewOrder.cycle`); None: nowhere.
        answer_names: What its answers are called, for people.
    """

    cache: TeacherCache | None = None
    answer_names: tuple[str, ...]

    @abstractmethod
    def ask(self, views: Tensor) -> Answers:
        """What the teacher says of views (B, 3, H, W), as far as the student learns from it: tensors (B, ...)."""

    def fetch(self, batch: Batch) -> Batch:
        """The batch with those of its answers that are kept."""
        return batch if self.cache is None else self.cache.fetch(batch)

    def answers(self, batch: Batch) -> Answers:
        """What the teacher says, or has said, of a batch."""
        return self.ask(batch.views) if self.cache is None else self.cache(batch, self.ask)
