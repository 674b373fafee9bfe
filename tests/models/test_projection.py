"""Image towers for a shared space: open_clip's own `TimmModel`, and what stays of the timm backbone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attar.errors import ModelReferenceError
from attar.models import load_backbone, with_projection

VIT = "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=2&num_heads=2"
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def tower(reference: str = VIT, embed_dim: int = 24, seed: int = 0, img_size: int = 32):
    return with_projection(load_backbone(reference, weights="random", img_size=img_size), embed_dim, seed=seed)


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "resnet10t"])
def test_it_is_open_clips_timm_model(name) -> None:
    """Fails for a projection with a bias, other names, or features pooled otherwise: the student could not ship."""
    timm_model = pytest.importorskip("open_clip.timm_model")
    size = load_backbone(name, weights="random").img_size
    student = tower(name, img_size=size)
    theirs = timm_model.TimmModel(name, 24, image_size=size, pool="", proj="linear").eval()
    theirs.load_state_dict(student.model.visual.state_dict(), strict=True)
    pixels = torch.rand(2, 3, size, size)
    wanted = theirs((pixels - student.mean) / student.std)
    assert wanted.std() > 0.01
    torch.testing.assert_close(student.embed(pixels), wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_tokens_are_the_backbones_and_the_embedding_its_class_token_projected() -> None:
    plain, student = load_backbone(VIT, weights="random", img_size=32), tower()
    tokens = student.tokens(IMAGES)
    torch.testing.assert_close(tokens.cls, plain.tokens(IMAGES).cls)
    projection = student.model.visual.head.proj
    assert projection.bias is None
    torch.testing.assert_close(student.embed(IMAGES), tokens.cls @ projection.weight.T)
    assert (student.embed_dim, student.depth, student.patch_size, student.can_mask) == (32, 2, 8, True)
    assert student.preprocess == plain.preprocess
    assert not torch.equal(student.embed(IMAGES), tower(seed=1).embed(IMAGES))


def test_every_weight_gets_a_gradient_from_the_embedding() -> None:
    student = tower().train()
    student.forward_embed(IMAGES).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters())
    assert student.training
    assert not student.embed(IMAGES).requires_grad


def test_what_open_clip_cannot_load_is_refused(tmp_path) -> None:
    with pytest.raises(ModelReferenceError, match="mobilenetv3_small_050 pools 288 channels into 1024"):
        tower("mobilenetv3_small_050")
    with pytest.raises(ModelReferenceError, match="is no model of timm"):
        with_projection(tower(), 24)
    own = load_backbone(f"module:{__name__}:stem", weights="random", img_size=32)
    with pytest.raises(ModelReferenceError, match="is no model of timm"):
        with_projection(own, 24)


def stem() -> nn.Module:
    """A conv net of a user's own."""
    return nn.Conv2d(3, 8, 8, stride=8)
