"""What tells one task from another: how predictions are compared with labels, and with a teacher's predictions.

The head that makes the predictions belongs to the model (`attar.models.task_model`), the figure that judges them to
evaluation; both are named by the task's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from attar.losses import cross_entropy, kl_divergence, pixel_cross_entropy, pixel_kl_divergence

TaskName = Literal["classification", "segmentation"]


class _Transfer(Protocol):
    def __call__(self, student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor: ...


class _Supervised(Protocol):
    def __call__(self, logits: Tensor, labels: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Task:
    """Losses of a task, one number an image.

    Attributes:
        name: Of the task.
        supervised: (logits, labels) -> (B,).
        transfer: (student logits, teacher logits, temperature) -> (B,).
    """

    name: TaskName
    supervised: _Supervised
    transfer: _Transfer


TASKS: dict[TaskName, Task] = {
    "classification": Task("classification", cross_entropy, kl_divergence),
    "segmentation": Task("segmentation", pixel_cross_entropy, pixel_kl_divergence),
}
"""What `attar transfer` can teach, by name."""
