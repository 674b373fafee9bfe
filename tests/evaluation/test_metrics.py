"""Metrics of scores and targets: worked examples of spec evaluation §6, invariants of §6, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import recall_score
from torch import Tensor

from attar.errors import DataError, ShapeError
from attar.evaluation.metrics import (
    METRICS,
    average_precision,
    mean_average_precision,
    mean_per_class,
    roc_auc,
    top1,
    top1_of_sets,
    topk,
)


def one_hot(classes: list[int], num_classes: int) -> Tensor:
    return torch.eye(num_classes)[classes]


def drawn(seed: int, *, rows: int = 30, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Scores with ties, and a class for each row; the last class is absent."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(6, (rows, classes), generator=generator).float()
    return scores, torch.randint(classes - 1, (rows,), generator=generator)


def test_the_worked_example_of_mean_per_class() -> None:
    """The mean over all five classes, of which two are absent, is 0.45."""
    targets = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    scores = one_hot([0, 0, 0, 1, 1, 0, 2], 5)
    assert top1(scores, targets) == pytest.approx(0.7142857, abs=1e-7)
    assert mean_per_class(scores, targets) == pytest.approx(0.75, abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_mean_per_class_is_scikit_learns_macro_recall(seed: int) -> None:
    """Macro precision, and absent classes as 0, give other numbers."""
    scores, targets = drawn(seed)
    expected = recall_score(targets, scores.argmax(1), labels=targets.unique(), average="macro")
    assert mean_per_class(scores, targets) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_on_as_many_rows_of_each_class_it_is_top1(seed: int) -> None:
    scores, _ = drawn(seed, rows=32)
    targets = torch.arange(32) % 4
    assert mean_per_class(scores, targets) == pytest.approx(top1(scores, targets), abs=1e-12)


def test_topk_counts_the_k_highest() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).expand(4, 4)
    targets = torch.arange(4)
    assert [topk(scores, targets, k=k) for k in (1, 2, 4)] == [0.25, 0.5, 1.0]


def test_equal_scores_do_not_all_win() -> None:
    """Features that have collapsed give equal scores; a count of strictly higher ones would call every row right."""
    scores, targets = torch.zeros(10, 5), torch.arange(10) % 5
    assert top1(scores, targets) == 0.2
    assert topk(scores, targets, k=2) == 0.4


def test_sets_of_labels_leave_out_rows_without_one() -> None:
    """ImageNet-ReaL: counted as wrong, the third row would make it 1/3; the first row's second label counts."""
    targets = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    scores = one_hot([2, 0, 1], 3)
    assert top1_of_sets(scores, targets) == 0.5


def test_the_worked_examples_of_roc_auc() -> None:
    scores = torch.tensor([0.1, 0.4, 0.35, 0.8])
    assert roc_auc(scores, torch.tensor([0, 0, 1, 1])) == 0.75
    assert roc_auc(-scores, torch.tensor([0, 0, 1, 1])) == 0.25
    assert roc_auc(torch.arange(8, 0, -1) / 10, torch.tensor([1, 0, 1, 1, 0, 0, 1, 0])) == 0.6875
    assert roc_auc(torch.zeros(4), torch.tensor([1, 0, 1, 0])) == 0.5


def test_two_columns_count_by_their_difference() -> None:
    """The second column alone would order the rows the other way round."""
    scores = torch.tensor([[5.0, 2.0], [0.0, 1.0]])
    targets = torch.tensor([0, 1])
    assert roc_auc(scores, targets) == 1.0
    assert roc_auc(scores, targets, softmax=True) == 1.0


def test_elevaters_softmax_changes_the_order_of_images() -> None:
    """A positive with high scores all over loses to a negative whose other scores are low (trap 6)."""
    scores = torch.tensor([[3.0, 3.0], [2.0, -2.0]])
    targets = torch.tensor([[1, 1], [0, 0]])
    assert mean_average_precision(scores, targets, variant="area") == 1.0
    assert mean_average_precision(scores, targets, variant="area", softmax=True) == pytest.approx((1 / 2 + 1) / 2)
    assert METRICS["map11_softmax"](scores, targets) < METRICS["map11"](scores, targets) == 1.0


def test_a_class_without_a_positive_does_not_count() -> None:
    scores = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    targets = torch.tensor([[1, 0], [0, 0]])
    assert mean_average_precision(scores, targets) == 1.0  # as 0 it would halve the mean


def test_average_precision_is_that_of_one_class() -> None:
    assert average_precision(torch.tensor([0.9, 0.8, 0.1]), torch.tensor([0, 0, 1])) == pytest.approx(0.3939394)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["top1", "top5", "mean_per_class", "map11", "map", "map11_devkit"]))
def test_order_and_copies_of_rows_do_not_matter(seed: int, name: str) -> None:
    scores, targets = drawn(seed, classes=6)
    if name.startswith("map"):
        targets = one_hot(targets.tolist(), 6)
    metric, order = METRICS[name], torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    expected = metric(scores, targets)
    assert metric(scores[order], targets[order]) == pytest.approx(expected, abs=1e-12)
    assert metric(torch.cat([scores] * 3), torch.cat([targets] * 3)) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 29))
def test_parts_put_together_are_the_whole(seed: int, cut: int) -> None:
    scores, targets = drawn(seed)
    for metric in (METRICS["top1"], METRICS["mean_per_class"]):
        parts = [metric.per_row(scores[s], targets[s]) for s in (slice(cut), slice(cut, None))]
        together = metric.of_rows(*(torch.cat(part) for part in zip(*parts, strict=True)))
        assert together == metric(scores, targets)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_auc_only_knows_the_order(seed: int) -> None:
    scores, targets = drawn(seed)
    margin, positive = scores[:, 0], (targets > 0).long()
    positive[:2] = torch.tensor([0, 1])
    expected = roc_auc(margin, positive)
    assert roc_auc((margin / 3).exp(), positive) == expected
    assert roc_auc(-margin, positive) == pytest.approx(1 - expected, abs=1e-12)


def test_dense_metrics_take_what_each_image_gave() -> None:
    confusions = torch.tensor([[[3, 1], [0, 0]], [[0, 0], [0, 1]]])
    assert METRICS["miou"](confusions) == pytest.approx((3 / 4 + 1 / 2) / 2)  # a mean over images gives 0.6875
    assert METRICS["rmse"](torch.tensor([0.2, 0.4])) == pytest.approx(0.3)
    assert not METRICS["rmse"].higher_is_better
    assert METRICS["delta1"].higher_is_better


@pytest.mark.parametrize(
    ("name", "scores", "targets", "message"),
    [
        ("top1", torch.zeros(2, 3), torch.tensor([1, 3]), "targets lie in 1 to 3 but scores are of 3 classes"),
        ("top1", torch.zeros(2, 3), torch.tensor([-1, 0]), "Labels count from 0"),
        ("top1", torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), r"\(2, 3\) and targets \(3,\)"),
        ("map11", torch.zeros(2, 3), torch.tensor([0, 1]), "several labels a row"),
        ("roc_auc", torch.zeros(2, 3), torch.tensor([0, 1]), r"ROC AUC takes \(n, 2\)"),
    ],
)
def test_scores_and_targets_that_do_not_go_together(name: str, scores: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        METRICS[name](scores, targets)


def test_what_is_undefined_is_an_error_and_not_a_number() -> None:
    """Not a number is neither higher nor lower, so that a count of higher scores would call the row right."""
    broken = torch.tensor([[0.0, 1.0], [math.nan, 0.0]])
    with pytest.raises(DataError, match="scores of row 1 are not a number"):
        top1(broken, torch.tensor([0, 0]))
    with pytest.raises(DataError, match="scores of row 1 are not a number"):
        roc_auc(broken, torch.tensor([0, 1]))
    with pytest.raises(DataError, match="top1 of no rows"):
        top1(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(DataError, match="undefined on these 2 rows"):
        roc_auc(torch.rand(2), torch.tensor([1, 1]))
    with pytest.raises(DataError, match="undefined on these 2 rows"):
        mean_average_precision(torch.rand(2, 2), torch.zeros(2, 2))


def test_always_the_same_class() -> None:
    # oracle 6.7 of spec dime_fm: accuracy 0.75 where the mean per class is 0.5; no order at all is an AUC of 0.5
    targets = torch.tensor([0, 0, 0, 1])
    constant = one_hot([0, 0, 0, 0], 2)
    assert top1(constant, targets) == 0.75
    assert mean_per_class(constant, targets) == 0.5
    assert roc_auc(constant, targets) == 0.5


def test_auc_of_two_classes_looks_at_the_second() -> None:
    # oracle 6.7: with the first column it would be 0
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    assert roc_auc(scores, torch.tensor([0, 0, 1])) == 1.0
