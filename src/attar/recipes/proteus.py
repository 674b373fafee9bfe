"""The paper's pairings, one size up from student to teacher (Proteus, Tables 1, 4 and 7, Figures 4 and 5).

Data is ImageNet-1K train, unlabelled. Hardware and length are the paper's: 8 A100, 300 epochs (wall time is not
reported). Figures are the paper's: ImageNet linear probe, mean of 12 fine-grained sets, ADE20K mIoU (UperNet
fine-tuned), NYUd RMSE.

And `fast`, which is no paper's: for any pair, in little time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attar.config import DistillConfig
from attar.recipes.named import over_recipe

Recipe = Callable[..., DistillConfig]


def proteus_s(*, data: str, out: str) -> DistillConfig:
    """ViT-S/14 from DINOv2-B/14.

    attar distill --recipe proteus_s --data imagenet/train --monitor imagenet/val --out runs/proteus_s

    Paper: 81.8 linear, 85.8 fine-grained, 50.0 mIoU, 0.350 RMSE, batch 1024.
    """
    return DistillConfig(
        teacher="vit_base_patch14_dinov2",
        student="vit_small_patch14_dinov2?init_values=1.0",
        data=data,
        out=out,
        img_size=224,
        batch_size=1024,
        epochs=300,
    )


def proteus_ti(*, data: str, out: str) -> DistillConfig:
    """ViT-Ti/14 from DINOv2-S/14.

    attar distill --recipe proteus_ti --data imagenet/train --monitor imagenet/val --out runs/proteus_ti

    Paper: 75.2 linear, 80.2 fine-grained, 40.7 mIoU, 0.423 RMSE, batch 1024.
    """
    return proteus_s(data=data, out=out).replace(
        teacher="vit_small_patch14_dinov2", student="vit_small_patch14_dinov2?embed_dim=192&num_heads=3&init_values=1.0"
    )


def proteus_b(*, data: str, out: str) -> DistillConfig:
    """ViT-B/14 from DINOv2-L/14.

    attar distill --recipe proteus_b --data imagenet/train --monitor imagenet/val --out runs/proteus_b

    Paper: 84.9 linear, 88.6 fine-grained, 54.4 mIoU, 0.303 RMSE (0.304 in its Table 6), batch 1024.
    """
    return proteus_s(data=data, out=out).replace(
        teacher="vit_large_patch14_dinov2", student="vit_base_patch14_dinov2?init_values=1.0"
    )


def proteus_l(*, data: str, out: str) -> DistillConfig:
    """ViT-L/14 from DINOv2-g/14, batch 256 "due to memory".

    attar distill --recipe proteus_l --data imagenet/train --monitor imagenet/val --out runs/proteus_l

    Paper: 86.2 linear, 91.0 fine-grained, 57.7 mIoU, 0.240 RMSE. Its learning rate at batch 256 is not stated; the
    linear rule gives 2.5e-4.
    """
    return proteus_s(data=data, out=out).replace(
        teacher="vit_giant_patch14_dinov2", student="vit_large_patch14_dinov2?init_values=1.0", batch_size=256
    )


def proteus_b_synclr(*, data: str, out: str) -> DistillConfig:
    """ViT-B/14 from SynCLR-L/14, a teacher trained on synthetic images. The student has no LayerScale.

    attar distill --recipe proteus_b_synclr --teacher-weights synclr_vit_l_14.pth --data imagenet/train \\
        --monitor imagenet/val --out runs/proteus_b_synclr

    Its reference code trains with ImageNet statistics; timm's name for the architecture stands for others.

    Paper: 81.4 linear, 87.4 fine-grained (SynCLR's own ViT-B/16: 80.5, 88.8).
    """
    return proteus_s(data=data, out=out).replace(
        teacher="vit_large_patch14_224", student="vit_base_patch16_224?patch_size=14", normalisation="imagenet"
    )


def proteus_b_clip(*, data: str, out: str) -> DistillConfig:
    """CLIP-style ViT-B/14 from OpenAI's CLIP-L/14, class token only.

    attar distill --recipe proteus_b_clip --data imagenet/train --monitor imagenet/val --out runs/proteus_b_clip

    Target is the class token after CLIP's last norm, 1024 wide, before the projection to text. The student has CLIP's
    norm before the blocks, QuickGELU and a patch convolution without bias.

    Paper: 81.2 linear, 85.7 fine-grained (CLIP's own ViT-B/16: 78.7, 85.8).
    """
    return proteus_s(data=data, out=out).replace(
        teacher="vit_large_patch14_clip_quickgelu_224.openai",
        student="vit_base_patch16_clip_quickgelu_224?patch_size=14",
        proteus={"feature_weight": 0.0, "patch_weight": 0.0},
    )


def fast(*, data: str, out: str) -> DistillConfig:
    """Any pair in little time, by default ViT-Ti/14 from DINOv2-S/14. Not the paper's.

    attar distill --recipe fast --teacher TEACHER --student STUDENT --data photos --monitor labelled --out runs/fast

    Crops with their colours as they are, no masked term, standardised targets, Muon; small batches, no average.
    Measured with a small student at 64 px (`benchmarks/time_to_quality.py`); how far that carries, and the figures:
    `notes/time_to_quality.md`.
    """
    return proteus_ti(data=data, out=out).replace(
        batch_size=64,
        epochs=None,
        max_steps=2000,
        views={"crop_scale": [0.4, 1.0], "randaugment": False, "erase": 0.0, "repeats": 1},
        proteus={"patch_weight": 0.0, "standardise_targets": True, "resample_tokens": True},
        optim={
            "algorithm": "muon",
            "lr": 1e-2,
            "min_lr": 0.0,
            "betas": [0.9, 0.95],
            "clip_norm": 1.0,
            "ema_decay": 0.0,
        },
    )


def as_released(recipe: Recipe) -> Recipe:
    """The recipe with the quirks of the released code: epoch-wise schedule off by one, first half of a batch masked,
    no warm-up of the average, no gradient clipping, ImageNet statistics for every model."""

    def released(*, data: str, out: str) -> DistillConfig:
        return recipe(data=data, out=out).replace(
            optim={"schedule": "paper", "ema_warmup": False, "clip_norm": None},
            proteus={"mask_rule": "paper"},
            normalisation="imagenet",
        )

    released.__doc__ = f"{(recipe.__doc__ or '').splitlines()[0]} With the quirks of the released code."
    return released


_PAIRINGS = (proteus_ti, proteus_s, proteus_b, proteus_l, proteus_b_synclr, proteus_b_clip)
RECIPES: dict[str, Recipe] = {
    **{recipe.__name__: recipe for recipe in _PAIRINGS},
    **{f"{recipe.__name__}_paper": as_released(recipe) for recipe in _PAIRINGS},
    "fast": fast,
}
"""Recipes of `attar distill --recipe NAME`."""

PLACES = ("data", "out")
"""Arguments of each."""


def from_recipe(settings: Mapping[str, Any]) -> DistillConfig:
    """A config from nested settings; those not given come from the recipe that `recipe` names, if any.

    Raises:
        ConfigError: If there is no such recipe, or a setting is unknown, missing or out of bounds.
    """

    def drop(start: dict[str, Any]) -> None:
        if settings.get("method", start["method"]) != start["method"]:
            del start["proteus"]  # another method has no use for it
        own, given = start["optim"], settings.get("optim")
        if isinstance(given, Mapping) and given.get("algorithm", own["algorithm"]) != own["algorithm"]:
            own["lr"] = None  # which is for that optimizer

    return DistillConfig.build(over_recipe(settings, RECIPES, PLACES, drop=drop))


def completed(config: DistillConfig) -> DistillConfig:
    """With what its recipe says where nobody set anything; as it is if it names none, or came from `from_recipe`.

    Raises:
        ConfigError: If there is no such recipe, or what it says and what was set do not go together.
    """
    return config if config.recipe is None else from_recipe(config.given())
