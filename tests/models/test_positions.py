"""Resampling of position tables, against bicubic interpolation written out as a matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attar.errors import WeightsError
from attar.models.positions import resample_positions


def cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic kernel with its one free parameter."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def plain_bicubic(old: int, new: int, scale: float) -> np.ndarray:
    """(new, old): four taps a point (a = -0.75), borders repeated, `scale` new points per old one."""
    matrix = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) / scale - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[i, np.clip(tap, 0, old - 1)] += cubic(np.array(centre - tap), -0.75)
    return matrix


def antialiased_bicubic(old: int, new: int) -> np.ndarray:
    """(new, old): the kernel (a = -0.5) stretched over the old grid when that is finer, cut at borders, sum one."""
    stretch = max(old / new, 1.0)
    centres = (np.arange(new)[:, None] + 0.5) * old / new
    matrix = cubic((np.arange(old)[None] + 0.5 - centres) / stretch, -0.5)
    return matrix / matrix.sum(1, keepdims=True)


def resampled(table: torch.Tensor, rows: np.ndarray, columns: np.ndarray, num_prefix: int) -> torch.Tensor:
    side = rows.shape[1]
    image = table[0, num_prefix:].double().numpy().reshape(side, side, -1)
    patches = np.einsum("yi,xj,ijd->yxd", rows, columns, image).reshape(1, -1, table.shape[-1])
    return torch.cat([table[:, :num_prefix].double(), torch.from_numpy(patches)], dim=1)


def random_table(side: int, num_prefix: int) -> torch.Tensor:
    return torch.randn(1, num_prefix + side * side, 3, generator=torch.Generator().manual_seed(side))


GRIDS = [(37, (16, 16)), (37, (20, 14)), (8, (5, 5)), (5, (9, 7)), (16, (37, 37))]


@pytest.mark.parametrize(("side", "grid"), GRIDS)
def test_official_scales_by_the_size_plus_a_tenth_without_antialias(side, grid):
    table = random_table(side, 1)
    wanted = resampled(table, *(plain_bicubic(side, size, (size + 0.1) / side) for size in grid), 1)
    found = resample_positions(table, grid, num_prefix=1, how="official")
    assert torch.allclose(found.double(), wanted, atol=2e-5)


@pytest.mark.parametrize("how", ["official", "timm"])
@pytest.mark.parametrize(("side", "grid"), GRIDS)
def test_registers_and_timm_go_to_the_exact_size_with_antialias(side, grid, how):
    table = random_table(side, 0)
    wanted = resampled(table, *(antialiased_bicubic(side, size) for size in grid), 0)
    found = resample_positions(table, grid, num_prefix=0, how=how, has_registers=True)
    assert torch.allclose(found.double(), wanted, atol=2e-5)


def test_prefix_entries_stay_in_front_untouched():
    table = random_table(6, 5)
    for how in ("official", "timm"):
        found = resample_positions(table, (3, 4), num_prefix=5, how=how)
        assert found.shape == (1, 5 + 12, 3)
        assert torch.equal(found[:, :5], table[:, :5])


def test_a_table_that_fits_is_returned_as_it_is():
    table = random_table(6, 1)
    assert resample_positions(table, (6, 6), num_prefix=1, how="official") is table


def test_half_precision_is_kept_and_computed_in_float32():
    table = random_table(8, 1).half()
    found = resample_positions(table, (5, 5), num_prefix=1, how="official")
    assert found.dtype == torch.float16
    assert torch.equal(found, resample_positions(table.float(), (5, 5), num_prefix=1, how="official").half())


def test_entries_that_form_no_square_are_an_error():
    with pytest.raises(WeightsError, match="11 entries, 1 of them for prefix tokens"):
        resample_positions(torch.zeros(1, 11, 3), (2, 2), num_prefix=1, how="official")
