"""ELEVATER's search against trainings one by one, its walk over the grid, and what its two modes report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attar.errors import DataError
from attar.evaluation.elevater_probe import LEARNING_RATES, WEIGHT_DECAYS, Setting, Training, probe_elevater, search
from attar.evaluation.metrics import METRICS
from attar.utils.seeding import torch_generator

CLASSES, WIDTH = 3, 6
CENTRES = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(9))


def part(count: int, seed: int, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % CLASSES
    return CENTRES[labels] + noise * torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)), labels


TRAINING = Training(METRICS["top1"], torch.zeros(CLASSES, WIDTH), epochs=2, final_epochs=4, batch_size=8)
TRAIN, VAL, TEST = part(33, 0), part(15, 1), part(30, 2)  # 33 = 4 x 8 + 1: a last batch of one


def alone(setting: Setting, data: tuple[Tensor, Tensor], epochs: int) -> list[nn.Sequential]:
    """torch's own layers and optimiser, after each epoch."""
    model = nn.Sequential(nn.BatchNorm1d(WIDTH, affine=False), nn.Linear(WIDTH, CLASSES))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=setting.learning_rate, momentum=0.9, weight_decay=setting.weight_decay
    )
    logits = []
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(data[0]), generator=torch_generator(0, "elevater", epoch))
        for rows in order.split(8):
            if len(rows) > 1:
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(data[0][rows]), data[1][rows]).backward()
                optimiser.step()
        logits.append(model.eval()(TEST[0]).detach())
    return logits


def test_the_grid_is_elevaters() -> None:
    assert pytest.approx((1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)) == LEARNING_RATES
    assert len(WEIGHT_DECAYS) == 97
    assert WEIGHT_DECAYS[::16] == pytest.approx((1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6))


def test_the_search_walks_from_coarse_to_fine() -> None:
    """7 points, then two at 8, 4, 2 and 1 places from the best: 15 for a learning rate, fewer at the grid's ends."""
    found = search(TRAIN, VAL, TRAINING)
    for rate in range(len(LEARNING_RATES)):
        tried = [setting.decay for setting in found if setting.rate == rate]
        assert tried[:7] == list(range(0, 97, 16))
        assert 7 + 4 <= len(tried) <= 15
        best = max(range(0, 97, 16), key=lambda decay: found[Setting(rate, decay)])
        for step, at in ((8, 7), (4, 9), (2, 11), (1, 13)):
            beside = [place for place in (best - step, best + step) if 0 <= place < 97]
            if best in (0, 96):
                break
            assert tried[at : at + 2] == beside
            best = max([best, *beside], key=lambda decay: found[Setting(rate, decay)])  # stays where nothing is better


def test_an_interrupted_search_goes_on_and_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attar.evaluation.elevater_probe._NUMBERS", 5 * CLASSES * WIDTH)  # five trainings in a stack
    whole, kept = search(TRAIN, VAL, TRAINING), tmp_path / "made" / "search.jsonl"
    judged = 0

    def judge_until(last: int | None) -> Training:
        def per_row(scores: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
            nonlocal judged
            judged += 1
            if judged == last:
                raise KeyboardInterrupt
            return METRICS["top1"].per_row(scores, targets)

        return replace(TRAINING, metric=replace(METRICS["top1"], per_row=per_row))

    with pytest.raises(KeyboardInterrupt):
        search(TRAIN, VAL, judge_until(25), kept=kept)  # in the third stack
    assert len(kept.read_text().splitlines()) == 10
    judged = 0
    assert list(search(TRAIN, VAL, judge_until(None), kept=kept).items()) == list(whole.items())
    assert judged == TRAINING.epochs * (len(whole) - 10)
    judged = 0
    assert search(TRAIN, VAL, judge_until(1), kept=kept) == whole  # nothing is trained again


def test_stacked_trainings_are_those_of_torch_one_by_one() -> None:
    """Running statistics of another momentum, or a last batch of one that is not left out, would give others."""
    found = probe_elevater(TRAIN, VAL, TEST, TRAINING, mode="honest")
    whole = (torch.cat([TRAIN[0], VAL[0]]), torch.cat([TRAIN[1], VAL[1]]))
    logits = alone(found.setting, whole, 4)
    torch.testing.assert_close(found.test_scores, logits[-1], rtol=1e-4, atol=1e-5)
    assert found.by_epoch == pytest.approx([METRICS["top1"](one, TEST[1]) for one in logits])


def test_paper_mode_reports_the_best_epoch_on_test_and_honest_mode_the_last() -> None:
    odd = (TEST[0], (TEST[1] + 1) % CLASSES)  # of which the head gets less right with every epoch
    paper, honest = (probe_elevater(TRAIN, VAL, odd, TRAINING, mode=mode) for mode in ("paper", "honest"))
    assert paper.by_epoch == honest.by_epoch
    assert honest.epoch == 4
    assert paper.epoch == paper.by_epoch.index(max(paper.by_epoch)) + 1
    assert METRICS["top1"](paper.test_scores, odd[1]) == max(paper.by_epoch)


def test_trainings_begin_with_the_weights_given() -> None:
    """The smallest learning rate hardly moves them: a head that began elsewhere would not know their classes."""
    right, wrong = (search(TRAIN, VAL, replace(TRAINING, start=sign * 10 * CENTRES)) for sign in (1, -1))
    assert right[Setting(0, 0)] > 0.6 > 0.4 > wrong[Setting(0, 0)]


def test_the_rest_is_learned_from_in_the_end_only() -> None:
    plain = probe_elevater(TRAIN, VAL, TEST, TRAINING, mode="honest")
    more = probe_elevater(TRAIN, VAL, TEST, TRAINING, mode="honest", rest=part(20, 5))
    assert more.val_scores == plain.val_scores
    assert not torch.equal(more.test_scores, plain.test_scores)


def test_several_labels_and_few_images() -> None:
    targets = [nn.functional.one_hot(labels, CLASSES) for _, labels in (TRAIN, VAL, TEST)]
    parts = [(data[0], wanted) for data, wanted in zip((TRAIN, VAL, TEST), targets, strict=True)]
    found = probe_elevater(*parts, replace(TRAINING, metric=METRICS["map11_softmax"]), mode="paper")
    assert max(found.by_epoch) > 0.5
    with pytest.raises(DataError, match="0 to choose by"):
        probe_elevater(TRAIN, part(0, 1), TEST, TRAINING, mode="honest")
