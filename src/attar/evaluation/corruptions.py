"""Mean corruption error of a classifier on ImageNet-C, with an interval (spec evaluation §1.7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.errors import DataError
from attar.evaluation.intervals import bootstrap_interval
from attar.evaluation.metrics import METRICS
from attar.evaluation.protocols import Score
from attar.evaluation.robustness import SEVERITIES, alexnet_errors, corruption_errors
from attar.evaluation.store import Features


def score_corruptions(
    features: Mapping[str, Features],
    logits: Callable[[Features], Tensor],
    protocol: dict[str, Any],
    *,
    seed: int,
) -> Score:
    """mCE with AlexNet's errors, and the corruption errors beside it.

    The interval draws photos, each with all its corrupted versions: these are no independent images.

    Args:
        features: By `CORRUPTION/SEVERITY`, all 15 x 5, of the same photos in the same order.
        logits: From features to (n, 1000).
        protocol: Settings for the record.
        seed: Names the draws.

    Raises:
        DataError: If a split is missing, or no photo could be read in all of them.
    """
    hits = {split: METRICS["top1"].per_row(logits(one), one.labels)[0] for split, one in features.items()}
    wrong = {split: 1 - right.double().mean().item() for split, right in hits.items()}
    splits = {name: [f"{name}/{severity}" for severity in range(1, SEVERITIES + 1)] for name in alexnet_errors()}
    errors = {name: [wrong[split] for split in five if split in wrong] for name, five in splits.items()}
    by_corruption = corruption_errors(errors)
    value = sum(by_corruption.values()) / len(by_corruption)
    shares = _shares(hits, {split: one.positions.numpy() for split, one in features.items()})
    interval = bootstrap_interval(METRICS["mce"], shares, seed=seed)
    return Score("mce", value, interval, len(shares), protocol, {"by_corruption": by_corruption, "errors": errors})


def _shares(hits: Mapping[str, Tensor], positions: Mapping[str, np.ndarray[Any, Any]]) -> Tensor:
    """(n,) float64: what each photo that was read in all splits adds; their mean is mCE."""
    common = next(iter(positions.values()))
    for other in positions.values():
        common = np.intersect1d(common, other, assume_unique=True)
    if len(common) == 0:
        raise DataError("no photo could be read in all splits of ImageNet-C. Unpack its archives once more.")
    total = torch.zeros(len(common), dtype=torch.float64)
    for split, right in hits.items():
        reference = alexnet_errors()[split.split("/")[0]]
        here = torch.from_numpy(np.searchsorted(positions[split], common))
        total += (~right[here]).double() / sum(reference)
    return total / len(alexnet_errors())
