"""Weight selection (Xu et al., ICLR 2024): which of the teacher's layers and elements a student starts from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn

from attar.errors import WeightsError
from attar.models import Backbone, load_backbone
from attar.models.selection import LayerChoice, select_weights, start_from_teacher

VIT = "vit_tiny_patch16_224?patch_size=8"


def vit(
    *, embed_dim: int, depth: int, num_heads: int = 2, more: str = "", seed: int = 0, img_size: int = 32
) -> Backbone:
    reference = f"{VIT}&embed_dim={embed_dim}&depth={depth}&num_heads={num_heads}{more}"
    backbone = load_backbone(reference, weights="random", img_size=img_size, seed=seed)
    with torch.no_grad():
        for number, parameter in enumerate(backbone.model.parameters()):  # norms and biases start all alike
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1000 * seed + number)))
    return backbone


def states(teacher: Backbone, student: Backbone) -> tuple[dict[str, Any], dict[str, Any]]:
    return dict(teacher.model.state_dict()), dict(student.model.state_dict())


def test_elements_are_the_teachers_at_evenly_spaced_indices() -> None:
    """Would catch the first d of D channels, and rounding in place of flooring: i * 48 // 32 = 0, 1, 3, 4, 6 ..."""
    teacher, student = states(vit(embed_dim=48, depth=3), vit(embed_dim=32, depth=2, seed=1))
    state = select_weights(teacher, student).state
    channel = torch.tensor([i * 48 // 32 for i in range(32)])
    hidden = torch.tensor([i * 192 // 128 for i in range(128)])
    assert channel[:5].tolist() == [0, 1, 3, 4, 6]
    for block in (0, 1):
        fc1 = f"blocks.{block}.mlp.fc1.weight"
        assert torch.equal(state[fc1], teacher[fc1][hidden][:, channel])
        norm = f"blocks.{block}.norm1.weight"
        assert torch.equal(state[norm], teacher[norm][channel])
    assert torch.equal(state["cls_token"], teacher["cls_token"][..., channel])
    assert torch.equal(state["pos_embed"], teacher["pos_embed"][..., channel])
    assert torch.equal(state["patch_embed.proj.weight"], teacher["patch_embed.proj.weight"][channel])


def test_query_key_and_value_of_a_fused_layer_stay_apart() -> None:
    teacher, student = states(vit(embed_dim=48, depth=1), vit(embed_dim=32, depth=1, seed=1))
    selected = select_weights(teacher, student).state["blocks.0.attn.qkv.bias"].view(3, 32)
    channel = torch.tensor([i * 48 // 32 for i in range(32)])
    assert torch.equal(selected, teacher["blocks.0.attn.qkv.bias"].view(3, 48)[:, channel])


@pytest.mark.parametrize(("layers", "blocks"), [("first", [0, 1, 2]), ("uniform", [0, 2, 4])])
def test_layers_are_the_first_or_evenly_spaced_ones(layers: LayerChoice, blocks: list[int]) -> None:
    teacher, student = states(vit(embed_dim=16, depth=7), vit(embed_dim=16, depth=3, seed=1))
    state = select_weights(teacher, student, layers=layers).state
    for block, source in enumerate(blocks):
        name = "attn.proj.weight"
        assert torch.equal(state[f"blocks.{block}.{name}"], teacher[f"blocks.{source}.{name}"])


@pytest.mark.parametrize("layers", ["first", "uniform"])
def test_a_student_of_the_teachers_size_gives_its_outputs(layers: LayerChoice) -> None:
    teacher, student = vit(embed_dim=32, depth=2), vit(embed_dim=32, depth=2, seed=1)
    teacher.normalise_with(replace(teacher.preprocess, mean=(0.1, 0.2, 0.3)))
    selection = start_from_teacher(student, teacher, layers=layers)
    images = torch.rand(2, 3, 32, 32)
    for mine, theirs in zip(_tensors(student, images), _tensors(teacher, images), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert selection.random == {}


def _tensors(backbone: Backbone, images: Tensor) -> tuple[Tensor, Tensor]:
    tokens = backbone.tokens(images)
    return tokens.cls, tokens.patch


def test_teacher_is_left_as_it_was() -> None:
    teacher, student = vit(embed_dim=32, depth=2), vit(embed_dim=32, depth=2, seed=1)
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    start_from_teacher(student, teacher)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in teacher.model.state_dict().items())


def test_convnext_selects_within_each_stage() -> None:
    teacher, student = (
        load_backbone(f"convnext_atto?depths={depths}&dims={dims}", weights="random", img_size=64, seed=seed)
        for seed, (depths, dims) in enumerate([((2, 2, 4, 2), (8, 16, 24, 32)), ((1, 1, 2, 2), (4, 8, 16, 24))])
    )
    nn.init.normal_(teacher.model.stages[2].blocks[2].conv_dw.bias)  # type: ignore[index, union-attr, arg-type]
    given, start = states(teacher, student)
    selection = select_weights(given, start, layers="uniform")
    assert selection.random == {}
    channel = [i * 24 // 16 for i in range(16)]
    assert torch.equal(
        selection.state["stages.2.blocks.1.conv_dw.bias"], given["stages.2.blocks.2.conv_dw.bias"][channel]
    )


def test_positions_and_patch_kernels_of_other_sizes_are_resampled_first() -> None:
    teacher = vit(embed_dim=24, depth=1, img_size=64)  # 8 x 8 patches of 8 px
    student = load_backbone(
        "vit_tiny_patch16_224?patch_size=16&embed_dim=24&depth=1&num_heads=2", weights="random", img_size=64
    )
    start_from_teacher(student, teacher)
    given, state = states(teacher, student)
    table = resample_abs_pos_embed(given["pos_embed"], [4, 4], num_prefix_tokens=1)
    assert torch.equal(state["pos_embed"], table)
    kernel = resample_patch_embed(given["patch_embed.proj.weight"], [16, 16])
    torch.testing.assert_close(state["patch_embed.proj.weight"], kernel)


def test_every_tensor_is_selected_or_named_with_the_reason() -> None:
    teacher = vit(embed_dim=32, depth=1)
    student = vit(embed_dim=24, depth=2, more="&init_values=1.0&reg_tokens=2", seed=1)
    given, start = states(teacher, student)
    selection = select_weights(given, start)
    assert set(selection.state) == set(start)
    for name, reason in selection.random.items():
        assert torch.equal(selection.state[name], start[name])
        assert name in reason or "no part" in reason
    assert {"reg_token", "blocks.0.ls1.gamma", "blocks.1.norm1.weight"} <= set(selection.random)
    assert selection.random["reg_token"] == "the teacher has no reg_token"
    selected = set(start) - set(selection.random)
    assert selected
    assert not any(torch.equal(selection.state[name], start[name]) for name in selected)


def test_other_grids_without_resampling_and_other_ranks_stay_random() -> None:
    teacher = {"blocks.0.a": torch.ones(4), "pos_embed": torch.ones(1, 17, 4), "b": torch.ones(4, 4)}
    student = {"blocks.0.a": torch.zeros(2), "pos_embed": torch.zeros(1, 5, 2), "b": torch.zeros(2)}
    random = select_weights(teacher, student).random
    assert random == {
        "pos_embed": "(1, 5, 2) is no part of the teacher's (1, 17, 4)",
        "b": "(2,) has other dimensions than the teacher's (4, 4)",
    }


def test_a_gated_mlp_is_not_taken_for_a_plain_one() -> None:
    """The paper's ViT-g teaches ViT-L: fc1 of SwiGLU holds values and gates, and every second of them is neither."""
    teacher = load_backbone("vit_giant_patch14_dinov2?embed_dim=48&depth=1&num_heads=2", weights="random", img_size=28)
    student = load_backbone("vit_large_patch14_dinov2?embed_dim=24&depth=1&num_heads=2", weights="random", img_size=28)
    random = select_weights(*states(teacher, student)).random
    assert set(random) == {f"blocks.0.mlp.{name}" for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")}
    assert set(random.values()) == {"one of the two MLPs is gated"}


@pytest.mark.parametrize(
    ("teacher", "student", "reason"),
    [
        (VIT + "&embed_dim=32&depth=1&num_heads=2", "resnet10t", "no layers called blocks"),
        ("convnext_atto", VIT + "&embed_dim=32&depth=1&num_heads=2", "the teacher has no blocks.0.norm1.weight"),
        (
            VIT + "&embed_dim=32&depth=1&num_heads=2",
            VIT + "&embed_dim=48&depth=1&num_heads=2",
            r"\(48,\) is no part of the teacher's \(32,\)",
        ),
    ],
)
def test_pairs_of_two_families_and_larger_students_are_errors(teacher: str, student: str, reason: str) -> None:
    models = [load_backbone(reference, weights="random", img_size=32) for reference in (teacher, student)]
    with pytest.raises(
        WeightsError, match=f"cannot start from.*{reason}.*timm's models of one family.*--student-weights random"
    ):
        start_from_teacher(models[1], models[0])


def test_provenance_names_what_stayed_random_and_keeps_the_teachers_licence() -> None:
    teacher = vit(embed_dim=32, depth=1)
    teacher.source = replace(teacher.source, licence="apache-2.0")
    student = vit(embed_dim=24, depth=2, more="&init_values=1.0")
    start_from_teacher(student, teacher)
    assert student.source.licence == "apache-2.0"
    assert student.source.weights == (
        "selected from the teacher (first layers),"
        " random: blocks.0.ls1.gamma, blocks.0.ls2.gamma, blocks.1.norm1.weight and 13 more"
    )


def test_a_student_of_timm_starts_from_an_open_clip_tower() -> None:
    """Of the same size it is the teacher: its tokens would differ by any tensor that went to a wrong place."""
    pytest.importorskip("open_clip")
    import small_clip

    small_clip.register()
    teacher = load_backbone(small_clip.REFERENCE, weights="random", seed=3)
    clip = "vit_base_patch32_clip_224?patch_size=8&embed_dim={}&depth={}&num_heads={}"
    copy, small = (
        load_backbone(clip.format(*shape), weights="random", img_size=32) for shape in ((32, 2, 2), (16, 1, 1))
    )
    assert start_from_teacher(copy, teacher).random == {}
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for part in ("cls", "patch"):
        given, wanted = (getattr(model.tokens(images), part) for model in (copy, teacher))
        torch.testing.assert_close(given, wanted, rtol=0, atol=1e-5)
    assert start_from_teacher(small, teacher, layers="uniform").random == {}
    proj = teacher.model.visual.transformer.resblocks[0].mlp.c_proj.weight  # type: ignore[union-attr, index]
    assert torch.equal(small.model.blocks[0].mlp.fc2.weight, proj[::2, ::2])  # type: ignore[union-attr, index]
    assert small.preprocess == teacher.preprocess
