"""Small text towers: open_clip's transformer in the teacher's shape, from random weights or the teacher's."""

from __future__ import annotations

import pytest
import torch

from attar.errors import ConfigError

open_clip = pytest.importorskip("open_clip")
import small_clip  # noqa: E402
from attar.models import load_text_tower, small_text_tower  # noqa: E402

TEXTS = ["a photo of a cat.", "a sentence of many more words than twelve tokens can ever hold, cut"]


@pytest.fixture(scope="module")
def teacher():
    small_clip.register()
    return load_text_tower(small_clip.REFERENCE, weights="random", seed=3)


def test_shape_is_as_asked_and_everything_else_the_teachers(teacher) -> None:
    tower = small_text_tower(teacher, depth=3, width=24, num_heads=4)
    assert tower.encode(TEXTS).shape == (2, teacher.embed_dim)
    assert torch.equal(tower.tokenise(TEXTS), teacher.tokenise(TEXTS))
    assert tower.context_length == teacher.context_length
    blocks = tower.model.transformer.resblocks
    assert (len(blocks), blocks[0].attn.embed_dim, blocks[0].attn.num_heads) == (3, 24, 4)
    tower(tower.tokenise(TEXTS)).sum().backward()
    assert all(parameter.grad is not None for parameter in tower.parameters())


def test_what_describes_it_builds_it_in_open_clip(teacher) -> None:
    """The description ships: open_clip's own whole model has this text tower, under `text.`."""
    tower = small_text_tower(teacher, depth=2, width=8, num_heads=2)
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    whole = open_clip.CustomTextCLIP(tower.embed_dim, vision, dict(tower.config["text_cfg"]))
    whole.text.load_state_dict(tower.model.state_dict(), strict=True)
    whole.eval()
    torch.testing.assert_close(whole.encode_text(tower.tokenise(TEXTS)), tower.encode(TEXTS))


def test_random_weights_are_a_function_of_the_seed(teacher) -> None:
    first, same, other = (small_text_tower(teacher, depth=1, width=8, seed=s).encode(TEXTS) for s in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_tower_of_the_teachers_size_starts_as_the_teacher(teacher) -> None:
    copy = small_text_tower(teacher, depth=1, width=16, num_heads=2, layers="first")
    assert torch.equal(copy.encode(TEXTS), teacher.encode(TEXTS))
    assert copy.source.weights == "selected from the teacher (first layers)"
    thin = small_text_tower(teacher, depth=1, width=8, num_heads=2, layers="first")
    wanted = teacher.model.token_embedding.weight[:, ::2]
    assert torch.equal(thin.model.token_embedding.weight, wanted)
    assert torch.equal(
        thin.model.transformer.resblocks[0].ln_1.bias, teacher.model.transformer.resblocks[0].ln_1.bias[::2]
    )


def test_heads_that_do_not_divide_the_width_are_refused(teacher) -> None:
    with pytest.raises(ConfigError, match=r"width 30 does not divide into 4 heads\. Try a width of 28"):
        small_text_tower(teacher, depth=1, width=30, num_heads=4)
