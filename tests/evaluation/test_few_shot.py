from __future__ import annotations

import statistics

import pytest
import torch
from torch import Tensor

from attar.evaluation.few_shot import FewShot, probe_few_shot
from attar.evaluation.metrics import top1
from attar.utils.seeding import torch_generator


def clusters(count: int, seed: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % 3
    means = torch.randn(3, 8, generator=torch_generator(0, "means"))
    return means[labels] + 0.8 * torch.randn(count, 8, generator=torch_generator(seed, "noise")), labels


def test_more_images_are_better_and_scatter_less() -> None:
    train, test = clusters(300, 0), clusters(300, 1)
    few, many = (probe_few_shot(train, test, shots=n, seeds=range(5), metric=top1) for n in (1, 50))
    assert many.mean > few.mean
    assert many.spread < few.spread


def test_mean_and_spread_are_over_seeds() -> None:
    found = FewShot(4, (0.5, 0.7, 0.9))
    assert found.mean == pytest.approx(0.7)
    assert found.spread == pytest.approx(statistics.stdev([0.5, 0.7, 0.9]))  # 0.2; 0.163 with n in place of n - 1
    assert FewShot(4, (0.5,)).spread == 0.0
