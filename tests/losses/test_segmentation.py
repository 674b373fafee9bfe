"""Losses on maps by hand: spec task_transfer O2, and what must not count."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from attar.errors import ShapeError
from attar.losses import pixel_cross_entropy, pixel_kl_divergence

TEACHER = torch.tensor([[[[2.0, 0.0, 0.0]], [[0.0, 0.0, 2.0]]]])  # (1, 2, 1, 3): (2,0), (0,0), (0,2)
STUDENT = torch.zeros(1, 2, 1, 3)


def test_kl_is_the_mean_over_pixels_and_not_their_sum() -> None:
    # per pixel .327813, 0, .327813
    assert pixel_kl_divergence(STUDENT, TEACHER).tolist() == pytest.approx([0.218542], abs=1e-6)
    wrong = F.kl_div(STUDENT.log_softmax(1), TEACHER.softmax(1), reduction="batchmean").item()
    assert wrong == pytest.approx(0.655627, abs=1e-6)  # divides by images only


def test_padding_leaves_the_denominator_too() -> None:
    counts = torch.tensor([[[True, False, True]]])
    assert pixel_kl_divergence(STUDENT, TEACHER, counts=counts).tolist() == pytest.approx([0.327813], abs=1e-6)
    assert pixel_kl_divergence(STUDENT, TEACHER, counts=counts & False).tolist() == [0.0]


def test_each_image_counts_the_same_however_many_of_its_pixels_do() -> None:
    # a mean over all pixels of the batch would be (2 * .327813 + 0) / 3 = .2185 for both
    counts = torch.tensor([[[True, False, True]], [[False, True, False]]])
    found = pixel_kl_divergence(STUDENT.expand(2, -1, -1, -1), TEACHER.expand(2, -1, -1, -1), counts=counts)
    torch.testing.assert_close(found, torch.tensor([0.327813, 0.0]), atol=1e-6, rtol=0)


def test_the_teacher_is_resized_before_its_softmax() -> None:
    # logits (8,0) and (0,0) meet in (4,0); shares .9997 and .5 would meet in .75, log odds 1.1
    teacher = torch.tensor([[[[8.0, 0.0]], [[0.0, 0.0]]]])
    same = torch.tensor([[[[4.0]], [[0.0]]]])
    assert pixel_kl_divergence(same, teacher).item() == pytest.approx(0, abs=1e-6)
    blurred = torch.tensor([[[[math.log(0.75 / 0.25)]], [[0.0]]]])
    assert pixel_kl_divergence(blurred, teacher).item() > 0.1


def test_temperature_softens_both_and_its_square_multiplies() -> None:
    expected = 4 * pixel_kl_divergence(STUDENT / 2, TEACHER / 2)
    torch.testing.assert_close(pixel_kl_divergence(STUDENT, TEACHER, temperature=2.0), expected)


def test_void_pixels_count_nowhere() -> None:
    logits = torch.tensor([[[[0.0, 0.0]], [[0.0, 9.0]]]])
    labels = torch.tensor([[[0, 255]]])
    assert pixel_cross_entropy(logits, labels).item() == pytest.approx(math.log(2), rel=1e-6)
    empty = pixel_cross_entropy(logits.requires_grad_(), torch.full_like(labels, 255))
    empty.sum().backward()
    assert empty.tolist() == [0.0]
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


def test_logits_are_brought_to_the_size_of_the_annotation() -> None:
    logits = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (2, 6, 6), generator=torch.Generator().manual_seed(1))
    large = F.interpolate(logits, size=(6, 6), mode="bilinear")
    expected = torch.stack([F.cross_entropy(x[None], y[None]) for x, y in zip(large, labels, strict=True)])
    torch.testing.assert_close(pixel_cross_entropy(logits, labels), expected)


def test_other_classes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(1, 2, 1, 3\).*\(1, 3, 1, 3\)"):
        pixel_kl_divergence(STUDENT, torch.zeros(1, 3, 1, 3))
