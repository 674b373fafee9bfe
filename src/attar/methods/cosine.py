"""Cosine: the student's class token, through one linear layer, points where the teacher's does.

A task-agnostic baseline of ours (spec task_transfer §1.5, DESIGN): as `hint`, but blind to the length of the vectors.
"""

from __future__ import annotations

from torch import Tensor, nn

from attar.losses import token_distance
from attar.methods.base import Method
from attar.methods.teacher import ask, check_patches, frozen, resize
from attar.models import Backbone
from attar.types import Batch, StepOutput


class CosineLearner(nn.Module):
    """Student and the projector to the teacher's width."""

    def __init__(self, student: Backbone, teacher_dim: int) -> None:
        super().__init__()
        self.student = student
        self.projector = nn.Linear(student.embed_dim, teacher_dim)

    def forward(self, views: Tensor, target: Tensor, global_batch_size: int) -> dict[str, Tensor]:
        """One minus the cosine to the teacher's class tokens (B, D), as this batch's share of the global mean."""
        distance = token_distance(self.projector(self.student(views).cls), target, criterion="cosine")
        return {"cosine": distance.sum() / global_batch_size}


class Cosine(Method):
    """The method: the direction of one vector per image."""

    title = "cosine to the class token (task-agnostic baseline)"

    def __init__(self, teacher: Backbone, student: Backbone) -> None:
        check_patches(student, teacher)
        self.teacher, self.student = frozen(teacher), student
        self.learner: nn.Module = CosineLearner(student, teacher.embed_dim)

    def training_step(self, batch: Batch) -> StepOutput:
        """Mean of one minus the cosine, as a share of the global batch."""
        target = ask(self.teacher, batch.views).cls
        terms = self.learner(resize(batch.views, self.student.img_size), target, batch.global_batch_size)
        return StepOutput(terms["cosine"], {"cosine": terms["cosine"].detach()})
