"""Towers in open_clip's words: what it builds of them computes the same, or they are refused by the part it lacks."""

from __future__ import annotations

import re

import pytest
import torch

from attar.errors import ConfigError

open_clip = pytest.importorskip("open_clip")
import small_clip  # noqa: E402
import small_models  # noqa: E402
from attar.models import load_backbone, load_text_tower, with_projection  # noqa: E402
from attar.models.as_open_clip import image_as_open_clip, text_as_open_clip  # noqa: E402
from attar.models.open_clip import build_vision  # noqa: E402
from attar.models.open_clip_text import build_text  # noqa: E402

WIDTH = 24
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
VARIANTS = [
    "",
    "&init_values=1e-5",
    "&global_pool=avg",
    "&global_pool=avg&fc_norm=False",
    "&fc_norm=True",
    "&no_embed_class=True",
    "&pre_norm=True",
    "&act_layer=quick_gelu",
    "&act_layer=gelu_tanh",
    "&mlp_ratio=2.6",
    "&drop_path_rate=0.1&patch_drop_rate=0.25",
    "&dynamic_img_size=True",
    "&norm_layer=layernorm",
]


def tower(reference: str, img_size: int = 32):
    """An image tower of which no weight is idle: norms, biases and layer scales are not those of a fresh model."""
    backbone = with_projection(load_backbone(reference, weights="random", img_size=img_size), WIDTH)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim == 1 or parameter.shape[:2] == (1, 1):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return backbone.eval()


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_vit_becomes_open_clips_own(variant) -> None:
    """Fails for a bias left out, another eps, activation, pooling, or place of the last norm."""
    image = tower(small_models.TINY + variant)
    described = image_as_open_clip(image, WIDTH)
    quick = "quick" in variant
    visual = build_vision({"embed_dim": WIDTH, "vision_cfg": described.config, "quick_gelu": quick}, "tiny").eval()
    visual.load_state_dict(described.state, strict=True)
    assert type(visual).__name__ == "VisionTransformer"
    assert described.quick_gelu is quick
    wanted = image.embed(IMAGES)
    assert wanted.std() > 0.01
    torch.testing.assert_close(visual((IMAGES - image.mean) / image.std), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("reference", "img_size", "name"),
    [
        ("test_vit", 160, "test_vit"),
        ("resnet10t", 64, "resnet10t"),
        ("test_convnext?drop_path_rate=0.1", 64, "test_convnext"),
        ("vit_tiny_patch16_224?depth=12&num_heads=3", 224, "vit_tiny_patch16_224"),  # as it is anyway
    ],
)
def test_what_its_name_alone_builds_stays_timms(reference, img_size, name) -> None:
    described = image_as_open_clip(tower(reference, img_size), WIDTH)
    assert described.config["timm_model_name"] == name
    assert described.config["image_size"] == img_size
    assert described.quick_gelu is None  # timm's models keep their own activation


@pytest.mark.parametrize(
    ("reference", "img_size", "part"),
    [
        (f"{small_models.TINY}&reg_tokens=2", 32, "registers"),
        (f"{small_models.TINY}&qk_norm=True", 32, "q_norm.weight"),
        (f"{small_models.TINY}&qkv_bias=False", 32, "lacks trunk.blocks.0.attn.qkv.bias"),
        (f"{small_models.TINY}&norm_layer=rmsnorm", 32, "a RmsNorm"),
        (f"{small_models.TINY}&act_layer=relu", 32, "a ReLU"),
        (f"{small_models.TINY}&global_pool=max", 32, "pooling 'max'"),
        (f"{small_models.TINY}&final_norm=False", 32, "lacks trunk.norm.weight"),
        (f"{small_models.TINY}&class_token=False&global_pool=avg", 32, "no class token"),
        ("test_convnext?depths=(1,1,1,1)", 64, "the form of a ConvNeXt"),
        ("resnet10t?act_layer=gelu", 64, "the form of a ResNet"),
        ("test_vit2", 128, "at 128 px"),
    ],
)
def test_what_open_clip_has_no_words_for_is_refused(reference, img_size, part) -> None:
    with pytest.raises(ConfigError, match=re.escape(part)) as caught:
        image_as_open_clip(tower(reference, img_size), WIDTH)
    assert "Take" in str(caught.value)
    assert reference.partition("?")[0] in str(caught.value)


def test_a_tower_that_is_neither_timms_nor_open_clips_is_refused() -> None:
    plain = small_models.backbone()
    with pytest.raises(ConfigError, match="is none of open_clip, and no timm model with a projection"):
        image_as_open_clip(plain, WIDTH)


@torch.no_grad()
def test_open_clips_own_towers_are_described_as_they_were_loaded() -> None:
    small_clip.register()
    image = load_backbone(small_clip.REFERENCE, weights="random", img_size=48)
    text = load_text_tower(small_clip.REFERENCE, weights="random")
    visual, words = image_as_open_clip(image, 16), text_as_open_clip(text)
    assert (visual.config["image_size"], visual.quick_gelu, words.quick_gelu) == (48, False, False)
    twin = build_vision({"embed_dim": 16, "vision_cfg": visual.config}, "twin").eval()
    twin.load_state_dict(visual.state, strict=True)
    images = torch.rand(1, 3, 48, 48)
    torch.testing.assert_close(twin((images - image.mean) / image.std), image.embed(images))
    twin = build_text({"embed_dim": 16, "text_cfg": words.config}, "twin").eval()
    twin.load_state_dict(words.state, strict=True)
    torch.testing.assert_close(twin(text.tokenise(["a cat"])), text.encode(["a cat"]))


def test_a_text_tower_of_another_kind_is_refused() -> None:
    small_clip.register()
    text = load_text_tower(small_clip.REFERENCE, weights="random")
    words = small_models.text_tower(16)
    words.config = text.config
    with pytest.raises(ConfigError, match="is not what its description in open_clip builds"):
        text_as_open_clip(words)
    text.config = {"text_cfg": {**text.config["text_cfg"], "hf_model_name": "roberta-base"}}
    with pytest.raises(ConfigError, match="builds by a name on the model hub"):
        text_as_open_clip(text)
