from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from attar.data.labelled import Labelled, open_labelled
from attar.errors import DataError
from attar.evaluation import KnnMonitor, knn_predict, wilson_interval
from attar.models import load_backbone


def test_weights_of_neighbours_are_dinos() -> None:
    # oracle 6.8 of the evaluation spec: similarities .9 .8 .7 weigh .771 .185 .044, so one near beats two far
    angles = torch.tensor([math.acos(0.9), math.acos(0.8), math.acos(0.7)])
    bank = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.tensor([0, 1, 1])
    assert knn_predict(bank, labels, torch.tensor([[1.0, 0.0]]), k=3).item() == 0
    assert (
        knn_predict(bank, labels, torch.tensor([[1.0, 0.0]]), k=3, temperature=10.0).item() == 1
    )  # nearly a plain vote
    weights = torch.softmax(torch.tensor([0.9, 0.8, 0.7]) / 0.07, 0)
    torch.testing.assert_close(weights, torch.tensor([0.7709603, 0.1847614, 0.0442783]))


def test_agrees_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    bank, queries = (
        torch.randn(300, 16, generator=generator),
        torch.randn(2500, 16, generator=generator),
    )  # several tiles
    labels = torch.randint(0, 5, (300,), generator=generator)

    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / 0.07)

    reference = KNeighborsClassifier(n_neighbors=7, metric="cosine", weights=weights, algorithm="brute")
    reference.fit(bank.numpy(), labels.numpy())
    expected = reference.predict(queries.numpy())
    assert (knn_predict(bank, labels, queries, k=7).numpy() == expected).mean() > 0.999


def test_length_of_features_and_order_of_the_bank_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    bank, queries = torch.randn(50, 8, generator=generator), torch.randn(40, 8, generator=generator)
    labels = torch.arange(50) % 4
    plain = knn_predict(bank, labels, queries, k=5)
    order = torch.randperm(50, generator=generator)
    scaled = bank * torch.rand(50, 1, generator=generator).add(0.1)
    assert torch.equal(knn_predict(scaled[order], labels[order], queries * 100, k=5), plain)


def test_k_beyond_the_bank_uses_all_of_it() -> None:
    bank = F.normalize(torch.randn(3, 4), dim=1)
    assert knn_predict(bank, torch.tensor([0, 1, 2]), bank, k=50).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("share", "n", "interval"), [(0.8, 100, (0.7112, 0.8666)), (0.0, 20, (0.0, 0.1611)), (1.0, 20, (0.8389, 1.0))]
)
def test_wilson_interval(share: float, n: int, interval: tuple[float, float]) -> None:
    # catches the normal approximation, which gives (0, 0) and (1, 1) at the ends
    assert wilson_interval(share, n) == pytest.approx(interval, abs=1e-4)


def monitor(limit: int = 200) -> KnnMonitor:
    train, test = open_labelled("playground:3?n=280", seed=0)
    return KnnMonitor(train, test, limit=limit, k=5, seed=0, crop_pct=1.0, workers=0)


def test_monitor_parts_are_disjoint_and_within_the_limit() -> None:
    found = monitor()
    rows = [set(part.rows.tolist()) for part in (found.bank, found.select, found.report)]
    assert [len(part) for part in rows] == [100, 50, 50]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]


def test_monitor_gives_the_same_scores_twice_and_knows_its_classes() -> None:
    backbone = load_backbone(
        "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=1&num_heads=2", weights="random", img_size=64
    )
    found = monitor()
    first, second = dict(found.run(backbone)), dict(found.run(backbone))
    assert first == second
    assert first.pop("knn_images") == 50
    assert set(first) == {"knn_select", "knn_report"}
    assert all(0 <= value <= 1 for value in first.values())


def test_monitor_is_perfect_on_images_it_has_in_the_bank() -> None:
    # labels that follow the images through shuffling, batching and embedding; a shift by one would fail
    train, _ = open_labelled("playground:3?n=56", seed=0)
    twice = Labelled(
        train.source,
        np.concatenate([train.rows, train.rows]),
        np.concatenate([train.labels, train.labels]),
        train.class_names,
    )
    backbone = load_backbone(
        "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=1&num_heads=2", weights="random", img_size=64
    )
    found = KnnMonitor(twice, twice, limit=10_000, k=1, seed=0, crop_pct=1.0, workers=0)
    assert dict(found.run(backbone)) == {"knn_select": 1.0, "knn_report": 1.0, "knn_images": 28}


def test_too_few_images_are_an_error() -> None:
    train, test = open_labelled("playground:3?n=28", seed=0)
    with pytest.raises(DataError, match="a handful"):
        KnnMonitor(train, test.take(np.arange(1)), limit=100, k=5, seed=0, crop_pct=1.0, workers=0)
