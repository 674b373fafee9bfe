"""What a task model says of images, and how well that agrees with their labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from attar.data.geometry import Geometry
from attar.data.labelled import Labelled
from attar.data.views import EvaluationView
from attar.evaluation.embedding import evaluation_views, seen
from attar.models import TaskModel


def pixel_logits(model: TaskModel, images: Tensor) -> Tensor:
    """(B, K, S, S) float32 logits of each pixel of images (B, 3, S, S) of a segmentation model's size."""
    return F.interpolate(model.logits(images), size=images.shape[-2:], mode="bilinear")


def geometry_of(model: TaskModel) -> Geometry:
    """Sizes in which a segmentation model looks at images larger than its input."""
    return Geometry(model.backbone.img_size, model.stride, short_side=model.short_side)


def predict_labelled(
    model: TaskModel, labelled: Labelled, *, crop_pct: float = 1.0, workers: int = 0, name: str = "images"
) -> tuple[Tensor, Tensor]:
    """Logits and classes of the readable images, in order.

    Args:
        model: What predicts.
        labelled: Images with classes.
        crop_pct: Share of the resized image that the centre crop keeps.
        workers: Loader processes.
        name: What progress and messages call them, in the plural.

    Returns:
        ((n, K) float32, (n,) int64) on the CPU.

    Raises:
        DataError: If no image can be read.
    """
    view = EvaluationView(model.backbone.img_size, crop_pct)
    batches = evaluation_views(labelled, view, workers=workers, doing=f"judging {name}")
    return seen(model.logits, labelled, batches, name=name)
