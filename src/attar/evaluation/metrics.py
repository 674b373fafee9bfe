"""Metrics of scores and targets, by the names that datasets give them (spec evaluation §0 traps 5-9, §1.3, §1.5).

A metric is made in two steps: what each row (an image, a caption) contributes, and a summary of the rows. Rows of
several batches or ranks are put together by `torch.cat`, confusion matrices by adding; intervals draw rows again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from attar.errors import DataError, ShapeError
from attar.evaluation.confusion import class_accuracy, mean_iou, overall_accuracy
from attar.evaluation.precision import Variant, average_precisions

Summary = Literal["mean", "sum", "rows"]


@dataclass(frozen=True)
class Metric:
    """A metric as a function of (scores (n, K), targets), with what a table must know to show it.

    For classes `targets` is (n,) int64, for several labels an image (n, K) of 0 and 1. The dense metrics take what each
    image has given already: `miou` confusion matrices (n, K, K), those of depth the values (n,) of `depth_errors`; and
    so does `mce`, each image's share of mean corruption error.

    Attributes:
        name: As datasets call it.
        per_row: From the arguments to tensors with one entry a row, all that the summary needs.
        summary: From these to the value, NaN where it is undefined.
        takes: What the summary is given: the rows as they are, their mean, or their sum.
        higher_is_better: The direction.
        unit: `share` in [0, 1], `m` or none.
    """

    name: str
    per_row: Callable[..., tuple[Tensor, ...]]
    summary: Callable[..., float]
    takes: Summary = "rows"
    higher_is_better: bool = True
    unit: str = "share"

    def __call__(self, *arguments: Tensor) -> float:
        """The value over all rows.

        Raises:
            DataError: If there are no rows, or the metric is undefined on them.
            ShapeError: If scores and targets do not go together.
        """
        rows = self.per_row(*arguments)
        if len(rows[0]) == 0:
            raise DataError(f"{self.name} of no rows is undefined. Check that the test part holds images.")
        value = self.of_rows(*rows)
        if math.isnan(value):
            raise DataError(f"{self.name} is undefined on these {len(rows[0])} rows: no class to judge is among them.")
        return value

    def of_rows(self, *rows: Tensor) -> float:
        """The value, NaN where undefined, of what `per_row` gave."""
        if self.takes == "rows":
            return self.summary(*rows)
        return self.summary(rows[0].double().mean(0) if self.takes == "mean" else rows[0].sum(0))


def top1(scores: Tensor, targets: Tensor) -> float:
    """Share of rows whose class has the highest score; of equal scores the first counts as higher.

    Args:
        scores: (n, K) of any float dtype.
        targets: (n,) int64 in [0, K).

    Raises:
        DataError: If there are no rows or a score is not a number.
        ShapeError: If the two do not go together.
    """
    return METRICS["top1"](scores, targets)


def topk(scores: Tensor, targets: Tensor, *, k: int) -> float:
    """Share of rows whose class is among the k highest scores; otherwise as `top1`."""
    return Metric(f"top{k}", partial(_hits, k=k), float, "mean")(scores, targets)


def mean_per_class(scores: Tensor, targets: Tensor) -> float:
    """Mean over the classes present in `targets` of the share of each that is right; otherwise as `top1`."""
    return METRICS["mean_per_class"](scores, targets)


def top1_of_sets(scores: Tensor, targets: Tensor) -> float:
    """Share of rows whose highest score is one of their labels; rows without a label are left out (ImageNet-ReaL).

    Args:
        scores: (n, K).
        targets: (n, K) of 0 and 1.
    """
    return METRICS["top1_of_sets"](scores, targets)


def average_precision(scores: Tensor, targets: Tensor, *, variant: Variant = "sklearn") -> float:
    """Average precision of one class; `attar.evaluation.precision` tells the variants apart.

    Args:
        scores: (n,), higher for rows that are more likely positive.
        targets: (n,) of 0 and 1.
        variant: `sklearn` (11 points as Proteus and ELEVATER), `devkit` (11 points of VOC2007) or `area`.

    Raises:
        DataError: If no row is positive.
    """
    return mean_average_precision(scores[:, None], targets[:, None], variant=variant)


def mean_average_precision(
    scores: Tensor, targets: Tensor, *, variant: Variant = "sklearn", softmax: bool = False
) -> float:
    """Mean average precision over the classes that have a positive row.

    Args:
        scores: (n, K).
        targets: (n, K) of 0 and 1.
        variant: As in `average_precision`.
        softmax: Turn each row into shares first, as ELEVATER does, which changes the order of images within a class.
    """
    per_row = partial(_multi_label, softmax=softmax)
    return Metric(f"{variant} AP", per_row, partial(_mean_ap, variant=variant))(scores, targets)


def roc_auc(scores: Tensor, targets: Tensor, *, softmax: bool = False) -> float:
    """Area under the ROC curve of the second class against the first.

    Args:
        scores: (n,), or (n, 2), whose difference is what counts.
        targets: (n,) of 0 and 1.
        softmax: Judge the second column of the softmax, as ELEVATER does: the same order but for shares that round to
            the same number.

    Raises:
        DataError: If one of the two classes is missing.
        ShapeError: If there are more columns than two.
    """
    return Metric("roc_auc", partial(_binary, softmax=softmax), _auc)(scores, targets)


def ranks_of(scores: Tensor, targets: Tensor) -> Tensor:
    """(n,) int64: how many columns stand before the target's, higher scores first and then lower columns."""
    own = scores.gather(1, targets[:, None])
    is_before = torch.arange(scores.shape[1], device=scores.device) < targets[:, None]
    return ((scores > own) | ((scores == own) & is_before)).sum(1)


def _hits(scores: Tensor, targets: Tensor, *, k: int = 1) -> tuple[Tensor]:
    _check(scores, targets, one_of_many=True)
    return (ranks_of(scores, targets) < k,)


def _hits_with_class(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return (*_hits(scores, targets), targets)


def _hits_of_sets(scores: Tensor, targets: Tensor) -> tuple[Tensor]:
    _check(scores, targets, one_of_many=False)
    judged = targets.bool().any(1)
    best = scores[judged].argmax(1, keepdim=True)
    return (targets[judged].bool().gather(1, best).squeeze(1),)


def _multi_label(scores: Tensor, targets: Tensor, *, softmax: bool = False) -> tuple[Tensor, Tensor]:
    _check(scores, targets, one_of_many=False)
    return (scores.softmax(1) if softmax else scores, targets.bool())


def _binary(scores: Tensor, targets: Tensor, *, softmax: bool = False) -> tuple[Tensor, Tensor]:
    if scores.ndim == 2 and scores.shape[1] == 2:
        scores = scores.softmax(1)[:, 1] if softmax else scores[:, 1] - scores[:, 0]
    if scores.shape != targets.shape or scores.ndim != 1:
        raise ShapeError(
            f"scores are {tuple(scores.shape)} and targets {tuple(targets.shape)};"
            " ROC AUC takes (n, 2) or (n,) and (n,), two classes."
        )
    _check_numbers(scores)
    return scores, targets


def _as_they_are(rows: Tensor) -> tuple[Tensor]:
    return (rows,)


def _per_class(hits: Tensor, targets: Tensor) -> float:
    counts = torch.bincount(targets)
    right = torch.bincount(targets, weights=hits.double(), minlength=len(counts))
    present = counts > 0
    return (right[present] / counts[present]).mean().item()


def _mean_ap(scores: Tensor, targets: Tensor, *, variant: Variant) -> float:
    return average_precisions(scores, targets, variant=variant).nanmean().item()


def _auc(scores: Tensor, targets: Tensor) -> float:
    if targets.min() == targets.max():
        return math.nan
    from sklearn.metrics import roc_auc_score  # a second to import

    return float(roc_auc_score(targets.numpy(), scores.numpy()))


def _check(scores: Tensor, targets: Tensor, *, one_of_many: bool) -> None:
    wanted = scores.shape[:1] if one_of_many else scores.shape
    if scores.ndim != 2 or targets.shape != wanted:
        rule = "(n, K) and (n,), one class a row" if one_of_many else "(n, K) both, several labels a row"
        raise ShapeError(f"scores are {tuple(scores.shape)} and targets {tuple(targets.shape)}; they must be {rule}.")
    if one_of_many and len(targets) and not (targets.min() >= 0 and targets.max() < scores.shape[1]):
        raise ShapeError(
            f"targets lie in {int(targets.min())} to {int(targets.max())} but scores are of {scores.shape[1]} classes."
            " Labels count from 0; map or shift them first."
        )
    _check_numbers(scores)


def _check_numbers(scores: Tensor) -> None:
    if scores.isnan().any():
        row = int(scores.isnan().nonzero()[0, 0])
        raise DataError(f"scores of row {row} are not a number. The features or the classifier are broken there.")


def _average(name: str, unit: str = "", *, higher_is_better: bool = False) -> Metric:
    """Mean over images of one value each."""
    return Metric(name, _as_they_are, float, "mean", higher_is_better, unit)


def _map(name: str, variant: Variant, *, softmax: bool = False) -> Metric:
    return Metric(name, partial(_multi_label, softmax=softmax), partial(_mean_ap, variant=variant))


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("top1", _hits, float, "mean"),
        Metric("top5", partial(_hits, k=5), float, "mean"),
        Metric("top1_of_sets", _hits_of_sets, float, "mean"),
        Metric("mean_per_class", _hits_with_class, _per_class),
        _map("map11", "sklearn"),
        _map("map11_softmax", "sklearn", softmax=True),
        _map("map11_devkit", "devkit"),
        _map("map", "area"),
        Metric("roc_auc", _binary, _auc),
        Metric("roc_auc_softmax", partial(_binary, softmax=True), _auc),
        Metric("miou", _as_they_are, mean_iou, "sum"),
        Metric("class_accuracy", _as_they_are, class_accuracy, "sum"),
        Metric("overall_accuracy", _as_they_are, overall_accuracy, "sum"),
        *(_average(name, "share", higher_is_better=True) for name in ("delta1", "delta2", "delta3")),
        _average("rmse", "m"),
        _average("mce"),
        *(_average(name) for name in ("abs_rel", "sq_rel", "rmse_log", "log10", "silog", "silog_half")),
    )
}
"""Metrics by name. `map11_softmax` and `roc_auc_softmax` are ELEVATER's (trap 6)."""
