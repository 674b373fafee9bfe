"""Cross-entropy and KL divergence by hand, and why T^2 stands before the latter."""

import math

import pytest
import torch

from attar.errors import ShapeError
from attar.losses import cross_entropy, kl_divergence


def log(*shares):
    return torch.tensor([shares]).log()


def test_cross_entropy_is_minus_the_log_share_image_by_image():
    logits = torch.cat([log(0.7, 0.2, 0.1), log(0.7, 0.2, 0.1) + 5])  # a constant changes nothing
    found = cross_entropy(logits, torch.tensor([0, 2]))
    torch.testing.assert_close(found, torch.tensor([-math.log(0.7), -math.log(0.1)]))


def test_kl_is_zero_at_equality_and_not_changed_by_a_constant():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    for temperature in (0.5, 1.0, 8.0):
        found = kl_divergence(logits + 3, logits, temperature=temperature)
        torch.testing.assert_close(found, torch.zeros(5), rtol=0, atol=1e-5 * temperature**2)


def test_kl_of_a_uniform_teacher_is_that_of_the_student_from_it_and_not_the_other_way():
    # 0.5 ln(0.5/0.75) + 0.5 ln(0.5/0.25) = 0.1438; the other way round it would be 0.1308
    found = kl_divergence(log(0.75, 0.25), torch.zeros(1, 2))
    assert found.item() == pytest.approx(0.5 * math.log(4 / 3), rel=1e-5)


def test_temperature_softens_both_sides_and_its_square_multiplies():
    # at T = 2 the shares 0.8, 0.2 become 2/3, 1/3 and the uniform ones stay
    found = kl_divergence(torch.zeros(1, 2), log(0.8, 0.2), temperature=2.0)
    expected = 4 * (2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def gradient(temperature):
    student = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[-1.0, 1.5, 0.5]], dtype=torch.float64)
    kl_divergence(student, teacher, temperature=temperature).sum().backward()
    return student.grad


def test_the_square_keeps_the_size_of_the_gradient():
    # towards high T it is the difference of centred logits over K (Hinton et al. 2015, eq. 4), not 1/T^2 of that
    difference = torch.tensor([[2.0, -3.5, 0.0]], dtype=torch.float64)
    limit = (difference - difference.mean()) / 3
    torch.testing.assert_close(gradient(1e4), limit, rtol=1e-3, atol=1e-6)
    assert 0.3 < gradient(1.0).norm() / limit.norm() < 3


def test_half_precision_is_compared_in_float32_and_float64_stays():
    # log-softmax of 300 classes in bfloat16 would be off by a percent
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(1)).bfloat16()
    labels = torch.tensor([0, 1, 2, 299])
    for found, exact in (
        (cross_entropy(logits, labels), cross_entropy(logits.double(), labels)),
        (kl_divergence(logits, logits.flip(0)), kl_divergence(logits.double(), logits.flip(0).double())),
    ):
        assert (found.dtype, exact.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


def test_logits_far_apart_stay_finite():
    sure, opposite = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    assert kl_divergence(sure, opposite).item() == pytest.approx(1e4)
    assert kl_divergence(sure, sure).item() == 0.0


def test_classes_must_agree_even_where_they_would_broadcast():
    with pytest.raises(ShapeError, match=r"\(4, 3\).*\(4, 1\)"):
        kl_divergence(torch.zeros(4, 3), torch.zeros(4, 1))
