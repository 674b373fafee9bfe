from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from attar.errors import DataError
from attar.evaluation.logistic import Fit, Solver, fit_logistic, logistic_path
from attar.utils.seeding import torch_generator

EXACT = Solver(dtype=torch.float64, tolerance=1e-9)
PATH = [1e4, 1e2, 10.0, 1.0, 1e-1, 1e-2]


def clusters(count: int = 240, *, classes: int = 4, noise: float = 1.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated features of very different scales around class means."""
    labels = torch.arange(count) % classes
    means = torch.randn(classes, 12, generator=torch_generator(0, "means"))
    mix = torch.randn(12, 12, generator=torch_generator(0, "mix"))
    features = means[labels] + noise * torch.randn(count, 12, generator=torch_generator(seed, "noise")) @ mix / 3
    return features * torch.logspace(-3, 2, 12) + 5, labels


def unscaled(features: Tensor) -> Tensor:
    """The same of like scales, around 1."""
    return (features - 5) / torch.logspace(-3, 2, 12) + 1


def standardised(features: Tensor) -> Tensor:
    x = features.double()
    return (x - x.mean(0)) / x.std(0, correction=0)


def fit(features: Tensor, labels: Tensor, penalty: float, **settings: Any) -> Fit:
    (found,) = logistic_path(features, labels, [penalty], **{"solver": EXACT, **settings})
    return found


def penalised(fit: Fit, features: Tensor, *, standardise: bool = True) -> Tensor:
    """(K, D) the weights that the penalty sees."""
    return fit.head.weight * features.double().std(0, correction=0) if standardise else fit.head.weight


def objective(logits: Tensor, labels: Tensor, weight: Tensor, penalty: float) -> float:
    return (F.cross_entropy(logits, labels) + penalty / (2 * len(labels)) * weight.square().sum()).item()


def test_two_points_as_computed_by_hand() -> None:
    # spec evaluation §6.7; catches a penalty without 1/2, without 1/N, or of C in place of 1/C
    found = fit(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), 1.0)
    a = found.head.weight[1].item()
    torch.testing.assert_close(found.head.weight, torch.tensor([[-0.5212985], [0.5212985]]).double(), atol=1e-7, rtol=0)
    assert a == pytest.approx(2 / (1 + math.exp(2 * a)), abs=1e-8)
    assert found.minimum.values[-1] - a**2 / 2 == pytest.approx(0.3019828, abs=1e-7)
    assert found.head.bias.abs().max() < 1e-8


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("C", [1e-3, 1.0, 100.0])
def test_finds_scikit_learns_minimum(C: float, standardise: bool) -> None:  # noqa: N803
    # catches a penalty on the rotated and rescaled weights or on the bias, and the uncentred features' other gradient
    features, labels = clusters()
    features = features if standardise else unscaled(features)
    x = standardised(features) if standardise else features.double()
    theirs = LogisticRegression(C=C, tol=1e-9, max_iter=20_000).fit(x.numpy(), labels.numpy())
    weight, bias = torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_)
    least = objective(x @ weight.T + bias, labels, weight, 1 / C)
    for solver in (EXACT, Solver(tolerance=1e-7)):
        found = fit(features, labels, 1 / C, standardise=standardise, solver=solver)
        assert found.minimum.values[-1] == pytest.approx(least, rel=1e-6)
        assert (found.head.predict(features) == torch.from_numpy(theirs.predict(x.numpy()))).all()
    exact = fit(features, labels, 1 / C, standardise=standardise)
    torch.testing.assert_close(penalised(exact, features, standardise=standardise), weight, atol=1e-5, rtol=1e-4)


def test_of_two_classes_scikit_learn_penalises_half_as_much() -> None:
    features, labels = clusters(classes=2)
    found = fit(features, labels, 2.0)
    x = standardised(features).numpy()
    theirs = LogisticRegression(C=2 / 2.0, tol=1e-9, max_iter=20_000).fit(x, labels.numpy())
    weight = penalised(found, features)
    torch.testing.assert_close(weight[1:] - weight[:1], torch.from_numpy(theirs.coef_), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weight[0], -weight[1], atol=1e-8, rtol=0)


def test_one_against_the_rest_is_k_binary_fits() -> None:
    # catches a mean over classes in place of the sum, and a softmax over labels that exclude nothing
    features, _ = clusters(noise=3.0)
    labels = (features[:, :3] + features[:, 3:6] > 10).long()
    found = fit(features, labels, 0.5)
    x = standardised(features).numpy()
    for k in range(3):
        theirs = LogisticRegression(C=2.0, tol=1e-9, max_iter=20_000).fit(x, labels[:, k].numpy())
        logits = found.head.logits(features)[:, k]
        torch.testing.assert_close(logits, torch.from_numpy(theirs.decision_function(x)), atol=1e-4, rtol=1e-4)


def test_a_label_that_no_image_has_ends_with_low_scores() -> None:
    features, _ = clusters()
    labels = torch.stack([features[:, 0] > 5, torch.zeros(240, dtype=torch.bool)], 1).long()
    found = fit(features, labels, 1.0, solver=Solver())
    assert found.minimum.converged
    assert found.head.logits(features)[:, 1].max() < -5


@pytest.mark.parametrize(
    "switched", [{"rotate": False}, {"precondition": False}, {"warm": False}, {"extrapolate": False}, {}]
)
def test_no_switch_of_the_solver_moves_a_minimum(switched: dict[str, bool]) -> None:
    features, labels = clusters()
    solver = Solver(dtype=torch.float64, tolerance=1e-8, max_iter=5000, **switched)
    for found in logistic_path(features, labels, PATH, solver=solver):
        assert found.minimum.converged
        cold = fit(features, labels, found.penalty, solver=Solver(dtype=torch.float64, tolerance=1e-10, max_iter=5000))
        assert found.minimum.values[-1] - cold.minimum.values[-1] < 1e-9


def test_a_warm_path_in_float32_ends_where_a_cold_fit_in_float64_does() -> None:
    # spec evaluation §4.2 (c)
    features, labels = clusters()
    for found in logistic_path(features, labels, PATH, solver=Solver(tolerance=1e-6)):
        cold = fit(features, labels, found.penalty, solver=Solver(dtype=torch.float64, tolerance=1e-10, max_iter=5000))
        assert found.minimum.converged
        assert found.minimum.values[-1] - cold.minimum.values[-1] < 1e-7


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("rotate", [True, False])
def test_the_gradient_it_stops_at_is_that_of_the_penalised_weights(standardise: bool, rotate: bool) -> None:
    # catches a largest entry taken on principal axes, and one that forgets that features were centred
    features, labels = clusters()
    features = features if standardise else unscaled(features)
    solver = Solver(dtype=torch.float64, tolerance=1e-3, rotate=rotate)
    found = fit(features, labels, 1.0, standardise=standardise, solver=solver)
    x = standardised(features) if standardise else features.double()
    weight = penalised(found, features, standardise=standardise).clone().requires_grad_()
    bias = (found.head.logits(features.double()) - x @ weight.T).detach()[0].requires_grad_()
    value = F.cross_entropy(x @ weight.T + bias, labels) + weight.square().sum() / (2 * len(labels))
    value.backward()
    assert weight.grad is not None
    assert bias.grad is not None
    largest = max(weight.grad.abs().max().item(), bias.grad.abs().max().item())
    assert found.minimum.largest_gradient == pytest.approx(largest, rel=1e-6)
    assert largest <= 1e-3


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 5), count=st.integers(8, 60))
def test_along_any_path_errors_grow_and_weights_shrink_with_the_penalty(seed: int, classes: int, count: int) -> None:
    # spec evaluation §6 and §4.2; also with fewer images than channels, and classes that are told apart
    features, labels = clusters(count, classes=classes, seed=seed)
    fits = list(logistic_path(features, labels, PATH, solver=Solver(dtype=torch.float64, tolerance=1e-7)))
    losses = [F.cross_entropy(found.head.logits(features.double()), labels).item() for found in fits]
    norms = [penalised(found, features).norm().item() for found in fits]
    assert all(weaker <= stronger + 1e-6 for stronger, weaker in pairwise(losses))
    assert all(weaker >= stronger * (1 - 1e-4) for stronger, weaker in pairwise(norms))
    for found in fits:
        values = found.minimum.values
        assert all(later <= before * (1 + 1e-13) for before, later in pairwise(values))
        assert penalised(found, features).sum(0).abs().max() < 1e-8 * (1 + max(norms))  # the softmax's gauge
        logits = found.head.logits(features.double())
        assert (logits - standardised(features) @ penalised(found, features).T).sum(1).abs().max() < 1e-6


def test_a_rotation_of_unscaled_features_changes_no_prediction() -> None:
    features, labels = clusters()
    features = unscaled(features).double()
    turn, _ = torch.linalg.qr(torch.randn(12, 12, generator=torch_generator(0, "turn"), dtype=torch.float64))
    plain, turned = (fit(x, labels, 0.1, standardise=False) for x in (features, features @ turn))
    torch.testing.assert_close(plain.head.logits(features), turned.head.logits(features @ turn), atol=1e-5, rtol=1e-6)


def test_scale_and_offset_do_not_matter_to_standardised_features() -> None:
    features, labels = clusters()
    moved = features.double() * torch.logspace(2, -2, 12) - 7
    one, other = fit(features, labels, 10.0), fit(moved, labels, 10.0)
    torch.testing.assert_close(one.head.logits(features), other.head.logits(moved), atol=1e-5, rtol=0)


def test_an_endless_penalty_leaves_the_shares_of_the_classes() -> None:
    # catches a penalty on the bias, which would leave equal shares
    features, labels = clusters()
    labels = torch.where(labels == 3, 0, labels)  # 1/2, 1/4, 1/4
    shares = fit(features, labels, 1e9).head.logits(features).softmax(1)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.25, 0.25]).double().expand(240, 3), atol=1e-5, rtol=0)


def test_a_constant_feature_is_harmless() -> None:
    # dividing by its deviation of 0 would make every logit not a number
    features, labels = clusters()
    features[:, 3] = 0.1
    (head,) = fit_logistic(features, labels, grid=[0.1])
    assert head.logits(features).isfinite().all()
    without = fit(features[:, torch.arange(12) != 3], labels, 10.0)
    torch.testing.assert_close(
        head.logits(features).double(), without.head.logits(features[:, torch.arange(12) != 3]), atol=1e-2, rtol=0
    )


def test_features_that_say_nothing_leave_the_shares() -> None:
    found = fit(torch.ones(8, 3), torch.arange(8) % 2, 1.0)
    torch.testing.assert_close(found.head.logits(torch.ones(1, 3)).softmax(1), torch.full((1, 2), 0.5).double())


def test_equal_features_share_their_weight() -> None:
    features, labels = clusters()
    twice = torch.cat([features, features], 1)
    one, two = fit(features, labels, 1.0), fit(twice, labels, 2.0)  # half the weight twice costs half the penalty
    torch.testing.assert_close(two.head.weight[:, :12], two.head.weight[:, 12:], atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(one.head.logits(features), two.head.logits(twice), atol=1e-5, rtol=1e-5)


def test_fewer_images_than_channels_need_no_more_columns() -> None:
    features = torch.randn(20, 300, generator=torch_generator(0, "wide"))
    labels = torch.arange(20) % 3
    reduced, plain = (
        fit(features, labels, 1.0, solver=Solver(dtype=torch.float64, tolerance=1e-9, rotate=rotate))
        for rotate in (True, False)
    )
    assert reduced.minimum.parameters.shape == (3, 20)  # 19 centred axes and the bias
    torch.testing.assert_close(reduced.head.weight, plain.head.weight, atol=1e-6, rtol=1e-5)


def test_classes_that_are_told_apart_end_under_the_weakest_penalty() -> None:
    # without a penalty the weights would grow for ever
    features, labels = clusters(noise=0.1)
    found = list(logistic_path(features, labels, np.logspace(5, -6, 45).tolist()))
    assert all(each.minimum.converged for each in found)
    assert (found[-1].head.predict(features) == labels).all()
    assert found[-1].minimum.values[-1] < 1e-4


def test_a_class_without_examples_keeps_its_place_and_is_never_predicted() -> None:
    features, labels = clusters(classes=3)
    found = fit(features, labels * 2, 1.0, num_classes=6, solver=Solver())  # classes 0, 2, 4
    assert found.head.weight.shape == (6, 12)
    assert set(found.head.predict(features).tolist()) == {0, 2, 4}
    assert (found.head.predict(features) == labels * 2).double().mean() > 0.8


def test_a_grid_of_c_keeps_its_order() -> None:
    features, labels = clusters()
    heads = fit_logistic(features, labels, grid=[1.0, 1e-3, 10.0])
    assert [head.C for head in heads] == pytest.approx([1.0, 1e-3, 10.0])
    norms = [head.weight.norm().item() for head in heads]
    assert norms[1] < norms[0] < norms[2]


def test_reads_a_memory_map(tmp_path: Path) -> None:
    features, labels = clusters()
    np.save(tmp_path / "features.npy", features.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "features.npy", mmap_mode="c"))
    assert torch.equal(fit(mapped, labels, 1.0).head.weight, fit(features, labels, 1.0).head.weight)


def test_what_cannot_be_fitted_is_said() -> None:
    features, labels = clusters()
    with pytest.raises(DataError, match="240 rows of features but 239 labels"):
        fit(features, labels[1:], 1.0)
    features[7, 2] = math.nan
    with pytest.raises(DataError, match="1 of 12 features are not finite"):
        fit(features, labels, 1.0)


def test_all_of_a_fit_happens_where_the_features_are() -> None:
    features, labels = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    expected = fit_logistic(features, labels, grid=(0.1, 1.0))
    with torch.device("meta"):  # a tensor made without a device would be of no use there
        found = fit_logistic(features, labels, grid=(0.1, 1.0), device="cpu")
        wide = fit_logistic(features[:4], labels[:4], grid=(1.0,), device="cpu")
    assert all(torch.equal(ours.weight, theirs.weight) for ours, theirs in zip(found, expected, strict=True))
    assert wide[0].weight.device.type == "cpu"
