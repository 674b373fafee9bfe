from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from attar.data.labelled import open_labelled
from attar.evaluation import LinearProbe, choose_logistic, embed_labelled, mean_per_class_accuracy
from attar.evaluation.linear import GRID, fit_logistic
from attar.models import load_backbone

STUDENT = "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=1&num_heads=2"


def clusters(count: int = 240, *, classes: int = 4, noise: float = 1.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated features of very different scales around class means."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    means = torch.randn(classes, 12, generator=torch.Generator().manual_seed(99))
    mix = torch.randn(12, 12, generator=torch.Generator().manual_seed(98))
    features = means[labels] + noise * torch.randn(count, 12, generator=generator) @ mix / 3
    return features * torch.logspace(-3, 2, 12) + 5, labels


@pytest.mark.parametrize("C", [1e-3, 1.0])
def test_finds_scikit_learns_minimum(C: float) -> None:  # noqa: N803
    # catches a penalty on the whitened weights, one without the 1/2 or the n, on the bias, and unscaled features
    features, labels = clusters()
    x = (features - features.mean(0)) / features.std(0, correction=0)
    reference = LogisticRegression(C=C, tol=1e-7, max_iter=5000).fit(x.double().numpy(), labels.numpy())
    (head,) = fit_logistic(features, labels, grid=[C])
    expected = torch.from_numpy(reference.predict_proba(x.double().numpy())).float()
    torch.testing.assert_close(head.logits(features).softmax(1), expected, atol=2e-3, rtol=0)


def test_scale_and_offset_of_the_features_do_not_matter() -> None:
    features, labels = clusters()
    moved = features * torch.logspace(2, -2, 12) - 7
    (head,), (other,) = fit_logistic(features, labels, grid=[0.1]), fit_logistic(moved, labels, grid=[0.1])
    torch.testing.assert_close(head.logits(features), other.logits(moved), atol=1e-2, rtol=0)


def test_a_constant_feature_is_harmless() -> None:
    # dividing by its deviation of 0 would make every logit not a number
    features, labels = clusters()
    features[:, 3] = 2.0
    (head,) = fit_logistic(features, labels, grid=[0.1])
    assert head.logits(features).isfinite().all()


def test_a_class_without_examples_keeps_its_place_and_is_never_predicted() -> None:
    features, labels = clusters(classes=3)
    (head,) = fit_logistic(features, labels * 2, grid=[1.0])  # classes 0, 2, 4
    assert head.weight.shape == (5, 12)
    assert set(head.predict(features).tolist()) == {0, 2, 4}
    assert (head.predict(features) == labels * 2).double().mean() > 0.8


def test_two_classes_have_two_rows() -> None:
    features, labels = clusters(classes=2)
    (head,) = fit_logistic(features, labels, grid=[1.0])
    torch.testing.assert_close(head.weight[0], -head.weight[1], atol=1e-2, rtol=1e-2)  # softmax of a symmetric penalty
    assert (head.predict(features) == labels).double().mean() > 0.8


def test_the_chosen_penalty_is_fitted_again_on_all_rows() -> None:
    features, labels = clusters()
    chosen = choose_logistic(features, labels, seed=0)
    (again,) = fit_logistic(features, labels, grid=[chosen.C])
    assert torch.equal(chosen.weight, again.weight)
    assert torch.equal(chosen.weight, choose_logistic(features, labels, seed=0).weight)


def test_the_penalty_is_chosen_on_rows_it_was_not_fitted_on() -> None:
    # one weak signal among 300 channels of noise: fitted rows are best with no penalty, held-out rows with a strong one
    labels = torch.arange(500) % 2
    features = torch.randn(500, 300, generator=torch.Generator().manual_seed(0))
    features[:, 0] += 2.0 * labels
    on_fitted = [(head.predict(features) == labels).double().mean().item() for head in fit_logistic(features, labels)]
    assert on_fitted == sorted(on_fitted)
    chosen = choose_logistic(features, labels, seed=0).C
    assert chosen <= 1e-2


def test_of_equal_penalties_the_strongest_is_chosen() -> None:
    labels = torch.arange(1000) % 2
    features = labels[:, None] + 0.01 * torch.randn(1000, 12, generator=torch.Generator().manual_seed(0))
    chosen = choose_logistic(features, labels, seed=0).C  # any penalty gets all of them
    assert chosen == GRID[0]


def test_mean_per_class_accuracy_weighs_classes_not_images() -> None:
    labels = torch.tensor([0] * 8 + [3] * 2)
    predicted = torch.tensor([0] * 8 + [0, 3])
    assert mean_per_class_accuracy(predicted, labels) == pytest.approx(0.75)  # 0.9 by images, 0.375 over four classes


def test_probe_fits_on_one_part_and_reports_the_other() -> None:
    train, test = open_labelled("playground:3?n=140", seed=0)
    backbone = load_backbone(STUDENT, weights="random", img_size=64)
    found = dict(LinearProbe(train, test, seed=0, crop_pct=1.0, workers=0).run(backbone))
    head = choose_logistic(*embed_labelled(backbone, train), seed=0)
    features, labels = embed_labelled(backbone, test)
    predicted = head.predict(features)
    assert found == {
        "linear_top1": (predicted == labels).double().mean().item(),
        "linear_mean_per_class": mean_per_class_accuracy(predicted, labels),
        "linear_C": head.C,
        "linear_images": len(test),
    }
