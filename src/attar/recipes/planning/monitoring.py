"""How long the judgements of a run take: measured on some of the monitor's images, in the order of the run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from attar.config import CheckpointConfig
from attar.data.loader import EvaluationDataset, evaluation_batches
from attar.evaluation.embedding import MonitorViews
from attar.models import Backbone
from attar.recipes.planning.parts import MEASURED, Part
from attar.recipes.planning.probe import timed
from attar.types import Evaluator

_LEAST, _MOST = 128, 512  # images that are looked at
_BATCH = 64  # images of a judgement's batch: more of them are made by loader processes


def images_to_look_at(batch_size: int, limit: int) -> int:
    """How many images of `limit` a probe looks at: about as much work as a few steps of the training."""
    return min(limit, max(_LEAST, min(_MOST, 4 * batch_size)))


def known_from(looked_at: int, count: int) -> str:
    """In words."""
    if looked_at >= count:
        return MEASURED
    return f"measured on {looked_at:,} of {count:,} images, scaled"


def loader_start(workers: int) -> float:
    """Seconds that it takes to start and end so many loader processes of a judgement."""
    if not workers:
        return 0.0
    seconds, _ = timed(lambda: list(evaluation_batches(_Nothing(), batch_size=_BATCH, workers=workers)))
    return seconds


class _Nothing(EvaluationDataset):
    """A batch and one more, which cost nothing to make."""

    def __init__(self) -> None: ...

    def __len__(self) -> int:
        return _BATCH + 1

    def __getitem__(self, position: int) -> tuple[Tensor | None, int]:
        return torch.zeros(3, 1, 1, dtype=torch.uint8), position


def scaled(seconds: float, few: Collection[int], whole: Collection[int], *, start: float) -> float:
    """Seconds that passes over so many images take, from those that passes over few of them took.

    Args:
        seconds: Of the passes over few.
        few: Images in each.
        whole: Images in each that is wanted.
        start: Seconds that loader processes take to start, which does not grow with the images.
    """
    starts = [start * sum(size > _BATCH for size in sizes) for sizes in (few, whole)]
    return max(0.0, seconds - starts[0]) * sum(whole) / sum(few) + starts[1]


def students_written(checks: Sequence[Part]) -> float:
    """How often at most: each that is best so far twice, by its step and to be shown, and at the end best and last."""
    return 2 + 2 * sum(part.times for part in checks[:1])


def kept_on_disk(config: CheckpointConfig, *, is_judged: bool, checkpoint: int, student: int) -> dict[str, int]:
    """Bytes at most of checkpoints and students of so many bytes each: best, last, and a judged run's best by step."""
    checkpoints = config.keep + 1  # the new one is there before the oldest goes
    students = 2 + (checkpoints if is_judged else 0)  # checkpoints name what was best until then
    return {f"{checkpoints} checkpoints": checkpoints * checkpoint, f"{students} students": students * student}


class Judgements:
    """Times judgements on a few images and scales them to all.

    Args:
        few: The views of an evaluator with few images, which has judged nobody yet.
        whole: The views of the run's own evaluator.
        once: A part of each judgement whose time does not grow with the images, as class names in sentences.
    """

    def __init__(self, few: MonitorViews, whole: MonitorViews, *, once: Callable[[], Any] = lambda: None) -> None:
        self.looked_at, self.count, self.once = few.count, whole.count, once
        self.few, self.whole, self.start = few, whole, loader_start(few.workers)
        few.count = whole.count  # views are kept for the next judgement, or not, as in the run
        self._sizes: set[int] = set()

    def part(self, what: str, evaluator: Evaluator, backbone: Backbone, *, times: float = 1) -> Part:
        """How long it takes to judge a backbone; the first of an input size makes the views too, if they are kept."""
        is_kept = backbone.img_size in self._sizes and self.whole.kept_bytes(backbone.img_size) > 0
        self._sizes.add(backbone.img_size)
        fixed, _ = timed(self.once)
        seconds, _ = timed(lambda: dict(evaluator.run(backbone)))
        sizes = [list(map(len, views.parts.values())) for views in (self.few, self.whole)]
        whole = scaled(seconds - fixed, *sizes, start=0.0 if is_kept else self.start)
        return Part(what, fixed + whole, times, known_from(self.looked_at, self.count))

    @property
    def more_bytes(self) -> int:
        """Of views that the run keeps in memory and the probe does not."""
        share = 1 - self.looked_at / self.count
        return round(share * sum(map(self.whole.kept_bytes, self._sizes)))
