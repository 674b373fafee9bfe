"""Confusion matrices: the worked example of spec evaluation §6.3, and what must not matter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attar.errors import ShapeError
from attar.evaluation.confusion import class_accuracy, confusion_matrix, mean_iou, overall_accuracy

VOID = 11


def drawn(seed: int, *, num_classes: int = 4) -> tuple[Tensor, Tensor]:
    """(predicted, target) of a small image, a fifth of it void."""
    generator = torch.Generator().manual_seed(seed)
    predicted, target = torch.randint(num_classes, (2, 60), generator=generator)
    return predicted, torch.where(torch.rand(60, generator=generator) < 0.2, 255, target)


def test_the_worked_example() -> None:
    """Dice, accuracy over pixels, void as a class, or the absent class as 0 give other numbers."""
    target = torch.tensor([[0, 0, 1], [1, 255, 2], [2, 2, 255]], dtype=torch.uint8)
    predicted = torch.tensor([[0, 1, 1], [1, 3, 2], [0, 2, 1]])
    confusion = confusion_matrix(predicted, target, num_classes=4)
    assert mean_iou(confusion) == pytest.approx(0.5555556, abs=1e-7)
    assert class_accuracy(confusion) == pytest.approx(0.7222222, abs=1e-7)
    assert overall_accuracy(confusion) == pytest.approx(0.7142857, abs=1e-7)


def test_mean_iou_by_hand() -> None:
    target = torch.tensor([0, 0, 0, 1, 1, 2, VOID, VOID])
    predicted = torch.tensor([0, 0, 1, 1, 1, 0, 2, 0])
    confusion = confusion_matrix(predicted, target, num_classes=3)
    assert confusion.tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]  # transposed, class 0 would miss one too few
    # 2/4, 2/3, 0/1; pixel accuracy 4/6, mean class accuracy 5/9, Dice 22/45; void as wrong: 2/5 for class 0
    assert mean_iou(confusion) == pytest.approx((2 / 4 + 2 / 3 + 0) / 3)


def test_a_class_that_is_nowhere_does_not_count_and_one_only_predicted_does() -> None:
    # class 3 neither in target nor predicted: as 0 it would pull the mean down, as 1 up
    nowhere = confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, 1]), num_classes=4)
    assert mean_iou(nowhere) == 1.0
    predicted_only = confusion_matrix(torch.tensor([0, 2]), torch.tensor([0, 0]), num_classes=3)
    assert mean_iou(predicted_only) == pytest.approx((1 / 2 + 0) / 2)


def test_pixels_are_pooled_over_images() -> None:
    first = confusion_matrix(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1]), num_classes=2)
    second = confusion_matrix(torch.tensor([1]), torch.tensor([1]), num_classes=2)
    pooled = mean_iou(first + second)
    assert pooled == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert pooled != pytest.approx((mean_iou(first) + mean_iou(second)) / 2)  # what a mean over images gives


@pytest.mark.parametrize("void", [VOID, 255])
def test_void_is_left_out_whatever_is_predicted(void: int) -> None:
    target = torch.tensor([[0, void], [1, void]], dtype=torch.uint8)
    for guess in (0, 1, 10):
        predicted = torch.tensor([[0, guess], [1, guess]])
        assert mean_iou(confusion_matrix(predicted, target, num_classes=11)) == 1.0


def test_a_negative_target_is_void() -> None:
    # taken as a class, it would be counted in another class's row
    confusion = confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, -1, 1]), num_classes=2)
    assert confusion.tolist() == [[1, 0], [0, 1]]


def test_a_predicted_class_that_is_none_is_refused() -> None:
    # counted all the same, it would land in the next class's row
    with pytest.raises(ShapeError, match="predicted classes go to 2; there are 2"):
        confusion_matrix(torch.tensor([2]), torch.tensor([0]), num_classes=2)
    with pytest.raises(ShapeError, match=r"prediction is \(2,\) but its annotation is \(3,\)"):
        confusion_matrix(torch.zeros(2), torch.zeros(3), num_classes=2)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.permutations(range(4)), st.integers(1, 59))
def test_names_of_classes_void_and_parts_do_not_matter(seed: int, names: list[int], cut: int) -> None:
    predicted, target = drawn(seed)
    confusion = confusion_matrix(predicted, target, num_classes=4)
    renamed = torch.tensor(names)
    other = confusion_matrix(
        renamed[predicted], torch.where(target == 255, 255, renamed[target.clamp(max=3)]), num_classes=4
    )
    assert mean_iou(other) == pytest.approx(mean_iou(confusion))
    elsewhere = torch.where(target == 255, (predicted + 1) % 4, predicted)
    assert torch.equal(confusion_matrix(elsewhere, target, num_classes=4), confusion)
    parts = [confusion_matrix(predicted[s], target[s], num_classes=4) for s in (slice(cut), slice(cut, None))]
    assert torch.equal(parts[0] + parts[1], confusion)
    assert mean_iou(2 * confusion) == pytest.approx(mean_iou(confusion))  # every image twice
