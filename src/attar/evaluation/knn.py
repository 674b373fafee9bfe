"""Weighted k-nearest-neighbour accuracy of frozen features, as DINO and DINOv2 measure it (spec evaluation §1.2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attar.data.labelled import Labelled, Rows
from attar.data.views import EvaluationView
from attar.errors import DataError
from attar.evaluation.embedding import embed, evaluation_views
from attar.types import FrozenBackbone
from attar.utils.seeding import numpy_generator

TEMPERATURE = 0.07  # DINO's
_TILE = 1024  # queries compared at a time: memory is _TILE x bank, not queries x bank
_KEEP_PIXELS = 256 << 20  # decoded monitor images are kept in memory up to this many bytes


def knn_predict(bank: Tensor, labels: Tensor, queries: Tensor, *, k: int, temperature: float = TEMPERATURE) -> Tensor:
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
    """
    bank = F.normalize(bank.float(), dim=1)
    num_classes = int(labels.max()) + 1
    k = min(k, len(bank))
    predicted = []
    for tile in torch.split(F.normalize(queries.float(), dim=1), _TILE):
        similarity, neighbours = (tile @ bank.T).topk(k, dim=1)  # (t, k)
        weights = ((similarity - 1) / temperature).exp()  # shifted by the largest similarity there can be
        votes = torch.zeros(len(tile), num_classes).scatter_add_(1, labels[neighbours], weights)
        predicted.append(votes.argmax(1))
    return torch.cat(predicted)


def knn_accuracy(
    bank: tuple[Tensor, Tensor], queries: tuple[Tensor, Tensor], *, k: int, temperature: float = TEMPERATURE
) -> float:
    """Share of queries whose class `knn_predict` finds; both arguments are (features, labels)."""
    return (knn_predict(*bank, queries[0], k=k, temperature=temperature) == queries[1]).double().mean().item()


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

    def __init__(
        self, train: Labelled, test: Labelled, *, limit: int, k: int, seed: int, crop_pct: float, workers: int
    ) -> None:
        self.k, self.crop_pct, self.workers = k, crop_pct, workers
        self.bank = _subset(train, limit // 2, seed, "bank")
        queries = _subset(test, limit // 2, seed, "queries")
        middle = len(queries) // 2
        if middle == 0 or len(self.bank) == 0:
            raise DataError(
                f"the monitor has {len(self.bank)} + {len(queries)} images; it needs a handful for each class."
            )
        self.select, self.report = queries.take(np.arange(middle)), queries.take(np.arange(middle, len(queries)))
        self._pixels: dict[tuple[int, str], list[tuple[Tensor, Tensor]]] = {}

    def run(self, backbone: FrozenBackbone) -> Iterator[tuple[str, float]]:
        """Yield the top-1 shares `knn_select` and `knn_report`, and `knn_images`, the number behind the report."""
        bank = self._embed(backbone, self.bank, "bank")
        for name, part in (("knn_select", self.select), ("knn_report", self.report)):
            features, labels = self._embed(backbone, part, name)
            yield name, knn_accuracy(bank, (features, labels), k=self.k)
        yield "knn_images", len(labels)

    @property
    def protocol(self) -> dict[str, Any]:
        """Settings that shape the figures."""
        sizes = {"bank": len(self.bank), "select": len(self.select), "report": len(self.report)}
        return {"k": self.k, "temperature": TEMPERATURE, "crop_pct": self.crop_pct, **sizes}

    def describe(self) -> dict[str, Any]:
        """Which rows of which images are bank, selection and report: the split, to be written down."""
        parts = {"bank": self.bank, "select": self.select, "report": self.report}
        return {
            name: {"images": part.source.fingerprint, "rows": sorted(part.rows.tolist())}
            for name, part in parts.items()
        }

    def _embed(self, backbone: FrozenBackbone, part: Labelled, name: str) -> tuple[Tensor, Tensor]:
        """((n, D) features, (n,) labels) of the readable images of a part."""
        return embed(backbone, part, self._batches(part, name, backbone.img_size), name="monitor images")

    def _batches(self, part: Labelled, name: str, img_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        if (img_size, name) in self._pixels:
            yield from self._pixels[img_size, name]
            return
        keep = (len(self.bank) + len(self.select) + len(self.report)) * 3 * img_size**2 <= _KEEP_PIXELS
        kept = []
        shown = f"monitor images, {name.removeprefix('knn_')}"
        view = EvaluationView(img_size, self.crop_pct)
        for batch in evaluation_views(part, view, workers=self.workers, name=shown):
            kept.append(batch) if keep else None
            yield batch
        if keep:
            self._pixels[img_size, name] = kept


def _subset(images: Labelled, limit: int, seed: int, name: str) -> Labelled:
    """At most `limit` images, shuffled by seed."""
    order: Rows = numpy_generator(seed, "monitor", name).permutation(len(images))[:limit]
    return images.take(order)
