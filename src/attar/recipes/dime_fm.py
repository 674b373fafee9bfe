"""The released settings of DIME-FM (spec dime_fm §1.5, §3), for CLIP ViT-L/14.

Images were ImageNet-21K, GCC-15M and YFCC-14M, 40 M in all; sentences 28.4 M of RoBERTa's text, filtered by a selection
that is not public (`attar curate --sentences` is attar's own). The paper's batch and hardware are not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attar.config import WITH_REGULARISER, DistillVlConfig
from attar.recipes.named import over_recipe

Recipe = Callable[..., DistillVlConfig]


def dime_fm_b32(*, images: str, sentences: str, out: str) -> DistillVlConfig:
    """ViT-B/32 in CLIP's manner from OpenAI's CLIP ViT-L/14, which keeps its text tower; two terms, as released.

    attar distill-vl --recipe dime_fm_b32 --images imagenet21k --sentences sentences.txt --monitor imagenet/val \\
        --out runs/dime_fm_b32

    The student starts from random weights.
    """
    return DistillVlConfig(
        teacher="open_clip:ViT-L-14-quickgelu?pretrained=openai",
        student="vit_base_patch32_clip_224",
        images=images,
        sentences=sentences,
        out=out,
        img_size=224,
        batch_size=640,
        epochs=100,
    )


def dime_fm_swin_t(*, images: str, sentences: str, out: str) -> DistillVlConfig:
    """Swin-T from OpenAI's CLIP ViT-L/14, which keeps its text tower; two terms, as released.

    attar distill-vl --recipe dime_fm_swin_t --images imagenet21k --sentences sentences.txt --monitor imagenet/val \\
        --out runs/dime_fm_swin_t
    """
    return dime_fm_b32(images=images, sentences=sentences, out=out).replace(
        student="swin_tiny_patch4_window7_224?drop_path_rate=0.2"
    )


def dime_fm_b32_regularised(*, images: str, sentences: str, out: str) -> DistillVlConfig:
    """As dime_fm_b32, with the regulariser on: 0.68, 0.22 and 0.10, the weights of a third-party implementation."""
    return dime_fm_b32(images=images, sentences=sentences, out=out).replace(dime_fm=WITH_REGULARISER)


RECIPES: dict[str, Recipe] = {
    recipe.__name__: recipe for recipe in (dime_fm_b32, dime_fm_swin_t, dime_fm_b32_regularised)
}
"""Recipes of `attar distill-vl --recipe NAME`."""

PLACES = ("images", "sentences", "out")
"""Arguments of each."""


def from_recipe(settings: Mapping[str, Any]) -> DistillVlConfig:
    """A config from nested settings; those not given come from the recipe that `recipe` names, if any.

    Raises:
        ConfigError: If there is no such recipe, or a setting is unknown, missing or out of bounds.
    """
    return DistillVlConfig.build(over_recipe(settings, RECIPES, PLACES))


def completed(config: DistillVlConfig) -> DistillVlConfig:
    """With what its recipe says where nobody set anything; as it is if it names none, or came from `from_recipe`.

    Raises:
        ConfigError: If there is no such recipe, or what it says and what was set do not go together.
    """
    return config if config.recipe is None else from_recipe(config.given())
