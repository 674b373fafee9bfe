"""Contrastive feature distillation: the task-agnostic baseline of task-oriented transfer (ICML 2024).

That its loss is contrastive is confirmed by a review of the paper, its form is not: the symmetric InfoNCE over the
global batch, the linear projector and the temperature are ours (spec task_transfer §1.5, REV and DESIGN).
"""

from __future__ import annotations

from torch import Tensor, nn

from attar.losses import info_nce
from attar.methods.base import Method
from attar.methods.teacher import ask, check_patches, frozen, resize
from attar.models import Backbone
from attar.types import Batch, StepOutput
from attar.utils.distributed import gather_rows, rank


class ContrastiveLearner(nn.Module):
    """Student and the projector to the teacher's width."""

    def __init__(self, student: Backbone, teacher_dim: int, temperature: float) -> None:
        super().__init__()
        self.student = student
        self.projector = nn.Linear(student.embed_dim, teacher_dim)
        self.temperature = temperature

    def forward(self, views: Tensor, target: Tensor, global_batch_size: int) -> dict[str, Tensor]:
        """InfoNCE with the teacher's class tokens (B, D) among those of all ranks, as a share of the global mean."""
        projected = self.projector(self.student(views).cls)
        loss = info_nce(
            projected,
            target,
            temperature=self.temperature,
            all_students=gather_rows(projected),
            all_teachers=gather_rows(target),
            first=rank() * len(views),
        )
        return {"contrastive": loss.sum() / global_batch_size}


class Contrastive(Method):
    """The method: of all images in the batch, the student's vector is nearest to the teacher's of the same one."""

    title = "contrastive feature distillation (task-agnostic baseline)"

    def __init__(self, teacher: Backbone, student: Backbone, *, temperature: float) -> None:
        check_patches(student, teacher)
        self.teacher, self.student = frozen(teacher), student
        self.learner: nn.Module = ContrastiveLearner(student, teacher.embed_dim, temperature)

    def training_step(self, batch: Batch) -> StepOutput:
        """InfoNCE over the global batch, which must come in one piece: other pieces hold no negatives for this one."""
        target = ask(self.teacher, batch.views).cls
        terms = self.learner(resize(batch.views, self.student.img_size), target, batch.global_batch_size)
        return StepOutput(terms["contrastive"], {"contrastive": terms["contrastive"].detach()})
