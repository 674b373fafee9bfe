from __future__ import annotations

import statistics

import pytest
import torch
from torch import Tensor

from attar.errors import DataError
from attar.evaluation.few_shot import FewShot, few_of_each_class, probe_few_shot
from attar.utils.seeding import torch_generator


def clusters(count: int, seed: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % 3
    means = torch.randn(3, 8, generator=torch_generator(0, "means"))
    return means[labels] + 0.8 * torch.randn(count, 8, generator=torch_generator(seed, "noise")), labels


def top1(scores: Tensor, targets: Tensor) -> float:
    return (scores.argmax(1) == targets).double().mean().item()


def test_each_class_gives_as_many_images() -> None:
    labels = torch.tensor([0] * 50 + [2] * 7 + [5] * 5)
    rows = few_of_each_class(labels, 5, seed=0)
    assert torch.bincount(labels[rows], minlength=6).tolist() == [5, 0, 5, 0, 0, 5]
    assert len(rows.unique()) == 15  # drawn without replacement


def test_a_draw_is_named_by_its_seed_and_class() -> None:
    labels = torch.arange(60) % 3
    rows = few_of_each_class(labels, 4, seed=0)
    assert torch.equal(rows, few_of_each_class(labels, 4, seed=0))
    assert not torch.equal(rows, few_of_each_class(labels, 4, seed=1))
    fewer = few_of_each_class(torch.where(labels == 1, 0, labels), 4, seed=0)  # class 2 keeps its images
    assert torch.equal(rows[labels[rows] == 2], fewer[labels[fewer] == 2])


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


def test_too_few_images_are_an_error() -> None:
    with pytest.raises(DataError, match="class 1 has 3 images, fewer than shots=4"):
        few_of_each_class(torch.tensor([0] * 9 + [1] * 3), 4, seed=0)
