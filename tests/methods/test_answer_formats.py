"""What comes back of an answer, in how many bytes."""

import pytest
import torch

from attar.errors import ConfigError
from attar.methods.answer_formats import PLAIN_FORMATS, Int8, strongest_components


def tokens_of(*shape, rank=None, seed=0):
    """Random tokens, of so many directions where it is said, far from zero in their mean."""
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        return torch.randn(*shape, generator=generator)
    basis = torch.randn(rank, shape[-1], generator=torch.Generator().manual_seed(99))
    return torch.randn(*shape[:-1], rank, generator=generator) @ basis + 5


def back(answer_format, answers):
    """(answers once more, relative error)."""
    shape = answers.shape[1:]
    stored = answer_format.encode(answers)
    assert stored.dtype == torch.uint8
    assert stored.shape == (len(answers), answer_format.size(shape))
    read = answer_format.decode(stored, shape)
    assert read.dtype == torch.float32
    assert read.shape == answers.shape
    return read, float((read - answers).norm() / answers.norm())


@pytest.mark.parametrize("shape", [(3, 7), (3, 5, 7), (2, 4, 3, 3)], ids=["vectors", "tokens", "maps"])
@pytest.mark.parametrize(("name", "most"), [("float32", 0.0), ("float16", 2**-11), ("int8", 0.01)])
def test_what_comes_back_is_as_near_as_the_format_says(name, most, shape):
    answer_format = PLAIN_FORMATS[name]
    answers = tokens_of(*shape)
    read, error = back(answer_format, answers)
    assert error <= most
    assert torch.equal(read, answers) is answer_format.is_exact


def test_every_token_has_a_scale_of_its_own():
    # catches one scale for all tokens of a view, which would leave nothing of the small one
    answers = tokens_of(1, 2, 64)
    answers[0, 0] *= 1e4
    read, _ = back(Int8(), answers)
    assert float((read - answers)[0, 1].norm() / answers[0, 1].norm()) < 0.01


def test_a_view_stands_alone():
    answers = tokens_of(4, 5, 16)
    for answer_format in PLAIN_FORMATS.values():
        assert torch.equal(answer_format.encode(answers)[2:3], answer_format.encode(answers[2:3]))


@pytest.mark.parametrize("name", PLAIN_FORMATS)
def test_zeros_and_what_is_not_finite(name):
    answers = torch.zeros(2, 3, 4)
    assert torch.equal(back(PLAIN_FORMATS[name], answers)[0], answers)
    answers[1, 2, 3] = torch.nan  # must not come back as a number: the loss then names the images
    assert back(PLAIN_FORMATS[name], answers)[0].isnan().any()


def test_float16_holds_what_is_too_large_at_its_end():
    read, _ = back(PLAIN_FORMATS["float16"], torch.tensor([[1e6, -1e6, 1.0]]))
    assert read.tolist() == [[65504.0, -65504.0, 1.0]]


def test_components_that_hold_all_of_the_tokens_lose_what_int8_loses():
    fitted = strongest_components(tokens_of(500, 32, rank=6), 6)
    _, error = back(fitted, tokens_of(4, 9, 32, rank=6, seed=1))  # others than those it was fitted to
    assert error < 0.01


def test_fewer_components_are_the_strongest_ones():
    sample = tokens_of(2000, 8) * torch.tensor([9.0, 1, 5, 1, 1, 1, 1, 1])
    fitted = strongest_components(sample, 2)
    assert fitted.basis.abs().argmax(0).tolist() == [0, 2]
    read, _ = back(fitted, sample[None])
    lost = float((read - sample).square().sum() / sample.square().sum())
    assert lost == pytest.approx(6 / (81 + 25 + 6), rel=0.1)


def test_one_vector_an_image_has_no_components():
    fitted = strongest_components(tokens_of(50, 8), 2)
    assert back(fitted, tokens_of(5, 8))[1] < 2**-11
    assert fitted.size((16, 8)) == 16 * (2 + 4)


def test_more_components_than_channels_are_told():
    with pytest.raises(ConfigError, match="pca:9, and the teacher's tokens have 8 channels"):
        strongest_components(tokens_of(50, 8), 9)
