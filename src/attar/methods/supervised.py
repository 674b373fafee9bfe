"""Labels only: a model learns its task without any teacher. What a teacher is adapted and a student finetuned by, and
the baseline that needs what Proteus does without."""

from __future__ import annotations

from torch import Tensor, nn

from attar.methods.base import Method
from attar.methods.tasks import TASKS, Task
from attar.methods.teacher import check_patches, resize
from attar.models import Backbone, TaskModel
from attar.types import Batch, StepOutput


class SupervisedLearner(nn.Module):
    """Backbone and task head."""

    def __init__(self, model: TaskModel, task: Task) -> None:
        super().__init__()
        self.student, self.head, self.task = model.backbone, model.head, task

    def forward(self, views: Tensor, labels: Tensor, global_batch_size: int) -> dict[str, Tensor]:
        """The task's loss with the labels (B, ...), as this batch's share of the global mean."""
        logits = self.head(self.student(views))
        return {"labels": self.task.supervised(logits, labels).sum() / global_batch_size}


class Supervised(Method):
    """The method: the task's loss with the labels of the images."""

    title = "labels only (supervised baseline)"

    def __init__(self, model: TaskModel, task: Task = TASKS["classification"]) -> None:
        check_patches(model.backbone)
        self.student: Backbone = model.backbone
        self.learner: nn.Module = SupervisedLearner(model, task)

    def training_step(self, batch: Batch) -> StepOutput:
        """The task's loss, as a share of the global batch."""
        assert batch.labels is not None, "a supervised method on a stream without labels"
        terms = self.learner(resize(batch.views, self.student.img_size), batch.labels, batch.global_batch_size)
        return StepOutput(terms["labels"], {"labels": terms["labels"].detach()})
