"""`optim.recompute`: what happens within blocks is computed twice, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attar.config import OptimConfig, ProteusConfig
from attar.errors import ConfigError
from attar.methods import Proteus
from attar.models import Backbone, Preprocess, Provenance, load_backbone
from attar.train import build_state
from small_models import TINY, WIDE, backbone, batch_of, one_pass

DEEP = TINY.replace("depth=2", "depth=6")


def method_of(reference: str = TINY, *, recompute: bool, **settings: float) -> Proteus:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = Proteus(backbone(WIDE, seed=7), backbone(reference), ProteusConfig(**settings), seed=0)
    build_state(method.learner, method.student, OptimConfig(recompute=recompute, ema_decay=0.0))
    method.learner.train()
    return method


class Count:
    """Forward passes of a module that begin; the second one ends as soon as it has all that is asked for."""

    def __init__(self, module: nn.Module) -> None:
        self.number = 0
        module.register_forward_pre_hook(self)

    def __call__(self, *_: object) -> None:
        self.number += 1


@pytest.mark.parametrize("settings", [{}, {"token_weight": 0.0, "feature_weight": 0.0}])
def test_loss_and_gradients_stay_the_same_to_the_bit(settings: dict[str, float]) -> None:
    # catches masks that are gone when a block runs again, and blocks that get no gradient
    plain, again = method_of(recompute=False, **settings), method_of(recompute=True, **settings)
    losses = [method.training_step(batch_of(8)).loss for method in (plain, again)]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    for one, other in zip(plain.learner.parameters(), again.learner.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


def test_each_block_runs_twice_in_a_step_and_once_without_gradient() -> None:
    method = method_of(recompute=True)
    blocks: nn.Sequential = method.student.model.blocks  # type: ignore[assignment]
    count = Count(blocks[0])
    method.training_step(batch_of(4)).loss.backward()
    assert count.number == 2
    method.student.tokens(batch_of(4).views)
    assert count.number == 3


def test_little_is_kept_for_the_backward_pass() -> None:
    model = backbone(DEEP)
    gradients, kept = one_pass(model)
    model.recompute_blocks()
    again, kept_now = one_pass(model)
    assert kept_now < 0.4 * kept
    assert all(torch.equal(one, other) for one, other in zip(gradients, again, strict=True))


def test_dropout_is_drawn_once() -> None:
    losses, gradients = [], []
    for recompute in (False, True):
        method = method_of(f"{TINY}&proj_drop_rate=0.5", recompute=recompute)
        torch.manual_seed(3)
        loss = method.training_step(batch_of(4)).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad for p in method.learner.parameters()])
    assert torch.equal(*losses)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))  # type: ignore[arg-type]


def test_batch_norms_would_count_images_twice() -> None:
    with pytest.raises(ConfigError, match=r"resnet10t cannot do it: it has batch norms.*optim\.accumulate"):
        load_backbone("resnet10t", weights="random", img_size=64).recompute_blocks()


def test_a_model_without_blocks_of_its_own_says_so() -> None:
    conv = Backbone(nn.Conv2d(3, 8, 8, 8), img_size=32, preprocess=Preprocess(), source=Provenance("mine"))
    with pytest.raises(ConfigError, match="student mine cannot do it: it has no set_grad_checkpointing"):
        conv.recompute_blocks()
