"""Soft logits only: the student learns the teacher's classes without labels (spec proteus §4.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attar.config import LogitsConfig
from attar.losses import kl_divergence
from attar.methods.base import Taught
from attar.methods.teacher import ask, check_patches, frozen, resize
from attar.methods.teacher_cache import Answers
from attar.models import Backbone, ClassificationHead, LinearClassifier
from attar.types import Batch, StepOutput


class SoftLogitsLearner(nn.Module):
    """Student and a linear classifier on its class token."""

    def __init__(self, student: Backbone, num_classes: int, temperature: float) -> None:
        super().__init__()
        self.student = student
        self.head = ClassificationHead(student.embed_dim, num_classes)
        self.temperature = temperature

    def forward(self, views: Tensor, target: Tensor, global_batch_size: int) -> dict[str, Tensor]:
        """KL divergence from the teacher's logits (B, K), as this batch's share of the global mean."""
        logits = self.head(self.student(views).cls)
        return {"logits": kl_divergence(logits, target, temperature=self.temperature).sum() / global_batch_size}


class SoftLogits(Taught):
    """The method: the teacher's softened classes are all there is to learn."""

    title = "soft logits only (Hinton et al. 2015, without labels)"
    answer_names = ("logits",)

    def __init__(
        self, teacher: Backbone, classifier: LinearClassifier, student: Backbone, config: LogitsConfig
    ) -> None:
        check_patches(student, teacher)
        self.teacher, self.classifier, self.student = frozen(teacher), classifier, student
        self.learner: nn.Module = SoftLogitsLearner(student, classifier.out_features, config.temperature)

    def training_step(self, batch: Batch) -> StepOutput:
        """KL divergence, as a share of the global batch."""
        (target,) = self.answers(batch)
        terms = self.learner(resize(batch.views, self.student.img_size), target, batch.global_batch_size)
        return StepOutput(terms["logits"], {"logits": terms["logits"].detach()})

    @torch.no_grad()
    def ask(self, views: Tensor) -> Answers:
        """The teacher's logits (B, K)."""
        return (self.classifier.logits(ask(self.teacher, views)),)
