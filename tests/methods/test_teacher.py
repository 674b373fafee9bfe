"""A frozen teacher gives tokens at its own size, and views come at each model's."""

import pytest
import torch
from torch.nn import functional as F

from attar.errors import ShapeError
from attar.methods.teacher import ask, ask_embedding, check_patches, frozen, resample_tokens, resize
from attar.types import Tokens
from small_models import TINY, backbone


def test_a_frozen_teacher_has_no_gradient_and_answers_alike_each_time():
    teacher = backbone(f"{TINY}&proj_drop_rate=0.5").train()
    views = torch.rand(2, 3, 32, 32)
    assert not torch.equal(ask(teacher, views).cls, ask(teacher, views).cls)  # dropout, before it is frozen
    assert frozen(teacher) is teacher
    assert not any(p.requires_grad for p in teacher.parameters())
    assert torch.equal(ask(teacher, views).cls, ask(teacher, views).cls)


def test_answers_carry_no_gradient_even_from_views_that_do():
    views = torch.rand(2, 3, 32, 32, requires_grad=True)
    tokens = ask(frozen(backbone()), views)
    assert not tokens.cls.requires_grad
    assert not tokens.patch.requires_grad


def test_the_teacher_is_asked_at_its_own_size():
    teacher, views = frozen(backbone(img_size=48)), torch.rand(2, 3, 32, 32)
    tokens = ask(teacher, views)
    assert tokens.grid == (6, 6)
    expected = F.interpolate(views, size=(48, 48), mode="bicubic", antialias=True)
    torch.testing.assert_close(tokens.patch, teacher.tokens(expected).patch)


@pytest.mark.parametrize("question", [lambda teacher, views: ask(teacher, views).patch, ask_embedding])
def test_a_cpu_asks_about_few_of_many_views_at_a_time_and_gets_the_same(question):
    teacher, seen, views = frozen(backbone()), [], torch.rand(1177, 3, 32, 32)
    # 1,176 have the pixels of 24 images of 224 px, which are two pieces
    teacher.model.patch_embed.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    answers = question(teacher, views)
    assert seen == [393, 392, 392]
    torch.testing.assert_close(answers[-5:], question(teacher, views[-5:]))


def test_a_view_that_fits_is_handed_on_as_it_is():
    views = torch.rand(2, 3, 32, 32)
    assert resize(views, 32) is views


def test_smaller_views_are_averages_of_what_they_cover():
    # without antialiasing a board of single pixels stays black and white, or turns all one colour
    board = (torch.arange(32)[:, None] + torch.arange(32)[None] % 2).remainder(2).float().expand(1, 3, 32, 32)
    torch.testing.assert_close(resize(board, 8)[..., 1:-1, 1:-1], torch.full((1, 3, 6, 6), 0.5), rtol=0, atol=0.02)


def test_tokens_on_a_coarser_grid_are_averages_and_keep_their_places():
    image = torch.zeros(1, 8, 8)
    image[0, :4, :4] = 1.0  # the corner above on the left
    tokens = Tokens(torch.ones(1, 1), image.flatten(1)[..., None], (8, 8), torch.empty(1, 0, 1))
    coarse = resample_tokens(tokens, (2, 2))
    assert coarse.grid == (2, 2)
    first, *others = coarse.patch.flatten().tolist()
    assert first > 0.7
    assert max(others) < 0.15
    assert coarse.patch.mean().item() == pytest.approx(0.25, abs=0.01)
    assert coarse.cls is tokens.cls
    assert resample_tokens(tokens, (8, 8)) is tokens


def test_patches_must_cover_the_image_of_the_model_that_is_named():
    sound, odd = backbone(), backbone(img_size=30)
    check_patches(sound)
    check_patches(sound, sound)
    with pytest.raises(ShapeError, match="Try --img-size 32"):
        check_patches(odd, sound)
    with pytest.raises(ShapeError, match="Try --teacher-img-size 32"):
        check_patches(sound, odd)
    check_patches(backbone("test_resnet", img_size=50))  # conv nets pad what is left
