"""Labels only: the student learns classes without any teacher. The baseline that needs what Proteus does without."""

from __future__ import annotations

from torch import Tensor, nn

from attar.losses import cross_entropy
from attar.methods.base import Method
from attar.methods.teacher import check_patches, resize
from attar.models import Backbone, ClassificationHead
from attar.types import Batch, StepOutput


class SupervisedLearner(nn.Module):
    """Student and a linear classifier on its class token."""

    def __init__(self, student: Backbone, num_classes: int) -> None:
        super().__init__()
        self.student = student
        self.head = ClassificationHead(student.embed_dim, num_classes)

    def forward(self, views: Tensor, labels: Tensor, global_batch_size: int) -> dict[str, Tensor]:
        """Cross-entropy with the labels (B,), as this batch's share of the global mean."""
        logits = self.head(self.student(views).cls)
        return {"labels": cross_entropy(logits, labels).sum() / global_batch_size}


class Supervised(Method):
    """The method: cross-entropy with the labels of the images."""

    title = "labels only (supervised baseline)"

    def __init__(self, student: Backbone, num_classes: int) -> None:
        check_patches(student)
        self.student = student
        self.learner: nn.Module = SupervisedLearner(student, num_classes)

    def training_step(self, batch: Batch) -> StepOutput:
        """Cross-entropy, as a share of the global batch."""
        assert batch.labels is not None, "a supervised method on a stream without labels"
        terms = self.learner(resize(batch.views, self.student.img_size), batch.labels, batch.global_batch_size)
        return StepOutput(terms["labels"], {"labels": terms["labels"].detach()})
