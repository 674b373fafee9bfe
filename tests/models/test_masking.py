"""Hiding patches: what is hidden leaves no trace, what is not hidden does, and nothing of it ships."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from attar.errors import ShapeError
from attar.models import Backbone, load_backbone
from attar.types import Tokens

SLIM = "depth=2&embed_dim=96&num_heads=3"
LAYOUTS = {
    "sequence": f"vit_base_patch16_224?{SLIM}",  # patch_embed gives (B, N, D)
    "map": f"vit_base_patch16_224?{SLIM}&dynamic_img_size=true",  # (B, h, w, D)
    "registers": f"vit_base_patch14_reg4_dinov2?{SLIM}&patch_size=16",
    "rotary": f"vit_base_patch16_dinov3?{SLIM}",
    "eva": f"eva02_tiny_patch14_224?{SLIM}&patch_size=16",
    "no class token": f"vit_base_patch16_siglip_224?{SLIM}",
}
SIZE, GRID, PATCH = 64, 4, 16


def load(reference: str) -> Backbone:
    return load_backbone(reference, weights="random", img_size=SIZE)


def images(*, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def random_masks(*, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(batch, GRID * GRID, generator=torch.Generator().manual_seed(seed)) < 0.5


def token(width: int = 96) -> Tensor:
    return torch.randn(1, width, generator=torch.Generator().manual_seed(7))


def repaint(pixels: Tensor, masks: Tensor) -> Tensor:
    """Other pixels under the patches of `masks`, row by row."""
    area = masks.view(-1, 1, GRID, GRID).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    return torch.where(area, 1 - pixels, pixels)


def same(a: Tokens, b: Tokens) -> bool:
    return torch.equal(a.cls, b.cls) and torch.equal(a.patch, b.patch) and torch.equal(a.prefix, b.prefix)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_hidden_pixels_leave_no_trace_and_seen_ones_do(layout):
    backbone, pixels, masks = load(LAYOUTS[layout]), images(), random_masks()
    assert backbone.can_mask
    assert 0 < masks.sum() < masks.numel()
    hidden = backbone(pixels, masks=masks, mask_token=token())
    assert same(backbone(repaint(pixels, masks), masks=masks, mask_token=token()), hidden)
    assert not same(backbone(repaint(pixels, ~masks), masks=masks, mask_token=token()), hidden)
    assert not same(backbone(pixels, masks=masks, mask_token=2 * token()), hidden)
    assert not same(backbone(pixels), hidden)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_each_patch_is_hidden_by_its_own_entry(layout):
    """One seen patch at a time: only its own pixels may change anything. Catches rows taken for columns."""
    backbone, pixels = load(LAYOUTS[layout]), images(batch=1)
    for seen in (1, 4, 11):
        masks = torch.ones(1, GRID * GRID, dtype=torch.bool)
        masks[0, seen] = False
        hidden = backbone(pixels, masks=masks, mask_token=token())
        for index, one in enumerate(torch.eye(GRID * GRID, dtype=torch.bool)):
            other = backbone(repaint(pixels, one), masks=masks, mask_token=token())
            assert same(other, hidden) == (index != seen)


@pytest.mark.parametrize("layout", ["sequence", "map"])
@torch.no_grad()
def test_the_mask_token_stands_before_positions_are_added(layout):
    """Spec 1.2: a hidden slot is mask_token + pos_embed, so two hidden patches are still told apart."""
    backbone, pixels = load(LAYOUTS[layout]), images(batch=1)
    into_blocks: list[Tensor] = []
    backbone.model.blocks[0].register_forward_pre_hook(lambda _, inputs: into_blocks.append(inputs[0]))
    masks = random_masks(batch=1)
    backbone(pixels, masks=masks, mask_token=token())
    backbone(pixels)
    masked, clean = into_blocks
    wanted = clean.clone()
    positions = backbone.model.pos_embed
    wanted[:, 1:] = torch.where(masks[..., None], token() + positions[:, 1:], clean[:, 1:])
    assert torch.allclose(masked, wanted, atol=1e-6)


@torch.no_grad()
def test_nothing_hidden_equals_no_mask():
    for reference in LAYOUTS.values():
        backbone, nothing = load(reference), torch.zeros(2, GRID * GRID, dtype=torch.bool)
        assert same(backbone(images(), masks=nothing, mask_token=token()), backbone(images()))


def test_gradient_reaches_the_mask_token_in_proportion_to_what_is_hidden():
    for reference in LAYOUTS.values():
        backbone, mask_token = load(reference), nn.Parameter(token())
        backbone(images(), masks=random_masks(), mask_token=mask_token).patch.square().sum().backward()
        assert mask_token.grad is not None
        assert mask_token.grad.abs().sum() > 0
        mask_token.grad = None
        nothing = torch.zeros(2, GRID * GRID, dtype=torch.bool)
        backbone(images(), masks=nothing, mask_token=mask_token).patch.square().sum().backward()
        assert torch.equal(mask_token.grad, torch.zeros_like(mask_token))  # a gradient all the same: DDP needs one


def test_hidden_patches_give_the_patch_embedding_no_gradient():
    backbone = load(LAYOUTS["sequence"])
    everything = torch.ones(2, GRID * GRID, dtype=torch.bool)
    backbone(images(), masks=everything, mask_token=token()).patch.square().sum().backward()
    gradient = backbone.model.patch_embed.proj.weight.grad
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_the_hook_changes_no_key_and_masks_do_not_stay():
    backbone = load(LAYOUTS["sequence"])
    plain = timm.create_model("vit_base_patch16_224", depth=2, embed_dim=96, num_heads=3, img_size=SIZE, num_classes=0)
    assert backbone.model.state_dict().keys() == plain.state_dict().keys()
    before = backbone.tokens(images())
    backbone(images(), masks=random_masks(), mask_token=token())
    assert same(backbone.tokens(images()), before)
    with pytest.raises(ShapeError):
        backbone(images(), masks=random_masks(batch=3), mask_token=token())
    assert same(backbone.tokens(images()), before)


@torch.no_grad()
def test_a_deep_copy_masks_on_its_own():
    """A moving average of the student is a copy: masking the one must not mask, or leak into, the other."""
    backbone = load(LAYOUTS["map"])
    clean = backbone(images())
    twin = copy.deepcopy(backbone)
    with backbone._masking.hiding(random_masks(), token()):
        assert same(twin(images()), clean)
        assert not same(backbone(images()), clean)
    with twin._masking.hiding(random_masks(), token()):
        assert same(backbone(images()), clean)
        assert not same(twin(images()), clean)


@pytest.mark.parametrize(
    "reference",
    ["resnet10t", "convnext_atto", "vit_tiny_r_s16_p8_224?depth=1", "xcit_nano_12_p16_224?depth=1"],
)
def test_models_that_cannot_hide_a_patch_say_what_to_do(reference):
    """Conv nets have no patches; stems that overlap would show a hidden patch to its neighbours."""
    backbone = load(reference)
    assert not backbone.can_mask
    count = backbone.grid[0] * backbone.grid[1]
    with pytest.raises(ShapeError, match=r"has no patch tokens to hide\. Set proteus\.patch_weight to 0"):
        backbone(images(), masks=torch.zeros(2, count, dtype=torch.bool), mask_token=token(backbone.embed_dim))


@pytest.mark.parametrize(
    "masks",
    [
        torch.zeros(2, 9, dtype=torch.bool),
        torch.zeros(3, 16, dtype=torch.bool),
        torch.zeros(1, 16, dtype=torch.bool),
        torch.zeros(2, 4, 4, dtype=torch.bool),
        torch.zeros(16, dtype=torch.bool),
        torch.zeros(2, 16),
    ],
)
@pytest.mark.parametrize("layout", ["sequence", "map"])
def test_masks_that_do_not_fit_are_refused_with_both_shapes(layout, masks):
    with pytest.raises(ShapeError) as caught:
        load(LAYOUTS[layout])(images(), masks=masks, mask_token=token())
    assert f"masks are {tuple(masks.shape)} {masks.dtype}" in str(caught.value)
    assert "2 images into 16 patches each" in str(caught.value)
