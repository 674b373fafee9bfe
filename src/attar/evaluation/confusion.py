"""Confusion matrices of segmentation, and what is read off them (spec evaluation §1.5, §6.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from attar.errors import ShapeError


def confusion_matrix(predicted: Tensor, target: Tensor, *, num_classes: int) -> Tensor:
    """(K, K) int64 counts of pixels, rows the true class, columns the predicted one; matrices of parts add up.

    Pixels whose target is no class (void, 255, negative) are left out, whatever was predicted there.

    Args:
        predicted: Classes in [0, K), of any shape.
        target: Of the same shape.
        num_classes: K.

    Raises:
        ShapeError: If the shapes differ, or a class is predicted that is none.
    """
    if predicted.shape != target.shape:
        raise ShapeError(f"prediction is {tuple(predicted.shape)} but its annotation is {tuple(target.shape)}.")
    valid = (target >= 0) & (target < num_classes)
    found = predicted[valid].long()
    if len(found) and not (found.min() >= 0 and found.max() < num_classes):
        raise ShapeError(f"predicted classes go to {int(found.max())}; there are {num_classes}, counted from 0.")
    pairs = target[valid].long() * num_classes + found
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def mean_iou(confusion: Tensor) -> float:
    """Mean over classes of intersection over union, pixels pooled over all images, from a (K, K) confusion matrix.

    Classes that are neither there nor predicted do not count; one that is only predicted counts as 0.
    """
    counts = confusion.double()
    intersection = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - intersection
    present = union > 0
    return (intersection[present] / union[present]).mean().item()


def class_accuracy(confusion: Tensor) -> float:
    """mAcc: mean over the classes present of the share of their pixels that is right."""
    counts = confusion.double()
    present = counts.sum(1) > 0
    return (counts.diagonal() / counts.sum(1))[present].mean().item()


def overall_accuracy(confusion: Tensor) -> float:
    """aAcc: share of all pixels that is right."""
    return (confusion.diagonal().sum() / confusion.sum()).item()
