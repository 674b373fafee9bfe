"""Average precision: the worked examples of spec evaluation §6.1, scikit-learn as reference, and invariants."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve
from torch import Tensor

from attar.evaluation.precision import Variant, average_precisions

VARIANTS = get_args(Variant)


def ap(scores: list[float], targets: list[int], variant: Variant) -> float:
    columns = torch.tensor(scores)[:, None], torch.tensor(targets)[:, None].bool()
    return average_precisions(*columns, variant=variant).item()


def drawn(seed: int, *, rows: int = 25, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Scores with many ties, and labels with a positive in each class."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(rows, classes, generator=generator) < 0.3
    targets[:1] = True
    return torch.randint(12, (rows, classes), generator=generator).float(), targets


FIRST = ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], [1, 0, 1, 1, 0, 0, 1, 0])
LATE = ([0.9, 0.8, 0.1], [0, 0, 1])
TIED = ([0.5] * 4, [1, 0, 1, 0])
ROUNDING = ([float(-i) for i in range(11)], [1, 1, 1, 0, *[1] * 7])


@pytest.mark.parametrize(
    ("example", "variant", "expected"),
    [
        (FIRST, "sklearn", 0.7694805),
        (FIRST, "devkit", 0.7694805),
        (FIRST, "area", 0.7470238),
        (LATE, "sklearn", 0.3939394),  # without the point (recall 0, precision 1): 0.3333333
        (LATE, "devkit", 0.3333333),  # with it: 0.3939394
        (TIED, "sklearn", 0.5454545),  # equals let in one by one, in the order of rows: 0.8484848
        (TIED, "devkit", 0.5),
        (ROUNDING, "sklearn", 0.9338843),  # recall 0.3 is just below a point of numpy's grid; with tolerance 0.9421488
        (ROUNDING, "devkit", 0.9421488),
    ],
)
def test_the_worked_examples(example: tuple[list[float], list[int]], variant: Variant, expected: float) -> None:
    assert ap(*example, variant) == pytest.approx(expected, abs=1e-7)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_the_curve_is_scikit_learns(seed: int) -> None:
    """Other ways to treat ties, or other recalls, give other precisions."""
    scores, targets = drawn(seed)
    eleven, area = (average_precisions(scores, targets, variant=v).tolist() for v in ("sklearn", "area"))
    for column in range(3):
        y, s = targets[:, column].numpy(), scores[:, column].numpy()
        precision, recall, _ = precision_recall_curve(y, s)
        points = [precision[recall >= t].max() for t in np.linspace(0, 1, 11)]
        assert eleven[column] == pytest.approx(np.mean(points), abs=1e-12)
        assert area[column] == pytest.approx(average_precision_score(y, s), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(VARIANTS))
def test_order_of_rows_and_scale_of_scores_do_not_matter(seed: int, variant: Variant) -> None:
    scores, targets = drawn(seed)
    expected = average_precisions(scores, targets, variant=variant)
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
    for rows, labels in (
        (scores[order], targets[order]),
        ((scores / 4).exp(), targets),
        (scores.repeat(2, 1), targets.repeat(2, 1)),
    ):
        torch.testing.assert_close(average_precisions(rows, labels, variant=variant), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_perfect_ranking_reaches_one_and_no_positive_is_undefined(variant: Variant) -> None:
    assert ap([3, 2, 1, 0], [1, 1, 0, 0], variant) == 1.0
    assert np.isnan(ap([3, 2], [0, 0], variant))
