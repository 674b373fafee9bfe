from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attar.data.geometry import Geometry
from attar.errors import Interrupted, NonFiniteError
from attar.evaluation.dense.model import DenseModel, parameter_groups
from attar.evaluation.dense.recipe import Recipe
from attar.evaluation.dense.state import Progress, StateFolder
from attar.evaluation.dense.targets import Classes
from attar.evaluation.dense.training import Choice, fit
from attar.evaluation.dense.view import View
from attar.models import Backbone
from attar.models.pixel_heads import PixelClassifier, side_by_side
from attar.types import Tokens
from attar.utils.seeding import seeded_torch
from small_models import backbone
from small_pairs import board

PAIRS = [board(32, 32, seed=seed, cell=8) for seed in range(4)]
RECIPE = Recipe(Geometry(32, 32), steps=6, lr=1e-2, weight_decay=0.05, warmup_steps=2, batch_size=2)
CPU = torch.device("cpu")


class WithDropout(nn.Module):
    """A linear head behind dropout and batch normalisation: everything that a resume must bring back."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.linear = nn.BatchNorm2d(32), nn.Dropout(0.5), PixelClassifier(32, 2)

    def forward(self, tokens: list[Tokens]) -> list[Tensor]:
        return [self.linear.conv(self.drop(self.norm(side_by_side(tokens))))]


def model_of(trunk: Backbone, *, fine_tune: bool = False) -> DenseModel:
    with seeded_torch(0, "head"):
        return DenseModel(trunk, WithDropout(), View(), fine_tune=fine_tune)


def train(model: DenseModel, *, steps: int = 6, choice: Choice | None = None, state: StateFolder | None = None) -> None:
    fit(model, PAIRS, Classes(2), RECIPE if steps == 6 else stopped(steps), seed=0, device=CPU, choice=choice,
        state=state, save_every=2)  # fmt: skip


def stopped(steps: int) -> Recipe:
    return Recipe(RECIPE.geometry, steps, RECIPE.lr, RECIPE.weight_decay, RECIPE.warmup_steps, batch_size=2)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_frozen_backbone_keeps_every_bit_and_its_mode() -> None:
    trunk = backbone()
    before = weights(trunk)
    model = model_of(trunk)
    train(model)
    assert equal(before, weights(trunk))
    assert all(parameter.grad is None for parameter in trunk.parameters())
    assert all(name.startswith("head.") for name in model.state_dict())


def test_fine_tuning_changes_a_copy_and_not_the_callers_model() -> None:
    # in place, every later task would judge another backbone
    trunk = backbone()
    before, model = weights(trunk), model_of(trunk, fine_tune=True)
    train(model)
    assert equal(before, weights(trunk))
    assert model.backbone is not None
    assert not equal(before, weights(model.backbone))


@pytest.mark.parametrize("fine_tune", [False, True])
def test_an_interrupted_training_ends_with_the_same_bits(
    tmp_path: Path, fine_tune: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk, whole = backbone(), model_of(backbone(), fine_tune=fine_tune)
    train(whole)
    steps = 0

    def stop_in_step_three(description: str) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise Interrupted(15, "stopped")

    half = model_of(trunk, fine_tune=fine_tune)
    with monkeypatch.context() as patch:
        patch.setattr("attar.utils.progress.stop_if_requested", stop_in_step_three)
        with pytest.raises(Interrupted):
            train(half, state=StateFolder(tmp_path / "state", "a"))
    torch.rand(7)  # the global generator is nobody's business
    resumed = model_of(trunk, fine_tune=fine_tune)
    train(resumed, state=StateFolder(tmp_path / "state", "a"))
    assert equal(weights(whole), weights(resumed))


def test_a_state_of_another_training_or_a_damaged_one_counts_as_none(tmp_path: Path) -> None:
    model = model_of(backbone())
    optimizer = torch.optim.AdamW(parameter_groups(model, RECIPE))
    folder = StateFolder(tmp_path / "state", "a")
    folder.save(model, optimizer, Progress(4))
    assert folder.load(model, optimizer).step == 4
    assert StateFolder(tmp_path / "state", "b").load(model, optimizer) == Progress()
    file = tmp_path / "state" / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # a flipped bit, which safetensors does not notice
    file.write_bytes(data)
    assert folder.load(model, optimizer) == Progress()
    folder.remove()
    assert folder.load(model, optimizer) == Progress()


def test_the_best_moment_is_kept_and_the_first_of_equals() -> None:
    values = iter([0.1, 0.9, 0.9])
    seen: list[dict[str, Tensor]] = []
    model = model_of(backbone())

    def judge() -> float:
        seen.append(weights(model))
        return next(values)

    train(model, choice=Choice(judge, 3, higher_is_better=True))
    assert equal(seen[1], weights(model))
    assert not equal(seen[2], weights(model))


def test_moments_are_even_and_the_last_step_is_one() -> None:
    choice = Choice(lambda: 0.0, 3, higher_is_better=False)
    assert [step for step in range(1, 11) if choice.is_due(step, 10)] == [3, 7, 10]
    assert choice.is_best([{"step": 1, "value": 2.0}, {"step": 2, "value": 1.0}])
    assert not choice.is_best([{"step": 1, "value": 1.0}, {"step": 2, "value": 1.0}])


def test_a_loss_that_is_no_number_stops_and_names_the_step() -> None:
    model = model_of(backbone())
    with torch.no_grad():
        model.head.norm.weight.fill_(torch.inf)  # type: ignore[union-attr, operator]
    with pytest.raises(NonFiniteError, match=r"in step 0. Try a lower --dense.lr"):
        train(model)


def test_lower_blocks_learn_slower_and_norms_do_not_decay() -> None:
    # 0.65 to the number of layers above; the patch embedding is the lowest of three here
    model = model_of(backbone(), fine_tune=True)
    recipe = Recipe(Geometry(32, 32), 1, 1.0, 0.05, 0, fine_tune=True, layer_decay=0.65)
    rates = {id(p): (g["lr_scale"], g["weight_decay"]) for g in parameter_groups(model, recipe) for p in g["params"]}
    assert model.backbone is not None
    trunk = dict(model.backbone.model.named_parameters())
    top, below = rates[id(trunk["blocks.1.mlp.fc1.weight"])], rates[id(trunk["blocks.0.mlp.fc1.weight"])]
    assert below[0] / top[0] == pytest.approx(0.65)
    assert rates[id(trunk["blocks.0.norm1.weight"])][1] == 0
    assert rates[id(trunk["pos_embed"])][1] == 0
    assert all(rates[id(parameter)][0] == 1 for parameter in model.head.parameters())
    assert len(rates) == len(list(model.parameters()))


def test_branches_are_dropped_more_often_above() -> None:
    model = DenseModel(backbone(), WithDropout(), View(), fine_tune=True, drop_path=0.3)
    rates = [module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert not [module for module in backbone().modules() if type(module).__name__ == "DropPath"]
