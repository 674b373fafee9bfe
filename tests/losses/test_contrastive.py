"""InfoNCE of two sides: spec task_transfer O3."""

import pytest
import torch

from attar.errors import ShapeError
from attar.losses import info_nce, token_distance

STUDENT, TEACHER = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.eye(2)


def test_both_directions_by_hand():
    # catches one direction alone (.0635 or .0092), a sum of both, a temperature that multiplies
    losses = info_nce(STUDENT, TEACHER, temperature=0.1)
    expected = torch.tensor([(4.5e-5 + 0.018150) / 2, (0.126928 + 0.000335) / 2])
    torch.testing.assert_close(losses, expected, atol=1e-6, rtol=1e-3)
    assert losses.mean().item() == pytest.approx(0.036365, abs=1e-6)
    assert token_distance(STUDENT, TEACHER, criterion="cosine").mean().item() == pytest.approx(0.1, abs=1e-6)


def test_the_order_of_the_batch_and_the_length_of_vectors_play_no_part():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 4, generator=generator)
    loss = info_nce(student, teacher, temperature=0.2).mean()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(info_nce(student[order], 7 * teacher[order], temperature=0.2).mean(), loss)
    assert not torch.isclose(info_nce(student, teacher[order], temperature=0.2).mean(), loss, rtol=1e-2)


def test_shares_of_two_ranks_and_their_gradients_are_those_of_the_whole():
    # catches negatives of the own rank only, and a diagonal that starts at 0 on the second rank
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    whole = student.clone().requires_grad_()
    info_nce(whole, teacher, temperature=0.1).mean().backward()
    parts = student.clone().requires_grad_()
    shares = [
        info_nce(
            parts[i : i + 3], teacher[i : i + 3], temperature=0.1, all_students=parts, all_teachers=teacher, first=i
        ).sum()
        / 6
        for i in (0, 3)
    ]
    sum(shares).backward()
    torch.testing.assert_close(parts.grad, whole.grad)


def test_sides_of_different_width_are_refused():
    with pytest.raises(ShapeError, match="A projector must bring"):
        info_nce(torch.zeros(2, 3), torch.zeros(2, 4), temperature=0.1)


def test_cosines_are_exact_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        losses = info_nce(STUDENT, TEACHER, temperature=0.01)
    torch.testing.assert_close(losses, info_nce(STUDENT, TEACHER, temperature=0.01), rtol=0, atol=0)
