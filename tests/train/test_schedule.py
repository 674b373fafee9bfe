from __future__ import annotations

import pytest

from attar.config import OptimConfig
from attar.train import Schedule, base_lr, cosine_lr


@pytest.mark.parametrize(
    ("epoch", "lr"),
    [
        (0, 1e-6),
        (1, 2.008e-4),
        (2, 4.006e-4),
        (3, 6.004e-4),
        (4, 8.002e-4),
        (5, 9.993216e-4),
        (10, 9.972883e-4),
        (75, 8.550179e-4),
        (100, 7.525e-4),
        (150, 5.05e-4),
        (200, 2.575e-4),
        (225, 1.549821e-4),
        (250, 7.631743e-5),
        (298, 1.010856e-5),
        (299, 1.002714e-5),
    ],
)
def test_cosine_has_the_papers_values(epoch: int, lr: float) -> None:
    # oracle 6.6; catches a cosine shifted by the warm-up (peak 1e-3 at epoch 5) and one that ends at 0
    found = cosine_lr(epoch, total=300, warmup=5, base=1e-3, warmup_lr=1e-6, floor=1e-5)
    assert found == pytest.approx(lr, rel=1e-6)


@pytest.mark.parametrize(
    ("base", "epoch", "lr"),
    [(5e-4, 5, 4.996642e-4), (5e-4, 150, 2.55e-4), (2.5e-4, 5, 2.498355e-4), (2.5e-4, 150, 1.3e-4)],
)
def test_cosine_at_other_base_rates(base: float, epoch: int, lr: float) -> None:
    assert cosine_lr(epoch, total=300, warmup=5, base=base, warmup_lr=1e-6, floor=1e-5) == pytest.approx(lr, rel=1e-6)


@pytest.mark.parametrize(("batch_size", "lr"), [(1024, 1e-3), (512, 5e-4), (256, 2.5e-4)])
def test_learning_rate_is_linear_in_the_batch(batch_size: int, lr: float) -> None:
    # oracle 6.7; catches DeiT's division by 1024 and a square root
    assert base_lr(OptimConfig(), batch_size) == pytest.approx(lr)
    assert base_lr(OptimConfig(lr=3e-4), batch_size) == 3e-4


def test_paper_schedule_runs_the_first_two_epochs_at_the_warmup_rate() -> None:
    schedule = Schedule(1e-3, 300 * 10, 10.0, OptimConfig(schedule="paper"))
    assert schedule.at(0) == schedule.at(9) == schedule.at(10) == schedule.at(19) == pytest.approx(1e-6)
    assert schedule.at(20) == pytest.approx(2.008e-4)
    assert schedule.at(2999) == pytest.approx(1.010856e-5)  # the last epoch uses lr(298)


def test_step_schedule_moves_every_step_and_agrees_with_the_epoch_values() -> None:
    schedule = Schedule(1e-3, 300 * 10, 10.0, OptimConfig())
    assert schedule.at(10) == pytest.approx(2.008e-4)
    assert schedule.at(1500) == pytest.approx(5.05e-4)
    assert schedule.at(5) < schedule.at(6) < schedule.at(7)


def test_warmup_takes_at_most_a_tenth_of_a_short_run() -> None:
    schedule = Schedule(1e-3, 100, 100.0, OptimConfig(warmup_epochs=5))
    assert schedule.at(9) < schedule.at(10)
    assert schedule.at(10) == max(schedule.at(step) for step in range(100))


def test_a_tiny_learning_rate_is_never_below_itself() -> None:
    schedule = Schedule(2e-6, 100, 10.0, OptimConfig())
    assert max(schedule.at(step) for step in range(100)) <= 2e-6


def test_the_schedule_of_dime_fm() -> None:
    # oracle 6.5 of spec dime_fm: 4 of 100 epochs of warm-up, the cosine counted from step 0
    config = OptimConfig(lr=8e-4, warmup_lr=4e-6, min_lr=4e-5, warmup_epochs=4)
    schedule = Schedule(8e-4, 100 * 50, 50.0, config)
    found = [schedule.at(step) for step in (0, 100, 200, 2500, 5000)]
    assert found == pytest.approx([4e-6, 4.02e-4, 7.970e-4, 4.2e-4, 4e-5], rel=1e-4)
