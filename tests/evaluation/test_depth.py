"""Depth: the worked examples of spec evaluation §6.4 and of Proteus §6.15, invariants of §6, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attar.errors import DataError, ShapeError
from attar.evaluation.depth import depth_errors, eigen_crop, gradient_loss, sig_loss, silog_loss, valid_depth
from attar.evaluation.metrics import METRICS

TARGET = torch.tensor([1.0, 2, 4, 8], dtype=torch.float64)
PREDICTED = torch.tensor([1.1, 2.6, 3, 8], dtype=torch.float64)


def errors(predicted: Tensor, target: Tensor, **options: tuple[float, float]) -> dict[str, list[float]]:
    found = depth_errors(predicted, target, valid=target > 0, **options)
    return {name: values.tolist() for name, values in found.items()}


def images(seed: int, *, count: int = 3) -> tuple[Tensor, Tensor]:
    """(predicted, target), some pixels of which the sensor did not see."""
    generator = torch.Generator().manual_seed(seed)
    target = 0.5 + 9 * torch.rand(count, 4, 5, generator=generator)
    predicted = target * (0.5 + torch.rand(count, 4, 5, generator=generator))
    return predicted, torch.where(torch.rand(count, 4, 5, generator=generator) < 0.2, 0.0, target)


def test_the_worked_example() -> None:
    """Ratios one way only, the population's variance, decimal for natural logarithms: each gives another number."""
    found = errors(PREDICTED.view(1, 2, 2), TARGET.view(1, 2, 2))
    expected = {
        "delta1": 0.5,
        "delta2": 1,
        "delta3": 1,
        "rmse": 0.5852350,
        "abs_rel": 0.1625,
        "sq_rel": 0.11,
        "rmse_log": 0.2004246,
        "log10": 0.0700687,
        "silog_half": 0.2000423,
        "silog": 19.9659259,
    }
    assert found.keys() == expected.keys()
    assert all(found[name] == [pytest.approx(value, abs=1e-7)] for name, value in expected.items())


def test_images_are_averaged_after_their_pixels() -> None:
    """Pooled over the four pixels it is 0.5852350."""
    found = depth_errors(PREDICTED.view(2, 1, 2), TARGET.view(2, 1, 2), valid=torch.ones(2, 1, 2, dtype=torch.bool))
    assert METRICS["rmse"](found["rmse"]) == pytest.approx(0.5686115, abs=1e-7)


def test_a_ratio_on_the_threshold_is_outside() -> None:
    target, predicted = torch.tensor([[[1.25, 1.0]]]), torch.tensor([[[1.0, 1.25]]])
    assert errors(predicted, target)["delta1"] == [0]
    assert errors(predicted, target)["delta2"] == [1]


def test_every_error_is_a_metric() -> None:
    for name, values in depth_errors(*images(0), valid=images(0)[1] > 0).items():
        assert METRICS[name](values) == pytest.approx(values.mean().item())
        assert METRICS[name].higher_is_better == name.startswith("delta")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.25, 4))
def test_scale_moves_rmse_and_neither_delta_nor_silog(seed: int, scale: float) -> None:
    predicted, target = images(seed)
    one, other = errors(predicted, target), errors(predicted * scale, target * scale)
    assert other["rmse"] == pytest.approx([scale * value for value in one["rmse"]], rel=1e-5)
    assert other["silog"] == pytest.approx(one["silog"], rel=1e-4)
    assert other["silog_half"] == pytest.approx(one["silog_half"], rel=1e-4)
    shares = [float(torch.tensor(one[f"delta{k}"]).sub(torch.tensor(other[f"delta{k}"])).abs().max()) for k in (1, 2)]
    assert max(shares) <= 1 / 10  # a ratio within rounding of the threshold may change sides


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.2, 5))
def test_a_constant_ratio_is_no_error_of_shape(seed: int, ratio: float) -> None:
    _, target = images(seed)
    found = errors(target * ratio, target)
    assert found["silog"] == pytest.approx([0] * 3, abs=0.1)
    assert found["silog_half"] == pytest.approx([abs(math.log(ratio)) * 0.5**0.5] * 3, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_invalid_pixels_and_the_split_into_batches_do_not_matter(seed: int) -> None:
    predicted, target = images(seed)
    expected = errors(predicted, target)
    assert errors(torch.where(target > 0, predicted, -7.0), target) == expected
    parts = [errors(predicted[s], target[s]) for s in (slice(1), slice(1, None))]
    assert {name: parts[0][name] + parts[1][name] for name in expected} == expected


def test_clamping_is_asked_for() -> None:
    predicted, target = torch.tensor([[[20.0, 0.0]]]), torch.tensor([[[10.0, 0.001]]])
    assert errors(predicted, target, clamp=(1e-3, 10.0))["rmse"] == [pytest.approx(0, abs=1e-6)]
    with pytest.raises(DataError, match="not a positive number"):
        errors(predicted, target)


def test_where_depth_counts() -> None:
    """Eigen's crop is rows 45 to 470 and columns 41 to 600; both ends of the range are excluded."""
    inside = eigen_crop(480, 640)
    assert inside.sum() == 426 * 560
    assert inside[45, 41]
    assert inside[470, 600]
    assert not torch.cat([inside[[44, 471]].flatten(), inside[:, [40, 601]].flatten()]).any()
    assert eigen_crop(240, 320).nonzero()[[0, -1]].tolist() == [[22, 20], [234, 299]]
    depth = torch.tensor([[1e-3, 2e-3, 9.9, 10.0, 0.0]])
    assert valid_depth(depth, eigen=False).tolist() == [[False, True, True, False, False]]
    assert torch.equal(valid_depth(torch.ones(2, 480, 640)), inside.expand(2, 480, 640))


def test_the_worked_examples_of_the_losses() -> None:
    """Without the 1/2 SiLog of a constant ratio is 0; the biased variance makes SigLog 0.2010."""
    target = torch.rand(2, 3, 4) + 0.5
    assert silog_loss(2 * target, target).item() == pytest.approx(0.490129, abs=1e-6)
    assert silog_loss(PREDICTED.view(1, 2, 2), TARGET.view(1, 2, 2)).item() == pytest.approx(0.2000423, abs=1e-6)
    assert sig_loss(PREDICTED.view(1, 2, 2), TARGET.view(1, 2, 2)).item() == pytest.approx(0.2305581, abs=1e-6)


def test_silog_is_the_mean_over_images_and_siglog_pools_them() -> None:
    target = torch.ones(2, 2, 2)
    predicted = target * torch.tensor([2.0, 1.0]).view(2, 1, 1)
    assert silog_loss(predicted, target).item() == pytest.approx(0.490129 / 2, abs=1e-5)
    g = torch.tensor([2.001, 1.001]).repeat_interleave(4).log() - math.log(1.001)
    assert sig_loss(predicted, target).item() == pytest.approx((g.var() + 0.15 * g.mean() ** 2).sqrt().item(), abs=1e-6)
    assert sig_loss(predicted, target, is_warming_up=True).item() == pytest.approx(
        0.15**0.5 * g.mean().item(), abs=1e-6
    )


@pytest.mark.parametrize("loss", [silog_loss, sig_loss])
def test_losses_have_a_gradient_everywhere_and_none_from_invalid_pixels(loss) -> None:  # type: ignore[no-untyped-def]
    """The root of 0 has an infinite slope, which times 0 is not a number."""
    target = torch.tensor([[[1.0, 0.0], [2.0, 3.0]]])
    perfect = target.clone().requires_grad_()
    found = loss(perfect, target)
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-5)
    assert torch.equal(perfect.grad, torch.zeros_like(target))
    predicted = torch.full_like(target, 1.5).requires_grad_()
    loss(predicted, target).backward()
    assert predicted.grad.isfinite().all()
    assert predicted.grad[0, 0, 1] == 0
    assert predicted.grad[0, 1].abs().min() > 0


def test_what_has_no_error_is_refused() -> None:
    with pytest.raises(DataError, match="image 1 of the batch has no valid depth"):
        errors(torch.ones(2, 1, 1), torch.tensor([1.0, 0.0]).view(2, 1, 1))
    with pytest.raises(ShapeError, match=r"all three must be \(B, H, W\)"):
        errors(torch.ones(2, 2), torch.ones(2, 2))


def test_the_gradient_loss_adds_up_slopes_of_four_scales() -> None:
    """A slope of 0.1 a pixel over nine: 8 differences of 0.1, 4 of 0.2, 2 of 0.4 and 1 of 0.8, each over its pixels."""
    predicted, target = torch.exp(0.1 * torch.arange(9.0)).view(1, 1, 9), torch.ones(1, 1, 9)
    expected = 0.8 * (1 / 9 + 1 / 5 + 1 / 3 + 1 / 2)
    assert gradient_loss(predicted, target, eps=0.0).item() == pytest.approx(expected, rel=1e-5)
    assert gradient_loss(predicted.mT, target.mT, eps=0.0).item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_loss_sees_no_factor_and_no_pixel_without_depth() -> None:
    predicted, target = images(0)
    assert gradient_loss(3 * target.clamp(min=1), target.clamp(min=1), eps=0.0).item() == pytest.approx(0, abs=1e-5)
    changed = torch.where(target == 0, 7.0, predicted)
    assert gradient_loss(changed, target) == gradient_loss(predicted, target)
