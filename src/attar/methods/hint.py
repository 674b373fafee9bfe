"""Hint: the student's class token, through one linear layer, matches the teacher's (after FitNets, Romero et al. 2015).

FitNets match a layer in the middle before the training proper; here it is the last one and all of the training, which
Proteus' table calls "feature MSE on cls before the classifier" (spec §4.4). Proteus' own token term differs by the
LayerNorm in front of the linear layer.
"""

from __future__ import annotations

from torch import Tensor, nn

from attar.losses import token_distance
from attar.methods.base import Taught
from attar.methods.teacher import TokenKind, ask, check_patches, chosen, frozen, resize
from attar.methods.teacher_cache import Answers
from attar.models import Backbone
from attar.types import Batch, StepOutput


class HintLearner(nn.Module):
    """Student and the regressor to the teacher's width."""

    def __init__(self, student: Backbone, teacher_dim: int, tokens: TokenKind) -> None:
        super().__init__()
        self.student, self.tokens = student, tokens
        self.regressor = nn.Linear(student.embed_dim, teacher_dim)

    def forward(self, views: Tensor, target: Tensor, global_batch_size: int) -> dict[str, Tensor]:
        """Squared difference from the teacher's tokens (B, n, D), as this batch's share of the global mean."""
        distance = token_distance(
            self.regressor(chosen(self.student(views), self.tokens, grid=self.student.grid)), target
        )  # (B, n)
        return {"hint": distance.mean(1).sum() / global_batch_size}


class Hint(Taught):
    """The method: one vector per image is all there is to learn, or one per patch on the student's grid."""

    def __init__(self, teacher: Backbone, student: Backbone, *, tokens: TokenKind = "cls") -> None:
        check_patches(student, teacher)
        self.title = f"hint on the {'class token' if tokens == 'cls' else 'patch tokens'} (after FitNets, ICLR 2015)"
        self.teacher, self.student, self.tokens = frozen(teacher), student, tokens
        self.answer_names = ("class tokens" if tokens == "cls" else "patch tokens",)
        self.learner: nn.Module = HintLearner(student, teacher.embed_dim, tokens)

    def training_step(self, batch: Batch) -> StepOutput:
        """Mean squared error, as a share of the global batch."""
        (target,) = self.answers(batch)
        terms = self.learner(resize(batch.views, self.student.img_size), target, batch.global_batch_size)
        return StepOutput(terms["hint"], {"hint": terms["hint"].detach()})

    def ask(self, views: Tensor) -> Answers:
        """The teacher's tokens, on the student's grid."""
        return (chosen(ask(self.teacher, views), self.tokens, grid=self.student.grid),)
