"""The pairings from SynCLR and CLIP against the specification's table (§1.4) and parameter oracles (§6.1, §6.2)."""

from __future__ import annotations

import pytest
import torch
from timm.layers.activations import QuickGELU
from torch import nn

from attar.config import DistillConfig
from attar.methods.proteus import ProteusLearner
from attar.models import Backbone, load_backbone
from attar.recipes.proteus import RECIPES


def models_of(config: DistillConfig) -> tuple[Backbone, Backbone]:
    """Teacher and student of a recipe, without memory or initialisation."""
    with torch.device("meta"):
        teacher, student = (
            load_backbone(reference, weights="random", img_size=224) for reference in (config.teacher, config.student)
        )
    return teacher, student


def trainable(config: DistillConfig) -> int:
    """Parameters of student, heads and mask token, as far as the recipe's terms need them."""
    teacher, student = models_of(config)
    with torch.device("meta"):
        learner = ProteusLearner(student, teacher.embed_dim, config.proteus)
    return sum(parameter.numel() for parameter in learner.parameters())


def recipe(name: str) -> DistillConfig:
    return RECIPES[name](data="images", out="run")


def test_synclr_pairing_has_the_papers_parameters() -> None:
    config = recipe("proteus_b_synclr")
    teacher, student = models_of(config)
    assert teacher.num_parameters + 1024 == 303_179_776
    assert student.num_parameters + 768 == 85_707_264  # the specification counts the mask token
    assert trainable(config) == 88_074_240
    assert (teacher.grid, student.grid) == ((16, 16), (16, 16))


def test_clip_pairing_has_the_papers_parameters_but_no_idle_mask_token() -> None:
    """The released student carries a mask token that its one term never uses; here it is made with the patch term."""
    config = recipe("proteus_b_clip")
    teacher, student = models_of(config)
    assert teacher.num_parameters + 1024 == 303_180_800
    assert student.num_parameters + 768 == 85_708_032
    assert trainable(config) == 86_497_024 - 768
    assert config.proteus.token_weight == 1


def test_students_are_built_like_their_teachers() -> None:
    for name in ("proteus_b_clip", "proteus_b_synclr"):
        for backbone in models_of(recipe(name)):
            model, is_clip = backbone.model, "clip" in name
            assert isinstance(model.norm_pre, nn.LayerNorm) is is_clip
            assert isinstance(model.blocks[0].mlp.act, QuickGELU) is is_clip  # type: ignore[index, union-attr]
            assert (model.patch_embed.proj.bias is None) is is_clip  # type: ignore[union-attr]
            assert isinstance(model.blocks[0].ls1, nn.Identity)  # type: ignore[index, union-attr]


def test_clip_target_is_the_normed_class_token_before_the_projection() -> None:
    config = recipe("proteus_b_clip")
    teacher = load_backbone(config.teacher + "?depth=1", weights="random", img_size=28)
    nn.init.normal_(teacher.model.norm.weight)  # type: ignore[union-attr, arg-type]
    images = torch.rand(2, 3, 28, 28)
    seen: list[torch.Tensor] = []
    teacher.model.blocks[-1].register_forward_hook(lambda *found: seen.append(found[-1]))  # type: ignore[index, operator, union-attr]
    target = teacher.tokens(images).cls
    assert target.shape == (2, 1024)  # CLIP's projection would make 768
    torch.testing.assert_close(target, teacher.model.norm(seen[0])[:, 0])  # type: ignore[operator]


@pytest.mark.parametrize("name", [name for name in RECIPES if f"{name}_paper" in RECIPES])
def test_twins_differ_from_their_recipe_in_the_quirks_alone(name: str) -> None:
    own, twin = recipe(name).model_dump(), recipe(f"{name}_paper").model_dump()
    own["optim"] |= {"schedule": "paper", "ema_warmup": False, "clip_norm": None}
    own["proteus"] |= {"mask_rule": "paper"}
    own["normalisation"] = "imagenet"  # ImageNet's for every teacher, CLIP included
    assert twin == own


def test_only_synclr_among_the_plain_recipes_asks_for_imagenet_statistics() -> None:
    """timm's cfg of the L/14 architecture says 0.5, SynCLR's training code says ImageNet."""
    plain = {name: recipe(name).normalisation for name in RECIPES if not name.endswith("_paper")}
    assert {name for name, value in plain.items() if value == "imagenet"} == {"proteus_b_synclr"}
