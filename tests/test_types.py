"""A batch on its way to a device: the same numbers everywhere, nothing that a step needs is left behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attar.types import Batch, Erased, unit_interval

CPU = torch.device("cpu")


def batch_of(views: torch.Tensor, **more: object) -> Batch:
    rows = torch.arange(len(views))
    return Batch(views, rows, rows, rows, 0, len(views), **more)


def test_bytes_become_the_floats_that_numpy_makes_of_them():
    levels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(unit_interval(torch.from_numpy(levels)).numpy(), levels.astype(np.float32) / np.float32(255))


@pytest.mark.gpu
def test_a_gpu_makes_the_same_floats():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(unit_interval(levels.cuda()).cpu(), unit_interval(levels))


def test_noise_goes_where_its_box_lies():
    noise = torch.arange(3 * 2 * 1 + 3 * 1 * 4).float() - 5
    erased = Erased(((0, 1, 2, 2, 1), (2, 3, 0, 1, 4)), noise)
    views = batch_of(torch.full((3, 3, 4, 5), 51, dtype=torch.uint8), erased=erased).to(CPU).views
    expected = torch.full((3, 3, 4, 5), 0.2)
    expected[0, :, 1:3, 2:3] = noise[:6].view(3, 2, 1)
    expected[2, :, 3:4, 0:4] = noise[6:].view(3, 1, 4)
    assert torch.equal(views, expected)


def test_views_that_are_floats_stay_as_they_are():
    views = torch.rand(2, 3, 4, 4)
    assert torch.equal(batch_of(views).to(CPU).views, views)


@pytest.mark.gpu
def test_all_that_a_gpu_fetches_is_pinned():
    erased = Erased(((0, 0, 0, 1, 1),), torch.zeros(3))
    pinned = batch_of(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), erased=erased, labels=torch.zeros(2)).pin_memory()
    assert all(tensor.is_pinned() for tensor in (pinned.views, pinned.labels, pinned.erased.noise))
