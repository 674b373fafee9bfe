"""Losses on logits, per image and always in float32."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from attar.errors import ShapeError
from attar.losses.features import exact


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the labels.

    Args:
        logits: (B, K), any float dtype.
        labels: (B,) int64 in [0, K).

    Returns:
        (B,) float32.

    Example:
        >>> import torch
        >>> cross_entropy(torch.zeros(1, 4), torch.tensor([2])).exp()
        tensor([4.])
    """
    return F.cross_entropy(exact(logits), labels, reduction="none")


def kl_divergence(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL divergence of the student's softened classes from the teacher's, times temperature squared.

    The square keeps the size of the gradient when the temperature changes (Hinton et al. 2015, §2).

    Args:
        student: Logits (B, ..., K), any float dtype.
        teacher: Logits (B, ..., K), no gradient wanted.
        temperature: Divides both; must be > 0.

    Returns:
        (B, ...) float32, 0 where the two agree.

    Raises:
        ShapeError: If the two shapes differ.
    """
    if student.shape != teacher.shape:
        raise ShapeError(
            f"student logits are {tuple(student.shape)} but teacher logits are {tuple(teacher.shape)}."
            " Both need the classes of the teacher's classifier."
        )
    log_student = F.log_softmax(exact(student) / temperature, dim=-1)
    log_teacher = F.log_softmax(exact(teacher) / temperature, dim=-1)
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1) * temperature**2
