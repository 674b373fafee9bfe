"""Distances between student and teacher tokens, always in float32."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from attar.errors import ShapeError

Criterion = Literal["mse", "cosine"]
"""Distance of a student token to its teacher token: mean squared difference, or one less the cosine."""


def token_distance(student: Tensor, teacher: Tensor, *, criterion: Criterion = "mse") -> Tensor:
    """Distance of each student token to its teacher token.

    `mse` is the mean squared difference over channels (Proteus §1.1: plain, targets raw); `cosine` is one minus the
    cosine (an option of CosPress' Proteus port, not the paper's).

    Args:
        student: (..., D), any float dtype.
        teacher: (..., D), no gradient wanted.
        criterion: Which distance.

    Returns:
        (...,) float32.

    Raises:
        ShapeError: If the two shapes differ.

    Example:
        >>> import torch
        >>> token_distance(torch.zeros(2, 4), torch.full((2, 4), 3.0))
        tensor([9., 9.])
    """
    if student.shape != teacher.shape:
        raise ShapeError(
            f"projected student tokens are {tuple(student.shape)} but teacher tokens are {tuple(teacher.shape)}."
            " Grids and widths must agree; for other grids set proteus.resample_tokens."
        )
    student, teacher = exact(student), exact(teacher)
    if criterion == "mse":
        return (student - teacher).square().mean(-1)
    return 1 - F.cosine_similarity(student, teacher, dim=-1)


def exact(tensor: Tensor) -> Tensor:
    """float32 at least; float64 stays, for tests."""
    return tensor if tensor.element_size() >= 4 else tensor.float()
