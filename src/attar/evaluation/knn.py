"""Weighted k-nearest-neighbour accuracy of frozen features, as DINO and DINOv2 measure it (spec evaluation §1.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.data.draws import some_of_each_class
from attar.data.labelled import Labelled, Rows
from attar.errors import DataError
from attar.evaluation.embedding import MonitorViews, embed
from attar.evaluation.neighbours import Features, nearest
from attar.types import FrozenBackbone
from attar.utils.io import sha256_text
from attar.utils.seeding import numpy_generator

TEMPERATURE = 0.07  # DINO's
KS = (10, 20, 100, 200)
"""Numbers of neighbours that DINOv2 reports."""

_TILE = 1024  # queries whose votes are counted at a time: memory is _TILE x classes


@dataclass(frozen=True)
class KnnScore:
    """Shares of queries whose class has the most votes, or is among the five classes with the most.

    Attributes:
        top1: In [0, 1].
        top5: In [0, 1]; a class without a vote is never among the five.
        spread: Standard deviation of `top1` over draws of the bank; 0 where there is one.
    """

    top1: float
    top5: float
    spread: float = 0.0


def knn_predict(
    bank: Features, labels: Tensor, queries: Features, *, k: int, temperature: float = TEMPERATURE
) -> Tensor:
    """Class of each query by a vote of its k nearest neighbours.

    Neighbours are found by cosine similarity and vote with weight exp(similarity / temperature).

    Args:
        bank: (n, D) features with known classes.
        labels: (n,) int64.
        queries: (q, D).
        k: Neighbours that vote; at most n of them do.
        temperature: Smaller gives near neighbours more weight.

    Returns:
        (q,) int64.

    Raises:
        ShapeError, DataError, ConfigError: As `nearest`.
    """
    ((_, votes),) = knn_votes(bank, labels, queries, ks=[k], temperature=temperature)
    return votes.argmax(1)


def knn_votes(
    bank: Features,
    labels: Tensor,
    queries: Features,
    *,
    ks: Sequence[int],
    num_classes: int | None = None,
    temperature: float = TEMPERATURE,
) -> Iterator[tuple[int, Tensor]]:
    """(k, (q, K) votes for each class) for rising k, from one search; the tensor is one and grows.

    Other arguments and errors are those of `knn_predict`.
    """
    ks = sorted(set(ks))
    similarity, neighbours = nearest(bank, queries, k=ks[-1])
    count = num_classes or int(labels.max()) + 1
    yield from zip(
        ks, _votes(similarity, labels[neighbours], ks=ks, num_classes=count, temperature=temperature), strict=True
    )


def vote(similarity: Tensor, classes: Tensor, *, num_classes: int, temperature: float = TEMPERATURE) -> Tensor:
    """(q,) class with the most votes, of neighbours that are known already.

    Args:
        similarity: (q, k), the nearest first.
        classes: (q, k) of the neighbours.
        num_classes: K.
        temperature: Smaller gives near neighbours more weight.
    """
    k = similarity.shape[1]
    (votes,) = _votes(similarity, classes, ks=[k], num_classes=num_classes, temperature=temperature)
    return votes.argmax(1)


def knn_accuracy(
    bank: tuple[Features, Tensor], queries: tuple[Features, Tensor], *, k: int, temperature: float = TEMPERATURE
) -> float:
    """Share of queries whose class `knn_predict` finds; both arguments are (features, labels)."""
    return knn_scores(bank, queries, ks=[k], temperature=temperature)[k].top1


def knn_scores(
    bank: tuple[Features, Tensor],
    queries: tuple[Features, Tensor],
    *,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    device: str | torch.device = "cpu",
) -> dict[int, KnnScore]:
    """Top-1 and top-5 shares for several k, from one search for the most neighbours among them.

    Args:
        bank: (n, D) features, which may be a memory map, and (n,) int64 classes.
        queries: (q, D) features and (q,) int64 classes.
        ks: Numbers of neighbours that vote.
        temperature: Smaller gives near neighbours more weight.
        device: Where the search runs.

    Returns:
        A score for each k, in rising order.

    Raises:
        ShapeError, DataError, ConfigError: As `nearest`.
    """
    ks, targets = sorted(set(ks)), queries[1]
    similarity, neighbours = nearest(bank[0], queries[0], k=ks[-1], device=device)
    num_classes = int(max(bank[1].max(), targets.max())) + 1
    hits = torch.zeros(len(ks), 2, dtype=torch.int64)
    tiles = (torch.split(part, _TILE) for part in (similarity, bank[1][neighbours], targets))
    for near, classes, wanted in zip(*tiles, strict=True):
        votes = _votes(near, classes, ks=ks, num_classes=num_classes, temperature=temperature)
        hits += torch.tensor([[_hits(found, wanted, top=top) for top in (1, 5)] for found in votes])
    shares = hits.double() / len(targets)
    return {k: KnnScore(*share) for k, share in zip(ks, shares.tolist(), strict=True)}


def _votes(
    similarity: Tensor, classes: Tensor, *, ks: Sequence[int], num_classes: int, temperature: float
) -> Iterator[Tensor]:
    """For each of the rising ks (t, num_classes) votes of the first k neighbours; the tensor is one and grows.

    The weights are a softmax over all neighbours that were found, as in DINOv2: no k is favoured by it.
    """
    weights = (similarity / temperature).softmax(1)
    votes = torch.zeros(len(similarity), num_classes)
    counted = 0
    for k in ks:
        votes.scatter_add_(1, classes[:, counted:k], weights[:, counted:k])
        counted = k
        yield votes


def _hits(votes: Tensor, targets: Tensor, *, top: int) -> int:
    """How many targets are among the `top` classes with the most votes; of equal classes the first counts."""
    own = votes.gather(1, targets[:, None])
    is_before = torch.arange(votes.shape[1]) < targets[:, None]
    rank = ((votes > own) | ((votes == own) & is_before)).sum(1)
    return int(((rank < top) & (own[:, 0] > 0)).sum())


def few_shot_knn(
    bank: tuple[Features, Tensor],
    queries: tuple[Features, Tensor],
    *,
    per_class: int,
    seeds: Sequence[int],
    ks: Sequence[int] = KS,
) -> dict[int, KnnScore]:
    """`knn_scores` with a few images of each class for a bank, averaged over draws (an option of DINOv2's protocol).

    Args:
        bank: Features and classes to draw from.
        queries: Features and classes to judge by.
        per_class: Rows of each class; all of a smaller class.
        seeds: One for each draw.
        ks: Numbers of neighbours that vote.
    """
    draws = []
    for seed in seeds:
        is_drawn = some_of_each_class(bank[1].numpy(), lambda size: min(size, per_class), seed=seed)
        rows = np.flatnonzero(is_drawn)
        draws.append(knn_scores((bank[0][rows], bank[1][rows]), queries, ks=ks))
    return {k: _average([draw[k] for draw in draws]) for k in draws[0]}


def _average(scores: Sequence[KnnScore]) -> KnnScore:
    top1, top5 = [score.top1 for score in scores], [score.top5 for score in scores]
    return KnnScore(fmean(top1), fmean(top5), pstdev(top1))


class KnnMonitor:
    """k-NN on labelled images that no step trains on; the queries are two halves, one to select by, one to report.

    Args:
        train: Images whose features are the bank.
        test: Images that are classified.
        limit: Images used at most, half of them for the bank.
        k: Neighbours that vote.
        seed: Names the choice of images and halves.
        crop_pct: Share of the resized image that the centre crop keeps.
        workers: Loader processes.
    """

    kind = "knn"

    def __init__(
        self, train: Labelled, test: Labelled, *, limit: int, k: int, seed: int, crop_pct: float, workers: int
    ) -> None:
        self.k, self.crop_pct = k, crop_pct
        self.bank = _subset(train, limit // 2, seed, "bank")
        queries = _subset(test, limit // 2, seed, "queries")
        middle = len(queries) // 2
        if middle == 0 or len(self.bank) == 0:
            raise DataError(
                f"the monitor has {len(self.bank)} + {len(queries)} images; it needs a handful for each class."
            )
        self.select, self.report = queries.take(np.arange(middle)), queries.take(np.arange(middle, len(queries)))
        parts = {"bank": self.bank, "select": self.select, "report": self.report}
        self.views = MonitorViews(parts, crop_pct=crop_pct, workers=workers)

    def run(self, backbone: FrozenBackbone) -> Iterator[tuple[str, float]]:
        """Yield the top-1 shares `knn_select` and `knn_report`, and `knn_images`, the number behind the report."""
        bank = self._embed(backbone, "bank")
        for name in ("select", "report"):
            features, labels = self._embed(backbone, name)
            yield f"knn_{name}", knn_accuracy(bank, (features, labels), k=self.k)
        yield "knn_images", len(labels)

    @property
    def protocol(self) -> dict[str, Any]:
        """Settings that shape the figures."""
        parts = self.views.parts
        images = sha256_text(" ".join(part.fingerprint for part in parts.values()))[:16]
        sizes = {name: len(part) for name, part in parts.items()}
        return {"k": self.k, "temperature": TEMPERATURE, "crop_pct": self.crop_pct, "images": images, **sizes}

    def describe(self) -> dict[str, Any]:
        """Which rows of which images are bank, selection and report: the split, to be written down."""
        return {
            name: {"images": part.source.fingerprint, "rows": sorted(part.rows.tolist())}
            for name, part in self.views.parts.items()
        }

    def _embed(self, backbone: FrozenBackbone, name: str) -> tuple[Tensor, Tensor]:
        """((n, D) features, (n,) labels) of the readable images of a part."""
        batches = self.views.batches(name, backbone.img_size)
        return embed(backbone, self.views.parts[name], batches, name="monitor images")


def _subset(images: Labelled, limit: int, seed: int, name: str) -> Labelled:
    """At most `limit` images, shuffled by seed."""
    order: Rows = numpy_generator(seed, "monitor", name).permutation(len(images))[:limit]
    return images.take(order)
