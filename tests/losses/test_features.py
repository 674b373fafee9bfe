from __future__ import annotations

import pytest
import torch

from attar.errors import ShapeError
from attar.losses import token_distance


def test_mse_is_the_mean_over_channels_and_keeps_tokens_apart() -> None:
    student = torch.tensor([[[1.0, 3.0], [0.0, 0.0]]])
    teacher = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]])
    torch.testing.assert_close(token_distance(student, teacher), torch.tensor([[5.0, 2.0]]))


def test_cosine_is_zero_for_parallel_one_for_orthogonal_two_for_opposite() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[5.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    torch.testing.assert_close(token_distance(a, b, criterion="cosine"), torch.tensor([0.0, 1.0, 2.0]))


def test_half_precision_inputs_are_compared_in_float32() -> None:
    # 300 squared overflows float16
    student = torch.full((1, 4), 300.0, dtype=torch.float16)
    distance = token_distance(student, torch.zeros(1, 4, dtype=torch.float16))
    assert distance.dtype == torch.float32
    assert distance.item() == 90000.0


def test_shapes_that_differ_are_an_error_even_where_they_would_broadcast() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 5, 4\).*\(2, 1, 4\)"):
        token_distance(torch.zeros(2, 5, 4), torch.zeros(2, 1, 4))
