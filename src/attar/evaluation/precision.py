"""Average precision of ranked rows, in the three ways that tables of VOC2007 use (spec evaluation §0 trap 5, §6.1)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Variant = Literal["sklearn", "devkit", "area"]

_POINTS = torch.from_numpy(np.linspace(0, 1, 11))  # torch's own linspace gives other last digits, which count here


def average_precisions(scores: Tensor, targets: Tensor, *, variant: Variant) -> Tensor:
    """(K,) float64 average precision of each class, NaN for one without a positive row.

    Rows of equal score enter together, so that no variant depends on the order of the rows.

    - `sklearn`: mean over recalls t = 0, 0.1, ... 1 of the highest precision at a recall of t or more, on the curve of
      scikit-learn, which starts with precision 1 at recall 0, and with recalls compared as they round. Proteus and
      ELEVATER (vision-evaluation) report it.
    - `devkit`: the same on the ranking alone and with exact recalls; the figure that the VOC2007 devkit defines.
    - `area`: not interpolated, sum of precision times gain of recall; scikit-learn's `average_precision_score` and
      CLIP_benchmark.

    Args:
        scores: (n, K), higher for rows that are more likely positive.
        targets: (n, K) bool.
        variant: One of the three.
    """
    positives = targets.sum(0)
    hits, rows = (values.T for values in _at_ranks(scores, targets))  # (K, n)
    precision = hits / rows
    if variant == "area":
        is_positive = targets.gather(0, scores.argsort(dim=0, descending=True, stable=True)).T
        return (precision * is_positive).sum(1) / positives
    if variant == "sklearn":
        recall = hits / positives[:, None]
        at_points = [_highest(precision, recall >= t) for t in _POINTS]
        at_points[0] = torch.ones_like(at_points[0])
    else:
        at_points = [_highest(precision, 10 * hits >= t * positives[:, None]) for t in range(11)]
    return torch.where(positives > 0, torch.stack(at_points).mean(0), torch.nan)


def _highest(precision: Tensor, allowed: Tensor) -> Tensor:
    """(K,) highest precision among the allowed points, 0 where there are none."""
    return torch.where(allowed, precision, 0.0).amax(1)


def _at_ranks(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Positive and all rows retrieved, (n, K) float64 each, when each row in turn is let in with all its equals."""
    ordered, order = scores.sort(dim=0, descending=True, stable=True)
    hits = targets.gather(0, order).double().cumsum(0)
    count = len(scores)
    is_last = torch.ones_like(ordered, dtype=torch.bool)
    is_last[:-1] = ordered[:-1] != ordered[1:]
    position = torch.arange(count, device=scores.device)[:, None].expand_as(ordered)
    last = torch.where(is_last, position, count).flip(0).cummin(0).values.flip(0)  # of the equals of each row
    return hits.gather(0, last), last.double() + 1
