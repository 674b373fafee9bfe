from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from attar.errors import DataError
from attar.evaluation import choose_logistic, probe_logistic
from attar.evaluation.logistic import Solver, fit_logistic
from attar.evaluation.logistic_probe import (
    DINOV2,
    DINOV2_PENALTIES,
    HONEST,
    PAPER,
    PENALTIES,
    best_penalty,
    final_fit,
    sweep_penalties,
)
from attar.evaluation.metrics import top1
from attar.utils.seeding import torch_generator

FEW = (1e4, 1e2, 1.0, 1e-2)


def clusters(count: int, seed: int, *, noise: float = 1.5, classes: int = 4) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % classes
    means = torch.randn(classes, 12, generator=torch_generator(0, "means"))
    noises = torch.randn(count, 12, generator=torch_generator(seed, "noise"))
    return (means[labels] + noise * noises) * torch.logspace(-1, 1, 12) + 2, labels


def test_the_papers_grid_is_in_lambda_and_dinov2s_in_c() -> None:
    # spec proteus 6.12 and evaluation trap 1: the same count, mirrored
    assert len(PENALTIES) == len(DINOV2_PENALTIES) == 45
    assert (PENALTIES[0], PENALTIES[22], PENALTIES[-1]) == pytest.approx((1e-6, 0.3162278, 1e5))
    assert np.divide(PENALTIES[1:], PENALTIES[:-1]) == pytest.approx(np.full(44, 1.7782794))
    assert 1 / max(PENALTIES) == pytest.approx(1e-5)
    assert 1 / max(DINOV2_PENALTIES) == pytest.approx(1e-6)


def test_the_paper_mode_chooses_as_a_loop_over_scikit_learn_does() -> None:
    # ascending lambda, a later one must be better; catches descending order and a tie that goes the other way
    # classes that overlap: where they are told apart, the weakest penalties end nowhere near a minimum, theirs or ours
    train, val, test = (clusters(count, seed, noise=3.0) for seed, count in enumerate((240, 60, 200)))
    penalties = PENALTIES[::4]
    found = probe_logistic(train, val, test[0], metric=top1, protocol=replace(PAPER, penalties=penalties))
    mean, std = train[0].double().mean(0), train[0].double().std(0, correction=0)
    best, chosen = -1.0, 0.0
    for penalty in penalties:
        model = LogisticRegression(C=1 / penalty, tol=1e-7, max_iter=1000)
        model.fit(((train[0] - mean) / std).numpy(), train[1].numpy())
        score = float(model.score(((val[0] - mean) / std).numpy(), val[1].numpy()))
        assert found.val_scores[penalty] == pytest.approx(score)
        best, chosen = (score, penalty) if score > best else (best, chosen)
    assert found.penalty == chosen
    both = torch.cat([train[0], val[0]]).double()
    mean, std = both.mean(0), both.std(0, correction=0)  # anew for the final fit
    model.set_params(C=1 / chosen).fit(((both - mean) / std).numpy(), torch.cat([train[1], val[1]]).numpy())
    expected = torch.from_numpy(model.decision_function(((test[0] - mean) / std).numpy()))
    shift = (found.test_scores - expected).mean(1, keepdim=True)  # what a softmax ignores
    torch.testing.assert_close(found.test_scores - shift, expected, atol=2e-2, rtol=1e-3, check_dtype=False)
    assert (found.test_scores.argmax(1) == expected.argmax(1)).all()


def test_of_equals_the_paper_takes_the_smallest_and_we_the_largest() -> None:
    train, val = clusters(80, 0, noise=0.05), clusters(40, 1, noise=0.05)
    chosen = [
        probe_logistic(train, val, val[0], metric=top1, protocol=replace(protocol, penalties=FEW)).penalty
        for protocol in (PAPER, HONEST)
    ]
    assert chosen == [1e-2, 1e4]
    scores = {3.0: 0.5, 2.0: 0.7, 1.0: 0.7, 0.5: 0.6}
    assert best_penalty(scores, ties="larger") == 2.0
    assert best_penalty(scores, ties="smaller") == 1.0


def test_the_final_fit_is_on_both_parts_and_starts_from_zero() -> None:
    train, val, test = clusters(80, 0), clusters(40, 1), clusters(30, 2)
    found = probe_logistic(train, val, test[0], metric=top1, protocol=replace(HONEST, penalties=FEW))
    both = (torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]]))
    assert torch.equal(found.head.weight, final_fit(*both, found.penalty).head.weight)
    assert torch.equal(found.test_scores, found.head.logits(test[0]))
    assert found.converged


def test_a_sweep_stops_on_a_plateau_below_the_best_and_not_on_one_before() -> None:
    scores = iter([0.1, 0.1, 0.1, 0.1, 0.8, 0.7, 0.6, 0.6, 0.6, 0.6, 0.9])
    train, val = clusters(20, 0), clusters(8, 1)
    protocol = replace(HONEST, penalties=PENALTIES[-11:], solver=Solver(tolerance=1e-2))
    assert len(sweep_penalties(train, val, metric=lambda *_: next(scores), protocol=protocol)) == 10
    assert len(sweep_penalties(train, val, metric=top1, protocol=replace(PAPER, penalties=PENALTIES[-11:]))) == 11


def test_many_labels_share_one_penalty_chosen_by_decision_values() -> None:
    # catches scores that went through a softmax or a sigmoid, which a metric across images would see
    (features, _), seen = clusters(160, 0), []
    labels = (features[:, :3] > features[:, 3:6]).long()

    def hits(scores: Tensor, targets: Tensor) -> float:
        seen.append(scores)
        return ((scores > 0) == (targets > 0)).double().mean().item()

    train, val = (features[:80], labels[:80]), (features[80:120], labels[80:120])
    found = probe_logistic(train, val, features[120:], metric=hits, protocol=replace(HONEST, penalties=FEW))
    assert found.test_scores.shape == (40, 3)
    assert hits(found.test_scores, labels[120:]) > 0.8
    assert seen[-1].abs().max() > 1


def test_a_class_missing_in_train_is_learned_from_val() -> None:
    features, labels = clusters(160, 0, noise=0.3)
    late = labels[:80] != 3
    train, val = (features[:80][late], labels[:80][late]), (features[80:120], labels[80:120])
    found = probe_logistic(train, val, features[120:], metric=top1, protocol=replace(HONEST, penalties=FEW[2:]))
    assert top1(found.test_scores, labels[120:]) > 0.9
    assert max(found.val_scores.values()) <= 0.75  # nobody could know it yet


def test_dinov2s_protocol_leaves_features_as_they_are() -> None:
    # scaling a feature changes what its weight costs; with standardised features it would change nothing
    train, val, test = clusters(80, 0), clusters(40, 1), clusters(30, 2)
    scale = torch.logspace(-2, 2, 12)
    moved = [(part[0] * scale, part[1]) for part in (train, val, test)]
    for protocol, is_same in ((DINOV2, False), (HONEST, True)):
        few = replace(protocol, penalties=(1e2,))
        one = probe_logistic(train, val, test[0], metric=top1, protocol=few).test_scores
        other = probe_logistic(moved[0], moved[1], moved[2][0], metric=top1, protocol=few).test_scores
        assert torch.allclose(one, other, atol=1e-2) == is_same


def test_no_validation_images_are_an_error() -> None:
    train = clusters(20, 0)
    with pytest.raises(DataError, match="no validation images"):
        probe_logistic(train, (train[0][:0], train[1][:0]), train[0], metric=top1)


def test_the_chosen_penalty_is_fitted_again_on_all_rows() -> None:
    features, labels = clusters(240, 0)
    chosen = choose_logistic(features, labels, seed=0)
    again = final_fit(features, labels, 1 / chosen.C).head
    assert torch.equal(chosen.weight, again.weight)
    assert torch.equal(chosen.weight, choose_logistic(features, labels, seed=0).weight)


def test_the_penalty_is_chosen_on_rows_it_was_not_fitted_on() -> None:
    # one weak signal among 300 channels of noise: fitted rows are best with no penalty, held-out rows with a strong one
    labels = torch.arange(500) % 2
    features = torch.randn(500, 300, generator=torch.Generator().manual_seed(0))
    features[:, 0] += 2.0 * labels
    grid = [1e-4, 1e-2, 1.0]
    on_fitted = [top1(head.logits(features), labels) for head in fit_logistic(features, labels, grid=grid)]
    assert on_fitted == sorted(on_fitted)
    assert choose_logistic(features, labels, seed=0).C <= 1e-2


def test_of_equal_penalties_the_strongest_is_chosen() -> None:
    labels = torch.arange(1000) % 2
    features = labels[:, None] + 0.01 * torch.randn(1000, 12, generator=torch.Generator().manual_seed(0))
    chosen = choose_logistic(features, labels, seed=0).C  # any penalty gets all of them
    assert chosen == pytest.approx(1e-4)
