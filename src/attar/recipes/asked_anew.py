"""The teacher asked anew about a few of what is stored, and about what it could not be asked about before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.curation.feature_store import FRESH
from attar.data.base import Source
from attar.data.loader import EvaluationDataset, Item, ListedViews, ViewDataset, evaluation_batches
from attar.data.views import EvaluationView
from attar.evaluation.outputs import fingerprint
from attar.methods.teacher import ask_embedding
from attar.methods.teacher_cache import Answers, TeacherCache
from attar.models import Backbone
from attar.utils.seeding import numpy_generator


@dataclass(frozen=True)
class ImageTeacher:
    """A teacher of images, and how it is asked.

    Attributes:
        teacher: Frozen, on its device.
        bf16: Whether it runs under bf16 autocast.
        workers: Loader processes.
    """

    teacher: Backbone
    bf16: bool
    workers: int

    @property
    def identity(self) -> dict[str, Any]:
        """What its vectors depend on, besides what it sees."""
        return {
            "teacher": {
                "reference": self.teacher.source.name,
                "fingerprint": fingerprint(self.teacher),
                "mean": list(self.teacher.preprocess.mean),
                "std": list(self.teacher.preprocess.std),
            },
            "precision": "bf16" if self.bf16 else "fp32",
        }

    @property
    def view(self) -> EvaluationView:
        """How it sees an image whole."""
        return EvaluationView(self.teacher.img_size)

    def of_images(self, source: Source, rows: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]]:
        """(what it says of these images now, (n, E), which of them could be read, (n,))."""
        vectors, places = [torch.empty(0, 0)], [np.empty(0, np.int64)]
        dataset = EvaluationDataset(source, rows, self.view)
        for images, where in evaluation_batches(dataset, batch_size=FRESH, workers=self.workers):
            if len(where):
                with self.asking():
                    vectors.append(self.teacher.embed(images).cpu())
                places.append(where.numpy())
        return torch.cat(vectors[1:] or vectors), np.concatenate(places)

    def of_views(self, items: list[Item]) -> Tensor:
        """(n, E): what it says of views now."""
        device = self.teacher.mean.device
        with self.asking():
            answers = [ask_embedding(self.teacher.eval(), item.view.values()[None].to(device)).cpu() for item in items]
        return torch.cat(answers)

    def asking(self) -> contextlib.AbstractContextManager[Any]:
        """The precision that it is asked in."""
        device = self.teacher.mean.device.type
        return torch.autocast(device, dtype=torch.bfloat16) if self.bf16 else contextlib.nullcontext()


def some(count: int, is_of_use: Callable[[int], bool] = lambda row: True) -> NDArray[np.int64]:
    """Rows of so many to ask about anew; of several times as many those that are of use."""
    return np.array([row for row in _drawn(count) if is_of_use(row)][:FRESH], dtype=np.int64)


def kept_views(cache: TeacherCache, stream: ViewDataset) -> list[tuple[Item, Answers]]:
    """Some of the views that were answered, with the answers."""
    found: list[tuple[Item, Answers]] = []
    kept = np.flatnonzero(cache.are_kept())
    listed = ListedViews(stream, kept, cache.num_views)
    for place in _drawn(len(kept)):
        item = listed[place]
        if isinstance(item, Item) and (answer := cache.kept(item.sample, item.view_id)) is not None:
            found.append((item, answer))
            if len(found) == FRESH:
                break
    return found


def _drawn(count: int) -> list[int]:
    """Several times as many of so many rows as are asked about, since some may be of no use."""
    drawn = numpy_generator(0, "fresh", count).choice(count, min(count, 4 * FRESH), replace=False)  # no list of all
    return [int(row) for row in drawn]
