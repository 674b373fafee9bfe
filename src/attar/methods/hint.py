"""Hint: the student's class token, through one linear layer, matches the teacher's (after FitNets, Romero et al. 2015).

FitNets match a layer in the middle before the training proper; here it is the last one and all of the training, which
Proteus' table calls "feature MSE on cls before the classifier" (spec §4.4). Proteus' own token term differs by the
LayerNorm in front of the linear layer.
"""

from __future__ import annotations

from torch import Tensor, nn

from attar.losses import token_distance
from attar.methods.base import Method
from attar.methods.teacher import ask, check_patches, frozen, resize
from attar.models import Backbone
from attar.types import Batch, StepOutput


class HintLearner(nn.Module):
    """Student and the regressor to the teacher's width."""

    def __init__(self, student: Backbone, teacher_dim: int) -> None:
        super().__init__()
        self.student = student
        self.regressor = nn.Linear(student.embed_dim, teacher_dim)

    def forward(self, views: Tensor, target: Tensor, global_batch_size: int) -> dict[str, Tensor]:
        """Squared difference from the teacher's class tokens (B, D), as this batch's share of the global mean."""
        distance = token_distance(self.regressor(self.student(views).cls), target)
        return {"hint": distance.sum() / global_batch_size}


class Hint(Method):
    """The method: one vector per image is all there is to learn."""

    title = "hint on the class token (after FitNets, ICLR 2015)"

    def __init__(self, teacher: Backbone, student: Backbone) -> None:
        check_patches(student, teacher)
        self.teacher, self.student = frozen(teacher), student
        self.learner: nn.Module = HintLearner(student, teacher.embed_dim)

    def training_step(self, batch: Batch) -> StepOutput:
        """Mean squared error, as a share of the global batch."""
        target = ask(self.teacher, batch.views).cls
        terms = self.learner(resize(batch.views, self.student.img_size), target, batch.global_batch_size)
        return StepOutput(terms["hint"], {"hint": terms["hint"].detach()})
