"""Oracles of the Proteus specification, section 6, and what the released code gets wrong (section 5)."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attar.config import ProteusConfig
from attar.errors import ShapeError
from attar.methods.proteus import PatchMasks, Proteus, ProteusLearner, Standardiser, draw_masks, resample_tokens
from attar.models import Backbone, load_backbone
from attar.types import Batch, Tokens

TINY = "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=2&num_heads=2&init_values=1.0"
WIDE = "vit_tiny_patch16_224?patch_size=8&embed_dim=48&depth=2&num_heads=2"


def backbone(reference: str = TINY, *, img_size: int = 32, seed: int = 0) -> Backbone:
    return load_backbone(reference, weights="random", img_size=img_size, seed=seed)


def batch_of(count: int, *, img_size: int = 32, step: int = 0, start: int = 0, total: int | None = None) -> Batch:
    generator = torch.Generator().manual_seed(1)
    views = torch.rand(total or count, 3, img_size, img_size, generator=generator)[start : start + count]
    positions = torch.arange(start, start + count)
    return Batch(views, positions, torch.zeros(count, dtype=torch.int64), positions, step, total or count)


def proteus(**settings: object) -> Proteus:
    return Proteus(backbone(WIDE, seed=7), backbone(), ProteusConfig(**settings), seed=0)  # type: ignore[arg-type]


def tokens_of(cls: float, patch: float, *, batch: int = 4, patches: int = 256, dim: int = 8) -> Tokens:
    grid = (int(patches**0.5), int(patches**0.5))
    return Tokens(
        torch.full((batch, dim), cls), torch.full((batch, patches, dim), patch), grid, torch.empty(batch, 0, dim)
    )


def learner_with_outputs(value: float, *, dim: int = 8) -> ProteusLearner:
    """A learner at the paper's grid (16 x 16 of patch 14) whose heads put out one constant."""
    student = backbone("vit_tiny_patch16_224?patch_size=14&embed_dim=16&depth=1&num_heads=1", img_size=224)
    learner = ProteusLearner(student, dim, ProteusConfig())
    for head in (learner.token_head, learner.feature_head, learner.patch_head):
        nn.init.zeros_(head[1].weight)
        nn.init.constant_(head[1].bias, value)
    return learner


def terms_of(learner: ProteusLearner, target: Tokens) -> dict[str, float]:
    batch = batch_of(4, img_size=224)
    masks = draw_masks(batch, 256, ProteusConfig(), seed=0)
    with torch.no_grad():
        terms = learner(batch.views, target, masks, 4)
    return {name: value.item() for name, value in terms.items()}


# --- 6.1 to 6.3: parameters and work ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher_dim", "trainable"),
    [
        ("vit_tiny_patch16_224?patch_size=14&init_values=1.0", 384, 5_729_664),
        ("vit_small_patch14_dinov2?init_values=1.0", 768, 22_518_528),
        pytest.param("vit_base_patch14_dinov2?init_values=1.0", 1024, 88_092_672, marks=pytest.mark.slow),
    ],
)
def test_trainable_parameters_are_the_number_the_paper_logs(student: str, teacher_dim: int, trainable: int) -> None:
    # catches a fourth head, a missing bias, a 37x37 position table, a mask token left out
    learner = ProteusLearner(backbone(student, img_size=224), teacher_dim, ProteusConfig())
    assert sum(p.numel() for p in learner.parameters()) == trainable


def macs(function: object, *arguments: object) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*arguments)  # type: ignore[operator]
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("dim", "heads", "giga"), [(192, 3, 1.69752), pytest.param(384, 6, 6.12356, marks=pytest.mark.slow)]
)
def test_forward_work_is_the_papers(dim: int, heads: int, giga: float) -> None:
    # catches attention over the wrong number of tokens and a second embedding of the same image
    student = backbone(f"vit_tiny_patch16_224?patch_size=14&embed_dim={dim}&num_heads={heads}", img_size=224)
    assert macs(student, torch.rand(1, 3, 224, 224)) / 1e9 == pytest.approx(giga, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({}, 1.5),
        ({"patch_weight": 0.0}, 1.0),
        ({"token_weight": 0.0, "feature_weight": 0.0}, 0.5),
        ({"mask_probability": 0.0}, 1.0),
    ],
)
def test_only_wanted_terms_and_masked_images_cost_student_work(settings: dict[str, float], passes: float) -> None:
    # the released code always pays two passes (section 5.5, 5.6)
    method = proteus(**settings)
    one_pass = macs(method.student, torch.rand(8, 3, 32, 32))
    teacher = macs(method.teacher, torch.rand(8, 3, 32, 32))
    with torch.no_grad():
        spent = macs(method.training_step, batch_of(8)) - teacher
    heads = spent - passes * one_pass
    assert 0 <= heads < 0.35 * one_pass


# --- 6.4: masks --------------------------------------------------------------------------------------------------


def test_masks_hide_the_exact_counts_of_the_oracle() -> None:
    masks = draw_masks(batch_of(128, img_size=8), 256, ProteusConfig(), seed=0)
    assert len(masks.rows) == 64
    assert masks.hidden.sum(1).tolist() == [128] * 64  # Bernoulli masks would scatter around 128
    assert masks.total == 8192
    assert draw_masks(batch_of(4, img_size=8), 256, ProteusConfig(mask_ratio=0.3), seed=0).hidden[0].sum() == 76
    assert len(draw_masks(batch_of(5, img_size=8), 256, ProteusConfig(), seed=0).rows) == 2


def test_paper_rule_masks_the_first_half_of_the_batch() -> None:
    masks = draw_masks(batch_of(128, img_size=8), 256, ProteusConfig(mask_rule="paper"), seed=0)
    assert masks.rows.tolist() == list(range(64))


def test_random_rule_masks_other_images_in_other_steps() -> None:
    first = draw_masks(batch_of(64, img_size=8, step=0), 16, ProteusConfig(), seed=0)
    second = draw_masks(batch_of(64, img_size=8, step=1), 16, ProteusConfig(), seed=0)
    assert first.rows.tolist() != second.rows.tolist()
    assert first.rows.tolist() != list(range(32))


def test_masks_do_not_depend_on_how_the_global_batch_is_split() -> None:
    config = ProteusConfig()
    whole = draw_masks(batch_of(12, img_size=8), 16, config, seed=3)
    by_position = {int(row): whole.hidden[i] for i, row in enumerate(whole.rows)}
    found = {}
    for start in (0, 4, 8):
        part = draw_masks(batch_of(4, img_size=8, start=start, total=12), 16, config, seed=3)
        assert part.total == whole.total
        found |= {start + int(row): part.hidden[i] for i, row in enumerate(part.rows)}
    assert found.keys() == by_position.keys()
    assert all(torch.equal(found[position], by_position[position]) for position in found)


# --- 6.5: losses -------------------------------------------------------------------------------------------------


def test_loss_values_a_constant_targets() -> None:
    terms = terms_of(learner_with_outputs(0.0), tokens_of(1.0, 1.0))
    assert terms == pytest.approx({"token": 1.0, "feature": 1.0, "patch": 1.0})


def test_loss_values_b_class_token_counts_once_among_all_tokens() -> None:
    # catches a feature term without the class token (1.0) or averaged half and half with it (2.5)
    terms = terms_of(learner_with_outputs(0.0), tokens_of(2.0, 1.0))
    assert terms["token"] == pytest.approx(4.0)
    assert terms["feature"] == pytest.approx(260 / 257, rel=1e-6)
    assert terms["patch"] == pytest.approx(1.0)
    assert sum(terms.values()) == pytest.approx(6.0116731518, rel=1e-6)


@pytest.mark.parametrize("delta", [0.5, -2.0])
def test_loss_values_c_constant_offset(delta: float) -> None:
    # catches an L1 distance, a sum over channels, a halved square
    terms = terms_of(learner_with_outputs(1.0 + delta), tokens_of(1.0, 1.0))
    assert sum(terms.values()) == pytest.approx(3 * delta**2, rel=1e-5)


def test_loss_is_zero_when_student_equals_teacher() -> None:
    assert sum(terms_of(learner_with_outputs(1.5), tokens_of(1.5, 1.5)).values()) == pytest.approx(0.0, abs=1e-9)


def test_loss_identity_d_feature_term_is_token_and_clean_patches() -> None:
    method = proteus()
    batch, patches = batch_of(6), 16
    target = method.target(batch.views)
    learner: ProteusLearner = method.learner  # type: ignore[assignment]
    terms = learner(batch.views, target, draw_masks(batch, patches, ProteusConfig(), seed=0), 6)
    clean = learner.student(batch.views)
    clean_patches = (learner.feature_head(clean.patch) - target.patch).square().mean()
    assert (terms["feature"] * (patches + 1)).item() == pytest.approx(
        (terms["token"] + patches * clean_patches).item(), rel=1e-5
    )


def test_gradient_e_of_the_class_token_has_both_weights() -> None:
    # the bias of the token head sees each error of its channel once; catches a detached or doubled class token
    learner, batch = learner_with_outputs(0.0), batch_of(4, img_size=224)
    target = tokens_of(2.0, 1.0)
    terms = learner(batch.views, target, draw_masks(batch, 256, ProteusConfig(), seed=0), 4)
    sum(terms.values()).backward()  # type: ignore[union-attr]
    expected = 4 * 2 * (0.0 - 2.0) / (4 * 8) * (1 + 1 / 257)
    torch.testing.assert_close(learner.token_head[1].bias.grad, torch.full((8,), expected))


def test_patch_term_f_ignores_visible_positions_and_the_order_of_hidden_ones() -> None:
    method = proteus()
    learner: ProteusLearner = method.learner  # type: ignore[assignment]
    batch = batch_of(6)
    masks = draw_masks(batch, 16, ProteusConfig(), seed=0)
    target = method.target(batch.views)
    masked = torch.randn(len(masks.rows), 16, 32)
    value = learner._patch_term(masked, target, masks)
    visible_changed = torch.where(masks.hidden[..., None], masked, torch.randn_like(masked))
    torch.testing.assert_close(learner._patch_term(visible_changed, target, masks), value)
    order = torch.tensor([2, 0, 1])
    shuffled = PatchMasks(masks.rows[order], masks.hidden[order], masks.total)
    torch.testing.assert_close(learner._patch_term(masked[order], target, shuffled), value)
    hidden_changed = torch.where(masks.hidden[..., None], torch.randn_like(masked), masked)
    assert not torch.allclose(learner._patch_term(hidden_changed, target, masks), value)


def test_gradients_g_reach_mask_token_and_never_the_teacher_or_the_masked_class_token() -> None:
    method = proteus()
    seen: list[Tokens] = []

    def keep(_module: nn.Module, _inputs: object, output: Tokens) -> None:
        output.cls.retain_grad()
        seen.append(output)

    method.student.register_forward_hook(keep)
    method.training_step(batch_of(8)).loss.backward()
    learner: ProteusLearner = method.learner  # type: ignore[assignment]
    assert learner.mask_token.grad is not None
    assert learner.mask_token.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert seen[0].cls.grad is not None
    assert seen[0].cls.grad[:8].abs().sum() > 0
    assert seen[0].cls.grad[8:].abs().sum() == 0
    assert all(p.grad is not None for p in learner.parameters())


@pytest.mark.parametrize("settings", [{}, {"token_weight": 0.0, "feature_weight": 0.0}])
def test_a_part_without_masked_images_still_reaches_every_parameter(settings: dict[str, float]) -> None:
    # on several ranks the others wait for its gradients, and under FSDP2 for its share of the student's weights
    method = proteus(mask_probability=1 / 8, **settings)
    parts = [batch_of(1, start=start, total=8) for start in range(8)]
    empty = [part for part in parts if len(draw_masks(part, 16, method.config, seed=0).rows) == 0]
    assert len(empty) == 7
    output = method.training_step(empty[0])
    output.loss.backward()
    assert output.terms["patch"].item() == 0
    assert [name for name, p in method.learner.named_parameters() if p.grad is None] == []


def test_packed_h_pass_equals_two_separate_passes() -> None:
    method = proteus()
    learner: ProteusLearner = method.learner  # type: ignore[assignment]
    nn.init.normal_(learner.mask_token)
    batch = batch_of(6)
    masks = draw_masks(batch, 16, ProteusConfig(), seed=0)
    clean, masked = learner._passes(batch.views, masks)
    apart = learner.student(batch.views)
    hidden = learner.student(batch.views[masks.rows], masks=masks.hidden, mask_token=learner.mask_token)
    assert clean is not None
    assert masked is not None
    torch.testing.assert_close(clean.cls, apart.cls, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(clean.patch, apart.patch, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(masked, hidden.patch, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(masked, apart.patch[masks.rows])


def test_sliced_pass_gives_the_loss_and_gradients_of_the_full_one() -> None:
    # the released code masks a share of the batch and runs all of it; in float64 nothing may differ
    method = proteus()
    learner: ProteusLearner = method.learner  # type: ignore[assignment]
    learner.double()
    batch = replace(batch_of(6), views=batch_of(6).views.double())
    method.teacher.double()
    target = method.target(batch.views)
    masks = draw_masks(batch, 16, ProteusConfig(), seed=0)
    full = torch.zeros(6, 16, dtype=torch.bool)
    full[masks.rows] = masks.hidden

    clean = learner.student(batch.views)
    hidden = learner.student(batch.views, masks=full, mask_token=learner.mask_token)
    token = (learner.token_head(clean.cls) - target.cls).square().mean()
    everything = torch.cat([learner.token_head(clean.cls)[:, None], learner.feature_head(clean.patch)], 1)
    feature = (everything - torch.cat([target.cls[:, None], target.patch], 1)).square().mean()
    patch = (learner.patch_head(hidden.patch[full]) - target.patch[full]).square().mean()
    reference = torch.autograd.grad(token + feature + patch, list(learner.parameters()))

    terms = learner(batch.views, target, masks, 6)
    assert [terms[k].item() for k in ("token", "feature", "patch")] == pytest.approx(
        [token.item(), feature.item(), patch.item()], rel=1e-12
    )
    found = torch.autograd.grad(sum(terms.values()), list(learner.parameters()))  # type: ignore[arg-type]
    for ours, theirs in zip(found, reference, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


# --- shares, switches, learning ------------------------------------------------------------------------------------


def gradients(method: Proteus, batches: list[Batch]) -> list[Tensor]:
    for batch in batches:
        method.training_step(replace(batch, views=batch.views.double())).loss.backward()
    return [p.grad for p in method.learner.parameters() if p.grad is not None]


def test_shares_of_a_split_batch_add_up_to_the_whole() -> None:
    # also where one part holds no masked image: positions 0..1 may be clean while the rest is not
    method = proteus(mask_probability=0.25)
    method.learner.double()
    method.teacher.double()
    other = copy.deepcopy(method)
    whole = gradients(method, [batch_of(8)])
    parts = gradients(other, [batch_of(2, start=start, total=8) for start in (0, 2, 4, 6)])
    assert len(whole) == len(parts) == len(list(method.learner.parameters()))
    for one, many in zip(whole, parts, strict=True):
        torch.testing.assert_close(many, one, rtol=1e-9, atol=1e-12)


def test_switched_off_terms_have_no_head() -> None:
    names = {name.split(".")[0] for name, _ in proteus(patch_weight=0.0, feature_weight=0.0).learner.named_parameters()}
    assert names == {"student", "token_head"}
    names = {name.split(".")[0] for name, _ in proteus(token_weight=0.0, feature_weight=0.0).learner.named_parameters()}
    assert names == {"student", "patch_head", "mask_token"}


def test_masking_no_image_is_legal_and_leaves_the_patch_term_out() -> None:
    # the released code divides by zero here (section 5.5)
    output = proteus(mask_probability=0.0).training_step(batch_of(4))
    assert set(output.terms) == {"token", "feature"}
    assert torch.isfinite(output.loss)


def test_weights_scale_their_terms() -> None:
    output = proteus(token_weight=2.0, feature_weight=0.5, patch_weight=3.0).training_step(batch_of(6))
    terms = output.terms
    assert output.loss.item() == pytest.approx(
        (2 * terms["token"] + 0.5 * terms["feature"] + 3 * terms["patch"]).item()
    )


def test_ten_steps_on_one_batch_lower_every_term() -> None:
    method = proteus()
    optimizer = torch.optim.AdamW(method.learner.parameters(), lr=1e-3)
    before = method.training_step(batch_of(8)).terms
    for _ in range(10):
        method.training_step(batch_of(8)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = method.training_step(batch_of(8)).terms
    assert all(after[name] < before[name] for name in before)


def test_teacher_stays_in_eval_mode_and_unchanged() -> None:
    method = proteus()
    before = {k: v.clone() for k, v in method.teacher.state_dict().items()}
    method.learner.train()
    method.training_step(batch_of(4)).loss.backward()
    assert not any(module.training for module in method.teacher.modules())
    assert all(torch.equal(before[k], v) for k, v in method.teacher.state_dict().items())
    assert not any(name.startswith("teacher") for name in method.learner.state_dict())


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_the_host_never_waits_for_the_gpu_within_a_step() -> None:
    # indexing by a mask on the device, a copy from pageable memory or .item() would stall it, as the teacher is slow
    method, batch = proteus(), batch_of(8).to(torch.device("cuda"))
    for module in (method.teacher, method.learner):
        module.cuda()
    method.training_step(batch).loss.backward()  # what is set up once may wait
    try:
        torch.cuda.set_sync_debug_mode("error")
        method.training_step(batch).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- options -------------------------------------------------------------------------------------------------------


def test_other_grids_need_the_option_and_say_so() -> None:
    teacher = backbone("vit_tiny_patch16_224?patch_size=16&embed_dim=48&depth=1&num_heads=2")
    with pytest.raises(ShapeError, match=r"(?s)4x4.*2x2.*Try --proteus.resample-tokens, or --img-size 16 .* 32\.$"):
        Proteus(teacher, backbone(), ProteusConfig(), seed=0)
    conv = load_backbone("test_resnet", weights="random", img_size=32)
    with pytest.raises(ShapeError, match=r"(?s)4x4.*1x1.*or \?output_stride=8 in --teacher\.$"):
        Proteus(conv, backbone(), ProteusConfig(), seed=0)
    method = Proteus(teacher, backbone(), ProteusConfig(resample_tokens=True), seed=0)
    assert method.target(batch_of(2).views).patch.shape == (2, 16, 48)
    assert torch.isfinite(method.training_step(batch_of(4)).loss)


def test_what_is_measured_ends_after_five_hundred_views() -> None:
    """However long the run: statistics cost a short one no more than they must."""
    method, left = proteus(standardise_targets=True), iter([batch_of(150, step=step) for step in range(6)])
    method.prepare(left)
    assert next(left).step == 4


def test_resampled_tokens_keep_a_linear_ramp_and_the_mean() -> None:
    ramp = torch.arange(4.0).repeat(4, 1).reshape(1, 16, 1)  # value = column
    tokens = Tokens(torch.zeros(1, 1), ramp, (4, 4), torch.empty(1, 0, 1))
    coarse = resample_tokens(tokens, (2, 2)).patch.reshape(2, 2)
    assert coarse.mean().item() == pytest.approx(1.5)
    assert coarse[0, 0] < coarse[0, 1]
    torch.testing.assert_close(coarse[0], coarse[1])  # rows and columns not swapped


def test_teacher_sees_the_views_at_its_own_size() -> None:
    teacher = backbone("vit_tiny_patch16_224?patch_size=16&embed_dim=48&depth=1&num_heads=2", img_size=64)
    method = Proteus(teacher, backbone(), ProteusConfig(), seed=0)
    assert torch.isfinite(method.training_step(batch_of(4, img_size=64)).loss)


def test_conv_teacher_and_conv_student() -> None:
    conv = backbone("resnet10t", img_size=64)
    method = Proteus(conv, backbone(img_size=64), ProteusConfig(resample_tokens=True), seed=0)
    assert torch.isfinite(method.training_step(batch_of(4, img_size=64)).loss)
    with pytest.raises(ShapeError, match="patch-weight 0"):
        Proteus(backbone(WIDE, img_size=64), conv, ProteusConfig(resample_tokens=True), seed=0)
    student = Proteus(backbone(WIDE, img_size=64), conv, ProteusConfig(resample_tokens=True, patch_weight=0.0), seed=0)
    assert set(student.training_step(batch_of(4, img_size=64)).terms) == {"token", "feature"}


SIZELESS = "&pos_embed=none&dynamic_img_size=true"


def in_two_sizes(**settings: object) -> Proteus:
    """A method whose models see 16 px in the first two steps and 32 px afterwards; weights know no size."""
    teacher, student = backbone(WIDE + SIZELESS, seed=7), backbone(TINY + SIZELESS)
    config = ProteusConfig(small_size=16, **settings)  # type: ignore[arg-type]
    return Proteus(teacher, student, config, seed=0, small_steps=2)


@pytest.mark.parametrize("settings", [{}, {"standardise_targets": True}, {"token_weight": 0.0, "feature_weight": 0.0}])
def test_small_views_give_the_step_of_models_of_that_size(settings: dict[str, object]) -> None:
    # catches a teacher that sees the whole view, masks of the whole grid, and an end of the phase that is one step off
    method = in_two_sizes(**settings)
    whole, small = copy.deepcopy(method), copy.deepcopy(method)
    whole.small_steps = 0
    small.sizes, small.small_steps = replace(method.small_sizes), 0
    for step in range(4):
        batch = batch_of(8, step=step)
        wanted = (small if step < 2 else whole).training_step(batch)
        found = method.training_step(batch)
        assert found.loss.item() == wanted.loss.item() > 0
        assert {k: v.item() for k, v in found.terms.items()} == {k: v.item() for k, v in wanted.terms.items()}
    assert method.small_sizes.student_grid == (2, 2)


def test_small_views_are_smaller_for_both_models() -> None:
    method, seen = in_two_sizes(), list[tuple[int, ...]]()
    for model in (method.teacher, method.student):
        model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    method.training_step(batch_of(8, step=1))
    method.training_step(batch_of(8, step=2))
    assert seen == [(8, 3, 16, 16), (12, 3, 16, 16), (8, 3, 32, 32), (12, 3, 32, 32)]


def test_small_views_of_a_teacher_of_another_size_are_in_proportion() -> None:
    teacher = backbone("resnet10t?output_stride=8", img_size=64)
    student = backbone(TINY + SIZELESS)
    config = ProteusConfig(small_size=16, resample_tokens=True)
    method = Proteus(teacher, student, config, seed=0, small_steps=1)
    assert (method.small_sizes.teacher, method.small_sizes.teacher_grid) == (32, (4, 4))
    assert torch.isfinite(method.training_step(batch_of(4, img_size=64)).loss)


@pytest.mark.parametrize(
    ("teacher", "student", "settings", "says"),
    [
        (WIDE + SIZELESS, TINY, {}, r"student .* takes 32 px only.*dynamic_img_size=true .* in --student"),
        (WIDE, TINY + SIZELESS, {}, r"teacher .* takes 32 px only.*dynamic_img_size=true .* in --teacher"),
        (
            WIDE + SIZELESS,
            TINY + SIZELESS,
            {"small_size": 20},
            "20 px are no multiple of .* 8 px. Try --proteus.small-size 16",
        ),
        (
            WIDE + SIZELESS,
            TINY + SIZELESS,
            {"small_size": 8},
            "leaves 1 patches, and proteus.mask_ratio 0.5 hides none",
        ),
    ],
)
def test_models_that_do_not_take_small_views_say_so(
    teacher: str, student: str, settings: dict[str, int], says: str
) -> None:
    config = ProteusConfig(**{"small_size": 16, **settings})  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=says):
        Proteus(backbone(teacher), backbone(student), config, seed=0, small_steps=1)


def test_cosine_criterion_ignores_the_length_of_targets() -> None:
    method = proteus(criterion="cosine")
    batch = batch_of(6)
    learner: ProteusLearner = method.learner  # type: ignore[assignment]
    target, masks = method.target(batch.views), draw_masks(batch, 16, ProteusConfig(), seed=0)
    plain = learner(batch.views, target, masks, 6)
    longer = learner(batch.views, target.map(lambda t: 3 * t), masks, 6)
    assert {k: v.item() for k, v in longer.items()} == pytest.approx({k: v.item() for k, v in plain.items()}, rel=1e-5)


def test_standardised_targets_have_mean_zero_and_std_one_per_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    scale, shift = torch.tensor([1.0, 50.0, 0.02]), torch.tensor([0.0, -7.0, 3.0])
    draws = [torch.randn(32, 17, 3, generator=generator) * scale + shift for _ in range(8)]
    tokens = [Tokens(d[:, 0], d[:, 1:], (4, 4), d[:, :0]) for d in draws]
    standardiser = Standardiser(3)
    standardiser.measure(tokens)
    patch = torch.cat([standardiser(t).patch for t in tokens]).flatten(0, 1)
    cls = torch.cat([standardiser(t).cls for t in tokens])
    for values in (patch, cls):
        torch.testing.assert_close(values.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(values.std(0, correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_standardised_targets_are_measured_by_the_method_and_saved_with_the_learner() -> None:
    method = proteus(standardise_targets=True)
    method.prepare([batch_of(8), batch_of(8, step=1)])
    saved = method.learner.state_dict()
    assert saved["standardiser.patch_std"].min() > 0
    assert not torch.equal(saved["standardiser.patch_std"], torch.ones(48))
    assert torch.isfinite(method.training_step(batch_of(4)).loss)
