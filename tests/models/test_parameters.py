"""Parameter counts of Proteus' students, teachers and heads, against the oracles 6.1 and 6.2 of its specification."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attar.models import ProjectionHead, load_backbone

#       width depth  student (16 x 16 positions)   the same with 37 x 37
SIZES = {
    "tiny": (192, 12, 5_506_176, 5_719_872),
    "small": (384, 12, 21_629_184, 22_056_576),
    "base": (768, 12, 85_725_696, 86_580_480),
    "large": (1024, 24, 303_228_928, 304_368_640),
}


def count(reference: str, img_size: int) -> int:
    """Parameters with the mask token, which the specification counts and a backbone keeps outside."""
    with torch.device("meta"):  # no memory, no initialisation
        backbone = load_backbone(reference, weights="random", img_size=img_size)
    return backbone.num_parameters + backbone.embed_dim


@pytest.mark.parametrize("size", SIZES)
def test_students(size):
    width, depth, student, with_37 = SIZES[size]
    reference = f"vit_{size}_patch16_224?patch_size=14&init_values=1.0"
    assert count(reference, 224) == student == 850 * width + depth * (12 * width**2 + 15 * width)
    assert count(reference, 518) == with_37 == student + 1113 * width


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_teachers(size):
    assert count(f"vit_{size}_patch14_dinov2", 518) == SIZES[size][3]
    assert count(f"vit_{size}_patch14_dinov2", 224) == SIZES[size][2]


def test_the_giant_teacher_with_its_gated_mlp():
    assert count("vit_giant_patch14_dinov2", 518) == 1_136_480_768


@pytest.mark.parametrize(
    ("size", "teacher_dim", "one", "three", "trainable"),
    [
        ("tiny", 384, 74_496, 223_488, 5_729_664),
        ("small", 768, 296_448, 889_344, 22_518_528),
        ("base", 1024, 788_992, 2_366_976, 88_092_672),
        ("large", 1536, 1_576_448, 4_729_344, 307_958_272),
    ],
)
def test_heads(size, teacher_dim, one, three, trainable):
    width, _, student, _ = SIZES[size]
    parameters = sum(p.numel() for p in ProjectionHead(width, teacher_dim).parameters())
    assert parameters == one == 2 * width + width * teacher_dim + teacher_dim
    assert (3 * parameters, student + 3 * parameters) == (three, trainable)


def test_a_head_is_a_norm_and_a_linear_map():
    """Spec 1.3: LayerNorm with eps 1e-5, then Linear with bias; nothing before, between or after."""
    torch.manual_seed(0)
    head = ProjectionHead(6, 9)
    norm, linear = head
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    tokens = 3e-3 * (1 + torch.randn(2, 5, 6))  # so small a spread that eps shows
    centred = tokens - tokens.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
    assert head(tokens).shape == (2, 5, 9)
    assert torch.allclose(head(tokens), normed @ linear.weight.T + linear.bias, atol=1e-5)


def test_a_head_starts_as_pytorch_makes_it():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        plain = [nn.LayerNorm(6), nn.Linear(6, 9)]
        torch.manual_seed(3)
        head = ProjectionHead(6, 9)
    for mine, theirs in zip(head, plain, strict=True):
        assert torch.equal(mine.weight, theirs.weight)
        assert torch.equal(mine.bias, theirs.bias)
