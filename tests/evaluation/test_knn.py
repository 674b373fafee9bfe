from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from attar.data.labelled import Labelled, open_labelled
from attar.errors import DataError
from attar.evaluation import KnnMonitor, few_shot_knn, knn_accuracy, knn_predict, knn_scores, wilson_interval
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


def clusters(count: int, *, classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features around class means, so near that neighbours disagree."""
    means = torch.randn(classes, 12, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    return means[labels] + 1.5 * torch.randn(count, 12, generator=torch.Generator().manual_seed(seed)), labels


def plain_ranks(bank: tuple[Tensor, Tensor], queries: Tensor, k: int) -> list[list[int]]:
    """For each query the classes with a vote, the most votes first: the protocol, word by word, in float64."""
    similarity = F.normalize(queries.double(), dim=1) @ F.normalize(bank[0].double(), dim=1).T
    ranks = []
    for row in similarity:
        order = sorted(range(len(row)), key=lambda place: (-row[place].item(), place))[:k]
        votes: dict[int, float] = {}
        for place in order:
            votes[int(bank[1][place])] = votes.get(int(bank[1][place]), 0.0) + math.exp((row[place].item() - 1) / 0.07)
        ranks.append(sorted(votes, key=lambda label: (-votes[label], label)))
    return ranks


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 60), ks=st.sets(st.integers(1, 70), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_scores_of_several_k_are_those_of_each_alone(n: int, ks: set[int], seed: int) -> None:
    # catches votes that are not reset or not carried on from k to k, and top-5 that takes classes nobody voted for
    bank, (queries, targets) = clusters(n, seed=seed), clusters(12, seed=seed + 1000)
    found = knn_scores(bank, (queries, targets), ks=list(ks))
    assert list(found) == sorted(ks)
    for k, score in found.items():
        ranks = plain_ranks(bank, queries, k)
        hits = [[int(target) in rank[:top] for rank, target in zip(ranks, targets, strict=True)] for top in (1, 5)]
        assert (score.top1, score.top5) == (pytest.approx(np.mean(hits[0])), pytest.approx(np.mean(hits[1])))
        assert knn_predict(*bank, queries, k=k).tolist() == [rank[0] for rank in ranks]
        assert knn_accuracy(bank, (queries, targets), k=k) == score.top1


def test_of_equal_votes_the_first_class_wins() -> None:
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert knn_predict(bank, torch.tensor([2, 1, 3]), bank[:1], k=3).item() == 1
    scores = [knn_scores((bank, torch.tensor([2, 1, 3])), (bank[:1], torch.tensor([t])), ks=[3])[3] for t in range(4)]
    assert [score.top1 for score in scores] == [0, 1, 0, 0]
    assert [score.top5 for score in scores] == [0, 1, 1, 1]  # class 0 has no vote


def test_one_neighbour_on_the_bank_itself_is_always_right() -> None:
    bank = clusters(3000, classes=50)  # several tiles of votes
    assert knn_scores(bank, bank, ks=[1])[1].top1 == 1.0


def test_order_of_the_queries_does_not_matter() -> None:
    bank, queries = clusters(200), clusters(1500, seed=1)
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(0))
    shuffled = knn_predict(*bank, queries[0][order], k=20)
    assert torch.equal(shuffled, knn_predict(*bank, queries[0], k=20)[order])
    assert knn_scores(bank, queries) == knn_scores(bank, (queries[0][order], queries[1][order]))


def test_a_class_that_only_the_queries_have_is_never_found() -> None:
    queries, targets = clusters(14)
    bank = queries[targets < 6], targets[targets < 6]
    assert knn_scores(bank, (queries, targets), ks=[1])[1].top1 == pytest.approx(6 / 7)


def test_a_few_images_of_each_class_are_averaged_over_draws() -> None:
    bank, queries = clusters(700), clusters(140, seed=1)
    alone = [few_shot_knn(bank, queries, per_class=3, seeds=[seed], ks=[1, 5])[5] for seed in (0, 1, 2)]
    assert len({score.top1 for score in alone}) > 1  # draws differ
    assert {score.spread for score in alone} == {0.0}
    together = few_shot_knn(bank, queries, per_class=3, seeds=[0, 1, 2], ks=[1, 5])[5]
    assert together.top1 == pytest.approx(np.mean([score.top1 for score in alone]))
    assert together.top5 == pytest.approx(np.mean([score.top5 for score in alone]))
    assert together.spread == pytest.approx(np.std([score.top1 for score in alone]))


def test_more_images_than_a_class_has_are_all_of_them() -> None:
    bank, queries = clusters(70), clusters(70, seed=1)
    assert few_shot_knn(bank, queries, per_class=100, seeds=[0], ks=[5]) == knn_scores(bank, queries, ks=[5])


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
