from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from attar.config import OptimConfig, ProteusConfig
from attar.errors import CheckpointError
from attar.methods.proteus import ProteusLearner
from attar.models import load_backbone
from attar.train import TrainState, build_state, load_checkpoint, save_checkpoint

TINY = "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=1&num_heads=2&init_values=1.0"


def state_of(config: OptimConfig = OptimConfig(), reference: str = TINY, img_size: int = 32) -> TrainState:  # noqa: B008
    student = load_backbone(reference, weights="random", img_size=img_size)
    return build_state(ProteusLearner(student, 48, ProteusConfig()), student, config)


def test_decay_falls_on_tensors_of_two_or_more_dimensions() -> None:
    # oracle 6.10; catches DeiT's exclusion of class token and position table, and decay on LayerScale
    state = state_of(reference="vit_small_patch14_dinov2?init_values=1.0&depth=2", img_size=224)
    names = {id(p): name for name, p in state.learner.named_parameters()}
    decays = {names[id(p)]: group["weight_decay"] for group in state.optimizer.param_groups for p in group["params"]}
    assert len(decays) == len(names)
    for name, parameter in state.learner.named_parameters():
        assert decays[name] == (0.05 if parameter.ndim >= 2 else 0.0), name
    assert decays["student.model.cls_token"] == decays["student.model.pos_embed"] == decays["mask_token"] == 0.05
    assert decays["student.model.blocks.0.ls1.gamma"] == 0.0


def follow(config: OptimConfig, updates: int) -> float:
    """What is left of the initial weight in the average after the student jumped to zero."""
    state = state_of(config)
    assert state.ema is not None
    student: nn.Module = state.learner.student  # type: ignore[assignment]
    parameter = student.model.cls_token  # type: ignore[union-attr]
    average = state.ema.module.model.cls_token
    with torch.no_grad():
        average.fill_(1.0)  # type: ignore[union-attr, operator]
        parameter.zero_()  # type: ignore[union-attr, operator]
    for state.step in range(1, updates + 1):
        state.update_ema()
    return float(average.detach().mean())  # type: ignore[union-attr, operator]


def test_average_without_warmup_forgets_at_the_papers_rate() -> None:
    # oracle 6.9; catches an update by (1 - decay) of the wrong side and a warm-up that is on in paper mode
    left = follow(OptimConfig(ema_warmup=False), 200)
    assert left == pytest.approx(0.99996**200, rel=1e-4)
    rate = left ** (1 / 200)
    assert math.log(0.5) / math.log(rate) == pytest.approx(17_328, rel=5e-3)
    assert rate**375_300 == pytest.approx(3.02e-7, rel=0.3)  # what 200 float32 updates say of the whole run


def test_average_with_warmup_follows_a_short_run() -> None:
    assert follow(OptimConfig(ema_warmup=True), 50) < 0.2


def test_average_can_be_switched_off() -> None:
    assert state_of(OptimConfig(ema_decay=0.0)).ema is None


def step_once(state: TrainState, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in state.learner.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for group in state.optimizer.param_groups:
        group["lr"] = 1e-3
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1
    state.update_ema()


Algorithm = Literal["adamw", "muon"]


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_state_taken_over_from_tensors_goes_on_bit_for_bit(algorithm: Algorithm) -> None:
    config = OptimConfig(algorithm=algorithm)
    first, second = state_of(config), state_of(config, reference=TINY.replace("init_values=1.0", "init_values=0.5"))
    for seed in range(3):
        step_once(first, seed)
    second.load_tensors({name: value.clone() for name, value in first.tensors().items()})
    second.step = first.step
    for seed in range(3, 6):
        step_once(first, seed)
        step_once(second, seed)
    for name, value in first.tensors().items():
        assert torch.equal(value, second.tensors()[name]), name


def test_a_parameter_that_never_got_a_gradient_does_not_hinder_a_resume() -> None:
    first, second = state_of(), state_of()
    for state in (first, second):
        state.learner.unused = nn.Linear(3, 3)
        state.optimizer.add_param_group({"params": list(state.learner.unused.parameters())})
    first.optimizer.param_groups[-1]["params"], held = [], first.optimizer.param_groups[-1]["params"]
    step_once(first, 0)
    first.optimizer.param_groups[-1]["params"] = held
    second.load_tensors({name: value.clone() for name, value in first.tensors().items()})
    assert not any("unused" in name for name in second.tensors() if name.startswith("optimizer"))


def test_tensors_hold_learner_optimizer_and_average_and_no_teacher() -> None:
    state = state_of()
    step_once(state, 0)
    rooms = {name.split("/")[0] for name in state.tensors()}
    assert rooms == {"learner", "optimizer", "ema"}
    assert any("exp_avg_sq" in name for name in state.tensors())


def test_students_are_known_by_their_roles() -> None:
    state = state_of()
    assert state.ema is not None
    assert state.roles == ("student", "ema")
    assert state.plain("student") is state.student
    assert state.plain("ema") is state.ema.module
    assert state_of(OptimConfig(ema_decay=0.0)).roles == ("student",)


def test_adamw_is_the_formula() -> None:
    # one kernel for all tensors; catches decay that is not decoupled, and a missing correction of the first steps
    state = state_of(OptimConfig(betas=(0.8, 0.95)))
    parameter = state.learner.mask_token
    value, mean, square = parameter.detach().double(), 0.0, 0.0  # type: ignore[operator, union-attr]
    for step in range(1, 4):
        generator = torch.Generator().manual_seed(step)
        gradients = {name: torch.randn(p.shape, generator=generator) for name, p in state.learner.named_parameters()}
        gradient = gradients["mask_token"].double()
        mean, square = 0.8 * mean + 0.2 * gradient, 0.95 * square + 0.05 * gradient**2
        change = (mean / (1 - 0.8**step)) / ((square / (1 - 0.95**step)).sqrt() + 1e-8)
        value = value * (1 - 1e-3 * 0.05) - 1e-3 * change
        step_once(state, step)
    torch.testing.assert_close(parameter.detach().double(), value, rtol=1e-5, atol=1e-7)  # type: ignore[operator, union-attr]


def test_state_of_adamw_in_many_kernels_goes_on_in_one() -> None:
    # what checkpoints of attar 0.1.0 hold; catches a count of steps that begins anew, of which the next step is thrice
    config = OptimConfig()
    before, now = state_of(config), state_of(config)
    before.optimizer = torch.optim.AdamW(
        param_groups_weight_decay(before.learner, config.weight_decay), lr=0.0, betas=config.betas, eps=1e-8
    )
    for step in range(3):
        step_once(before, step)
    now.load_tensors(before.tensors())
    for state in (before, now):
        step_once(state, 3)
    for (name, wanted), found in zip(
        before.learner.state_dict().items(), now.learner.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7, msg=name)


def test_muon_takes_the_matrices_and_leaves_the_rest_to_adamw() -> None:
    state = state_of(OptimConfig(algorithm="muon"))
    step_once(state, 0)
    for name, parameter in state.learner.named_parameters():
        is_matrix = name.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight", "head.1.weight"))
        assert ("momentum_buffer" in state.optimizer.state[parameter]) is is_matrix, name
        assert ("exp_avg_sq" in state.optimizer.state[parameter]) is not is_matrix, name


def test_a_step_of_muon_is_orthogonal_and_as_large_as_one_of_adamw() -> None:
    # catches the other scalings, which would need a learning rate of their own, and a step along the gradient
    state = state_of(OptimConfig(algorithm="muon", weight_decay=0.0))
    parameters = dict(state.learner.named_parameters())
    names = [name for name in parameters if name.endswith(("qkv.weight", "fc1.weight", "fc2.weight"))]
    before = {name: parameters[name].detach().clone() for name in names}
    step_once(state, 0)
    for name in names:
        change = (parameters[name].detach() - before[name]) / 1e-3
        assert change.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.15), name
        singular = torch.linalg.svdvals(change)
        assert singular[0] / singular[-1] < 2, name  # of a random gradient of such a shape it is 3 to 6


def test_a_rate_of_its_own_holds_under_muon() -> None:
    student = load_backbone(TINY, weights="random", img_size=32)
    learner = ProteusLearner(student, 48, ProteusConfig())
    groups = [{"params": list(learner.parameters()), "weight_decay": 0.0, "lr_scale": 0.0}]
    state = build_state(learner, student, OptimConfig(algorithm="muon"), groups=lambda module, decay: groups)
    assert state.optimizer.param_groups[0]["lr_scale"] == 0.0


@pytest.mark.parametrize(("before", "now"), [("adamw", "muon"), ("muon", "adamw")])
def test_state_of_another_optimizer_is_no_state(tmp_path: Path, before: Algorithm, now: Algorithm) -> None:
    state = state_of(OptimConfig(algorithm=before))
    step_once(state, 0)
    save_checkpoint(tmp_path, state, {}, keep=1)
    with pytest.raises(CheckpointError, match=f"its optimizer is {before}, by another optim.algorithm"):
        load_checkpoint(tmp_path, state_of(OptimConfig(algorithm=now)), {})
