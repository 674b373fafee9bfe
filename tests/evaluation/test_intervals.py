"""Intervals: the quick ways draw what the plain way draws, and they are as wide as theory says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from attar.errors import ConfigError, DataError
from attar.evaluation.confusion import mean_iou
from attar.evaluation.intervals import bootstrap_interval, wilson_interval
from attar.evaluation.metrics import METRICS, top1
from attar.utils.seeding import torch_generator


def predictions(n: int, *, share: float = 0.7) -> tuple[Tensor, Tensor]:
    """Scores of four classes, right in a given share of the rows."""
    targets = torch.arange(n) % 4
    is_wrong = torch.arange(n) >= round(share * n)
    return torch.eye(4)[(targets + is_wrong) % 4], targets


def test_the_interval_of_a_share_is_that_of_the_binomial() -> None:
    """Deviations of rows instead of their mean, or a 90 % interval, are of another width."""
    low, high = bootstrap_interval(METRICS["top1"], *predictions(400), rounds=20_000, seed=0)
    deviation = (0.7 * 0.3 / 400) ** 0.5
    assert (low, high) == pytest.approx((0.7 - 1.96 * deviation, 0.7 + 1.96 * deviation), abs=0.005)
    assert (low, high) == pytest.approx(wilson_interval(0.7, 400), abs=0.005)


def test_the_quick_way_of_means_is_the_plain_one() -> None:
    scores, targets = predictions(200)
    quick = bootstrap_interval(METRICS["top1"], scores, targets, rounds=2000, seed=0)
    plain = bootstrap_interval(top1, scores, targets, rounds=2000, seed=0)
    assert quick == pytest.approx(plain, abs=0.011)
    errors = torch.rand(50, generator=torch.Generator().manual_seed(0)) ** 2
    quick = bootstrap_interval(METRICS["rmse"], errors, rounds=4000, seed=0)
    plain = bootstrap_interval(lambda drawn: drawn.mean().item(), errors, rounds=4000, seed=0)
    assert quick == pytest.approx(plain, abs=0.006)
    assert plain[0] < errors.mean() < plain[1]


def test_the_quick_way_of_sums_is_the_plain_one() -> None:
    """Exactly: both draw the same images. The mean over images of IoU would lie elsewhere."""
    confusions = torch.randint(9, (30, 3, 3), generator=torch.Generator().manual_seed(0))
    quick = bootstrap_interval(METRICS["miou"], confusions, rounds=200, seed=3)
    drawn = torch.randint(30, (200, 30), generator=torch_generator(3, "bootstrap"))
    plain = np.quantile([mean_iou(confusions[rows].sum(0)) for rows in drawn], [0.025, 0.975])
    assert quick == pytest.approx(tuple(plain), abs=1e-12)


def test_it_widens_with_the_difference_between_images() -> None:
    good, bad = torch.tensor([[5, 0], [0, 5]]), torch.tensor([[3, 2], [2, 3]])
    assert bootstrap_interval(METRICS["miou"], torch.stack([bad] * 6), seed=0) == pytest.approx((3 / 7, 3 / 7))
    low, high = bootstrap_interval(METRICS["miou"], torch.stack([good, bad] * 10), seed=0)
    assert 3 / 7 < low < mean_iou(good + bad) < high < 1


def test_classes_are_drawn_with_their_rows() -> None:
    """Mean per class and AUC, which are no mean of rows; rounds without one of the classes do not count."""
    scores, targets = predictions(60)
    low, high = bootstrap_interval(METRICS["mean_per_class"], scores, targets, rounds=200, seed=0)
    assert low < METRICS["mean_per_class"](scores, targets) < high
    rare = torch.tensor([1, 0, 0, 0, 0, 0])
    low, high = bootstrap_interval(METRICS["roc_auc"], torch.rand(6), rare, rounds=100, seed=0)
    assert 0 <= low <= high <= 1


def test_the_seed_decides_and_nothing_else() -> None:
    rows = predictions(40)
    first, same, other = (bootstrap_interval(METRICS["mean_per_class"], *rows, rounds=50, seed=s) for s in (1, 1, 2))
    assert first == same != other


def test_it_holds_a_few_rounds_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bootstrap_interval(METRICS["mean_per_class"], *predictions(40), rounds=50, seed=1)
    monkeypatch.setattr("attar.evaluation.intervals._TILE", 120)
    assert bootstrap_interval(METRICS["mean_per_class"], *predictions(40), rounds=50, seed=1) == whole


def test_nothing_to_draw_from_is_an_error() -> None:
    with pytest.raises(ConfigError, match="0 bootstrap rounds"):
        bootstrap_interval(METRICS["top1"], *predictions(4), rounds=0, seed=0)
    with pytest.raises(DataError, match="needs rows to draw from"):
        bootstrap_interval(METRICS["top1"], torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), seed=0)
    with pytest.raises(DataError, match="undefined in every bootstrap round"):
        bootstrap_interval(METRICS["roc_auc"], torch.rand(3), torch.ones(3, dtype=torch.long), rounds=5, seed=0)


def test_wilson_stays_within_bounds() -> None:
    assert wilson_interval(1.0, 20)[1] == 1.0
    assert wilson_interval(0.0, 20)[0] == 0.0
