"""What is predicted for every pixel, classes or depth: how it is read, learned and judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.data.pairs import VOID, Pair
from attar.errors import DataError
from attar.evaluation.confusion import class_accuracy, confusion_matrix, overall_accuracy
from attar.evaluation.dense.splits import DenseSplits
from attar.evaluation.depth import NYU_RANGE, depth_errors, valid_depth
from attar.evaluation.intervals import bootstrap_interval
from attar.evaluation.metrics import METRICS
from attar.evaluation.protocols import Score

Rows = dict[str, Tensor]
"""What each image contributes to a figure, by name, with one entry an image."""

_AUXILIARY = 0.4  # weight of predictions that only help to learn (mmsegmentation)


class Target(Protocol):
    """What a head predicts."""

    @property
    def metric(self) -> str:
        """Name of the figure, in `METRICS`."""
        ...

    @property
    def void(self) -> int:
        """What stands in an annotation where nothing counts."""
        ...

    def read(self, pair: Pair) -> Tensor:
        """(H, W) ground truth, of the image's size."""
        ...

    def loss(self, found: Sequence[Tensor], target: Tensor, step: int) -> Tensor:
        """Scalar, of predictions (B, K, S, S) and ground truth (B, S, S)."""
        ...

    def rows(self, found: Tensor, target: Tensor) -> Rows | None:
        """What one image (1, K, H, W) contributes; None where nothing in it counts."""
        ...

    def score(self, rows: Rows, protocol: dict[str, Any], *, seed: int) -> Score:
        """The figure and what stands beside it."""
        ...


@dataclass(frozen=True)
class Classes:
    """Semantic segmentation by mean IoU.

    Attributes:
        num_classes: K.
        first_class: Number of the first class in annotations.
    """

    num_classes: int
    first_class: int = 0
    metric: str = "miou"
    void: int = VOID

    @classmethod
    def of(cls, splits: DenseSplits) -> Classes:
        """Those of annotated images.

        Raises:
            DataError: If they hold depth.
        """
        if splits.num_classes == 0:
            raise DataError("these annotations hold depth, and segmentation needs classes in 8 bits. Try depth or dpt.")
        return cls(splits.num_classes, splits.first_class)

    def read(self, pair: Pair) -> Tensor:
        """(H, W) uint8, counted from 0; 255 where there is no class."""
        found = pair.classes().long()
        shifted = found - self.first_class
        is_void = (found == VOID) | (shifted < 0) | (shifted >= self.num_classes)
        return _as_large(shifted.masked_fill(is_void, VOID).to(torch.uint8), pair)

    def loss(self, found: Sequence[Tensor], target: Tensor, step: int) -> Tensor:
        """Cross-entropy, averaged over the pixels that have a class; auxiliary predictions weigh 0.4."""
        labels = target.long()
        count = (labels != VOID).sum().clamp(min=1)
        losses = [F.cross_entropy(x.float(), labels, ignore_index=VOID, reduction="sum") / count for x in found]
        return losses[0] + _AUXILIARY * sum(losses[1:])

    def rows(self, found: Tensor, target: Tensor) -> Rows:
        """The image's confusion matrix."""
        return {"miou": confusion_matrix(found[0].argmax(0), target, num_classes=self.num_classes)[None].int()}

    def score(self, rows: Rows, protocol: dict[str, Any], *, seed: int) -> Score:
        """Mean IoU; beside it what `details` says."""
        return _score(self.metric, rows, protocol, self.details(rows["miou"]), seed)

    def details(self, confusions: Tensor) -> dict[str, Any]:
        """IoU by class (None for one that is nowhere), class and overall accuracy, from (n, K, K)."""
        total = confusions.sum(0)
        union = total.sum(0) + total.sum(1) - total.diagonal()
        iou = [found if found == found else None for found in (total.diagonal().double() / union).tolist()]
        return {"class_accuracy": class_accuracy(total), "overall_accuracy": overall_accuracy(total), "iou": iou}


@dataclass(frozen=True)
class Depth:
    """Depth by the error in metres, taken image by image.

    Attributes:
        penalty: From predictions (B, S, S), ground truth and the step to a loss.
        farthest: Metres beyond which depth does not count.
        eigen: Judge inside the Eigen crop.
    """

    penalty: Callable[[Tensor, Tensor, int], Tensor]
    farthest: float = NYU_RANGE[1]
    eigen: bool = False
    metric: str = "rmse"
    void: int = 0

    def read(self, pair: Pair) -> Tensor:
        """(H, W) float32 metres; 0 where nobody knows, and beyond the range."""
        found = pair.depth()
        return _as_large(found * valid_depth(found, between=self._range, eigen=False), pair)

    def loss(self, found: Sequence[Tensor], target: Tensor, step: int) -> Tensor:
        """The penalty over the crops that have a pixel of known depth."""
        known = (target > 0).flatten(1).any(1)
        if not known.any():
            return found[0].sum() * 0.0
        return self.penalty(found[0][known, 0], target[known], step)

    def rows(self, found: Tensor, target: Tensor) -> Rows | None:
        """The image's errors."""
        valid = valid_depth(target[None], between=self._range, eigen=self.eigen)
        return depth_errors(found[:, 0], target[None], valid=valid) if valid.any() else None

    def score(self, rows: Rows, protocol: dict[str, Any], *, seed: int) -> Score:
        """Root mean square error in metres; beside it every other error."""
        others = {name: METRICS[name](values) for name, values in rows.items() if name != self.metric}
        return _score(self.metric, rows, protocol, others, seed)

    @property
    def _range(self) -> tuple[float, float]:
        return NYU_RANGE[0], self.farthest


def _score(metric: str, rows: Rows, protocol: dict[str, Any], details: dict[str, Any], seed: int) -> Score:
    value = METRICS[metric](rows[metric])
    interval = bootstrap_interval(METRICS[metric], rows[metric], seed=seed)
    return Score(metric, value, interval, len(rows[metric]), protocol, details)


def _as_large(target: Tensor, pair: Pair) -> Tensor:
    height, width = target.shape
    if (width, height) != pair.open().size:
        wide, tall = pair.open().size
        raise DataError(
            f"{pair.name} has {wide}x{tall} pixels, and its annotation {width}x{height}. They must have the same size."
        )
    return target
