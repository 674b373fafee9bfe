"""Cosine: the student's class token, or each patch token, points where the teacher's does, through one linear layer.

A task-agnostic baseline of ours (spec task_transfer §1.5, DESIGN): as `hint`, but blind to the length of the vectors.
"""

from __future__ import annotations

from torch import Tensor, nn

from attar.losses import token_distance
from attar.methods.base import Method
from attar.methods.teacher import TokenKind, ask, check_patches, chosen, frozen, resize
from attar.models import Backbone
from attar.types import Batch, StepOutput


class CosineLearner(nn.Module):
    """Student and the projector to the teacher's width."""

    def __init__(self, student: Backbone, teacher_dim: int, tokens: TokenKind) -> None:
        super().__init__()
        self.student, self.tokens = student, tokens
        self.projector = nn.Linear(student.embed_dim, teacher_dim)

    def forward(self, views: Tensor, target: Tensor, global_batch_size: int) -> dict[str, Tensor]:
        """One minus the cosine to the teacher's tokens (B, n, D), as this batch's share of the global mean."""
        own = self.projector(chosen(self.student(views), self.tokens, grid=self.student.grid))
        distance = token_distance(own, target, criterion="cosine")  # (B, n)
        return {"cosine": distance.mean(1).sum() / global_batch_size}


class Cosine(Method):
    """The method: the direction of one vector per image, or of one per patch on the student's grid."""

    def __init__(self, teacher: Backbone, student: Backbone, *, tokens: TokenKind = "cls") -> None:
        check_patches(student, teacher)
        self.title = f"cosine to the {'class token' if tokens == 'cls' else 'patch tokens'} (task-agnostic baseline)"
        self.teacher, self.student, self.tokens = frozen(teacher), student, tokens
        self.learner: nn.Module = CosineLearner(student, teacher.embed_dim, tokens)

    def training_step(self, batch: Batch) -> StepOutput:
        """Mean of one minus the cosine, as a share of the global batch."""
        target = chosen(ask(self.teacher, batch.views), self.tokens, grid=self.student.grid)
        terms = self.learner(resize(batch.views, self.student.img_size), target, batch.global_batch_size)
        return StepOutput(terms["cosine"], {"cosine": terms["cosine"].detach()})
