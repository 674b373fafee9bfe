"""Losses on maps of logits, per image and always in float32: the mean over an image's pixels that count."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from attar.errors import ShapeError
from attar.losses.classification import kl_divergence
from attar.losses.features import exact

_VOID = 255


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the class of each pixel; logits are resized bilinearly to the annotation first.

    Args:
        logits: (B, K, h, w), any float dtype.
        labels: (B, H, W) int64 in [0, K), 255 where nothing counts.

    Returns:
        (B,) float32, each the mean over the image's pixels that have a class; 0 where none has.

    Example:
        >>> import torch
        >>> pixel_cross_entropy(torch.zeros(1, 4, 1, 1), torch.tensor([[[2, 255]]])).exp()
        tensor([4.])
    """
    large = F.interpolate(exact(logits), size=labels.shape[-2:], mode="bilinear")
    losses = F.cross_entropy(large, labels, ignore_index=_VOID, reduction="none")
    return _mean_where(losses, labels != _VOID)


def pixel_kl_divergence(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, counts: Tensor | None = None
) -> Tensor:
    """KL divergence of the student's softened classes from the teacher's in each pixel, times temperature squared.

    The teacher's logits are resized bilinearly to the student's grid before the softmax (spec task_transfer §1.3,
    DESIGN): a mean of logits is sharp where a mean of shares is blurred.

    Args:
        student: Logits (B, K, h, w), any float dtype.
        teacher: Logits (B, K, any height, any width), no gradient wanted.
        temperature: Divides both; must be > 0.
        counts: (B, h, w) bool, False where there is no image (padding); by default all count.

    Returns:
        (B,) float32, each the mean over the image's pixels that count; 0 where none does.

    Raises:
        ShapeError: If images or classes differ.
    """
    if student.shape[:2] != teacher.shape[:2]:
        raise ShapeError(
            f"student logits are {tuple(student.shape)} but teacher logits are {tuple(teacher.shape)}."
            " Both need the same images and the classes of the teacher's head."
        )
    target = F.interpolate(exact(teacher), size=student.shape[-2:], mode="bilinear")
    losses = kl_divergence(student.movedim(1, -1), target.movedim(1, -1), temperature=temperature)  # (B, h, w)
    return losses.mean((1, 2)) if counts is None else _mean_where(losses, counts)


def _mean_where(losses: Tensor, counts: Tensor) -> Tensor:
    """(B,) means of (B, H, W) where (B, H, W) is True."""
    total = losses.masked_fill(~counts, 0).sum((1, 2))
    return total / counts.sum((1, 2)).clamp(min=1)
