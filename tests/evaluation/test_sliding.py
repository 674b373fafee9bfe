"""Sliding windows: mmsegmentation's grid, every pixel covered, and an average that counts right."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attar.errors import ConfigError, ShapeError
from attar.evaluation.sliding import slide, windows

SIZES = st.integers(1, 14)


def test_the_worked_example() -> None:
    """Spec evaluation §6.10. A last window that is cut, and not shifted back, would start at 345."""
    found = windows(518, 690, crop=518, stride=345)
    assert found == [(slice(0, 518), slice(0, 518)), (slice(0, 518), slice(172, 690))]
    count = torch.zeros(518, 690)
    for rows, columns in found:
        count[rows, columns] += 1
    assert count.unique().tolist() == [1, 2]


def test_windows_go_row_by_row() -> None:
    found = windows(6, 7, crop=4, stride=2)
    assert [(rows.start, columns.start) for rows, columns in found] == [(0, 0), (0, 2), (0, 3), (2, 0), (2, 2), (2, 3)]


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, st.integers(1, 9), st.integers(1, 9))
def test_every_pixel_is_covered_by_windows_of_one_size(height: int, width: int, crop: int, stride: int) -> None:
    stride = min(stride, crop)
    found = windows(height, width, crop=crop, stride=stride)
    seen = torch.zeros(height, width, dtype=torch.bool)
    for rows, columns in found:
        seen[rows, columns] = True
        size = (rows.stop - rows.start, columns.stop - columns.start)
        assert size == (min(crop, height), min(crop, width))
    assert seen.all()
    assert len(set(map(str, found))) == len(found)  # none twice


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, st.integers(1, 9), st.integers(1, 9))
def test_constant_logits_and_the_pixels_themselves_come_back(height: int, width: int, crop: int, stride: int) -> None:
    """A sum without the count, or a count by windows, would not give them back."""
    stride, images = min(stride, crop), torch.rand(2, 3, height, width)
    torch.testing.assert_close(slide(lambda part: part, images, crop=crop, stride=stride), images)
    constant = slide(lambda part: torch.full_like(part[:, :1], 1.5), images, crop=crop, stride=stride)
    assert torch.equal(constant, torch.full((2, 1, height, width), 1.5))


def test_logits_are_averaged_where_windows_overlap() -> None:
    columns = torch.arange(6.0).expand(1, 1, 6)
    images = torch.stack([columns, -columns])  # catches windows of one image that are taken for another's

    def predict(part: Tensor) -> Tensor:
        return 3 * part[..., :1].expand_as(part)  # 0 in the window that begins at column 0, 6 in the next

    found = slide(predict, images, crop=4, stride=2)
    assert found.flatten(1).tolist() == [[0, 0, 3, 3, 6, 6], [0, 0, -3, -3, -6, -6]]


def test_a_small_image_is_used_whole() -> None:
    asked = []

    def predict(part: Tensor) -> Tensor:
        asked.append(tuple(part.shape))
        return part

    slide(predict, torch.zeros(1, 3, 5, 7), crop=8, stride=4)
    assert asked == [(1, 3, 5, 7)]


def test_what_cannot_be_put_together_is_refused() -> None:
    with pytest.raises(ConfigError, match="every 5 px leave pixels out"):
        windows(8, 8, crop=4, stride=5)
    with pytest.raises(ShapeError, match=r"answered with a map of \(2, 2\)"):
        slide(lambda part: part[..., ::2, ::2], torch.zeros(1, 3, 8, 8), crop=4, stride=4)
