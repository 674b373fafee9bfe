from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import CheckpointError, Interrupted
from attar.evaluation import DINOV2_CODE_LRS as RATES
from attar.evaluation import probe_training
from attar.evaluation.probe_features import Layout, ProbeFeatures
from attar.evaluation.probe_heads import ProbeHeads
from attar.evaluation.probe_training import Heads, ProbeSchedule, train_heads


def stored(images: int = 70, *, views: int = 3, width: int = 3, classes: int = 4, seed: int = 0) -> ProbeFeatures:
    generator = torch.Generator().manual_seed(seed)
    cls = torch.randn(views, images, 4, width, generator=generator, dtype=torch.float64)
    patch = torch.randn(views, images, width, generator=generator, dtype=torch.float64)
    return ProbeFeatures(cls, patch, torch.arange(images) % classes)


def all_heads(features: ProbeFeatures, rates: list[float]) -> Heads:
    return {
        layout: ProbeHeads(features.width(layout), 4, rates, seed=0, name=str(layout), dtype=torch.float64)
        for layout in features.layouts
    }


def one_by_hand(batches: list[tuple[Tensor, Tensor]], weight: Tensor, lr: float) -> Tensor:
    """Weights and bias of one head after a plain loop with autograd, `torch.optim.SGD` and its cosine."""
    model = nn.Linear(weight.shape[1], len(weight), dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(weight)
        model.bias.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for tokens, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(tokens), labels).backward()
        optimizer.step()
        cosine.step()
    return torch.cat([model.weight, model.bias[:, None]], dim=1).detach()


def by_hand(features: ProbeFeatures, layout: Layout, schedule: ProbeSchedule) -> list[tuple[Tensor, Tensor]]:
    """(tokens, labels) of each step, put together as the protocol says it."""
    batches = []
    for epoch, rows in schedule.batches():
        cls, patch = features.cls[epoch % features.views, rows], features.mean_patch[epoch % features.views, rows]
        tokens = [cls[:, block] for block in range(4 - layout.blocks, 4)] + [patch] * layout.avgpool
        batches.append((torch.cat(tokens, dim=1), features.labels[rows]))
    return batches


def test_52_heads_together_are_52_heads_in_turn() -> None:
    # catches a mean over heads or classes, dampened or Nesterov momentum, a bias at another rate, the schedule a step
    # off, views that do not follow the epoch, and layouts that read other columns
    features = stored()
    schedule = ProbeSchedule(70, batch_size=16, epochs=50, seed=0)
    assert schedule.steps == 200
    lrs = [schedule.lr(100 * lr) for lr in RATES]  # so large that weights move in so few steps
    heads = all_heads(features, lrs)
    starts = {layout: some.weight.clone() for layout, some in heads.items()}
    train_heads(heads, features, schedule)
    for layout, some in heads.items():
        batches = by_hand(features, layout, schedule)
        for number, lr in enumerate(lrs):
            together = torch.cat([some.weight[number], some.bias[number, :, None]], dim=1)
            alone = one_by_hand(batches, starts[layout][number], lr)
            torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)
            assert (together[:, :-1] - starts[layout][number]).abs().max() > 1e-4
    assert sum(len(some.weight) for some in heads.values()) == 52


def test_proteus_takes_25_020_steps_and_dinov2s_rates_twice() -> None:
    # oracle 6.11 of the Proteus spec; without drop_last there would be 25,030
    schedule = ProbeSchedule(1_281_167, batch_size=512, epochs=10, seed=0)
    assert schedule.steps == 25_020
    assert [schedule.lr(lr) for lr in (RATES[0], RATES[-1])] == pytest.approx([2e-5, 0.2])
    assert schedule.factor(0) == 1.0
    assert schedule.factor(12_510) == pytest.approx(0.5)
    assert 0 < schedule.factor(25_019) < 1e-8


def test_an_epoch_shows_an_image_once_and_epochs_differ() -> None:
    batches = list(ProbeSchedule(70, batch_size=16, epochs=2, seed=0).batches())
    assert [epoch for epoch, _ in batches] == [0] * 4 + [1] * 4
    first, second = (np.concatenate([rows for epoch, rows in batches if epoch == wanted]) for wanted in (0, 1))
    assert len(set(first.tolist())) == len(first) == 64
    assert set(first.tolist()) != set(second.tolist())  # other images are left out
    other = next(ProbeSchedule(70, batch_size=16, epochs=2, seed=1).batches())[1]
    assert batches[0][1].tolist() != other.tolist()


@pytest.mark.parametrize("start", [0, 3, 4, 7, 8])
def test_the_order_goes_on_from_any_step(start: int) -> None:
    schedule = ProbeSchedule(70, batch_size=16, epochs=2, seed=0)
    rest = [(epoch, rows.tolist()) for epoch, rows in schedule.batches(start)]
    assert rest == [(epoch, rows.tolist()) for epoch, rows in schedule.batches()][start:]


def test_an_interrupted_training_goes_on_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, schedule = stored(), ProbeSchedule(70, batch_size=16, epochs=3, seed=0)
    whole, first, second = (all_heads(features, [0.1, 1.0]) for _ in range(3))
    train_heads(whole, features, schedule)
    shown = []

    def stop(description: str) -> None:
        shown.append(description)
        if len(shown) == 5:
            raise Interrupted(signal.SIGTERM, "stopped")

    with monkeypatch.context() as patch:
        patch.setattr("attar.utils.progress.stop_if_requested", stop)
        with pytest.raises(Interrupted):
            train_heads(first, features, schedule, state=tmp_path / "state")
    steps: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr("attar.utils.progress.stop_if_requested", lambda _: steps.append(1))
        train_heads(second, features, schedule, state=tmp_path / "state")
    assert len(steps) == schedule.steps - 5
    for layout in whole:
        assert torch.equal(whole[layout].weight, second[layout].weight)
        assert torch.equal(whole[layout].bias, second[layout].bias)


def test_a_killed_training_goes_on_from_what_was_saved_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_training, "_SAVE_EVERY", 4)
    features, schedule = stored(), ProbeSchedule(70, batch_size=16, epochs=3, seed=0)
    whole, first, second = (all_heads(features, [0.1, 1.0]) for _ in range(3))
    train_heads(whole, features, schedule)
    rows = ProbeFeatures.rows

    def killed(self: ProbeFeatures, chosen: np.ndarray, *, view: int = 0) -> Tensor:
        if view == 2:
            raise KeyboardInterrupt  # in step 8, two states behind it
        return rows(self, chosen, view=view)

    with monkeypatch.context() as patch:
        patch.setattr(ProbeFeatures, "rows", killed)
        with pytest.raises(KeyboardInterrupt):
            train_heads(first, features, schedule, state=tmp_path / "state")
    train_heads(second, features, schedule, state=tmp_path / "state")
    assert all(torch.equal(whole[layout].weight, second[layout].weight) for layout in whole)


def test_a_finished_training_is_not_done_again_and_another_is_refused(tmp_path: Path) -> None:
    features, schedule = stored(), ProbeSchedule(70, batch_size=16, epochs=1, seed=0)
    heads, again = all_heads(features, [0.1]), all_heads(features, [0.1])
    train_heads(heads, features, schedule, state=tmp_path / "state")
    train_heads(again, features, schedule, state=tmp_path / "state")
    assert all(torch.equal(heads[layout].weight, again[layout].weight) for layout in heads)
    with pytest.raises(CheckpointError, match="learning_rates differ"):
        train_heads(all_heads(features, [0.2]), features, schedule, state=tmp_path / "state")
    with pytest.raises(CheckpointError, match="seed differ"):
        train_heads(heads, features, ProbeSchedule(70, batch_size=16, epochs=1, seed=1), state=tmp_path / "state")
