"""Heads that map student tokens to a teacher's width. They are thrown away when the student ships."""

from __future__ import annotations

from torch import nn


class ProjectionHead(nn.Sequential):
    """LayerNorm(d) then Linear(d, D), with PyTorch's own initialisation (Proteus §1.3: nothing else inside).

    Shapes: (..., d) to (..., D).
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__(nn.LayerNorm(student_dim, eps=1e-5), nn.Linear(student_dim, teacher_dim))


class ClassificationHead(nn.Linear):
    """One linear layer from student features to classes, initialised as DeiT's. (B, d) to (B, K)."""

    def __init__(self, student_dim: int, num_classes: int) -> None:
        super().__init__(student_dim, num_classes)
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)
