"""Task-oriented transfer: a student learns the task predictions of a teacher that was adapted to the task (ICML 2024).

This is the paper's second stage (arXiv 2311.18237): student backbone and head together match the teacher's predictions
on unlabelled images. That it is classical distillation of predictions without labels is the paper's; the temperature's
value and the term on features are not known from it and ours (spec task_transfer §1.2, §1.3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attar.losses import token_distance
from attar.methods.base import Taught
from attar.methods.tasks import Task
from attar.methods.teacher import TokenKind, ask, check_patches, chosen, resize
from attar.methods.teacher_cache import Answers, TeacherCache
from attar.models import ProjectionHead, TaskModel
from attar.types import Batch, StepOutput


class TaskTransferLearner(nn.Module):
    """Student and its task head; a projector too where features are matched."""

    def __init__(
        self, student: TaskModel, teacher_dim: int, task: Task, *, temperature: float, tokens: TokenKind | None
    ) -> None:
        super().__init__()
        self.student, self.head = student.backbone, student.head
        self.task, self.temperature, self.tokens = task, temperature, tokens
        self.projector = ProjectionHead(student.backbone.embed_dim, teacher_dim) if tokens else None

    def forward(
        self, views: Tensor, target: Tensor, feature: Tensor | None, global_batch_size: int
    ) -> dict[str, Tensor]:
        """Unweighted terms, each as this batch's share of the global mean.

        Args:
            views: (B, 3, H, W).
            target: Teacher logits of the same views.
            feature: (B, n, D) tokens of the teacher; None where they are not matched.
            global_batch_size: Images that the means run over.
        """
        own = self.student(views)
        per_image = {"task": self.task.transfer(self.head(own), target, temperature=self.temperature)}
        if self.projector is not None and self.tokens is not None and feature is not None:
            matched = self.projector(chosen(own, self.tokens, grid=self.student.grid))
            per_image["feature"] = token_distance(matched, feature, criterion="cosine").mean(1)
        return {name: loss.sum() / global_batch_size for name, loss in per_image.items()}


class TaskTransfer(Taught):
    """The method: the student learns to say what the adapted teacher says of an image. Labels are never read.

    With a cache the teacher is asked once for each view, whose number must come again (`ViewOrder.cycle`).
    """

    title = "task-oriented transfer (ICML 2024)"

    def __init__(
        self,
        teacher: TaskModel,
        student: TaskModel,
        task: Task,
        *,
        temperature: float = 1.0,
        feature_weight: float = 0.0,
        tokens: TokenKind = "cls",
        cache: TeacherCache | None = None,
    ) -> None:
        check_patches(student.backbone, teacher.backbone)
        self.teacher = teacher.eval().requires_grad_(False)
        self.student, self.feature_weight, self.cache = student.backbone, feature_weight, cache
        self.tokens = tokens if feature_weight > 0 else None
        self.answer_names = ("logits", "tokens") if self.tokens else ("logits",)
        self.learner: nn.Module = TaskTransferLearner(
            student, teacher.backbone.embed_dim, task, temperature=temperature, tokens=self.tokens
        )

    def training_step(self, batch: Batch) -> StepOutput:
        """Weighted loss and unweighted terms, as shares of the global batch."""
        target, *feature = self.answers(batch)
        views = resize(batch.views, self.student.img_size)
        terms = self.learner(views, target, feature[0] if feature else None, batch.global_batch_size)
        loss = terms["task"]
        if "feature" in terms:
            loss = loss + self.feature_weight * terms["feature"]
        return StepOutput(loss, {name: value.detach() for name, value in terms.items()})

    @torch.no_grad()
    def ask(self, views: Tensor) -> Answers:
        """Teacher logits, and tokens where they are matched."""
        found = ask(self.teacher.backbone, views)
        target = self.teacher.head(found)
        return (target, chosen(found, self.tokens, grid=self.student.grid)) if self.tokens else (target,)
