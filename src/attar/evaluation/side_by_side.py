"""Two models on the same images: whose neighbours are whose, where they disagree, which classes one of them loses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.evaluation.knn import vote
from attar.evaluation.neighbours import nearest

_Z = 1.96  # of a 95 % interval


@dataclass(frozen=True)
class Found:
    """The nearest rows of the bank for each query.

    Attributes:
        similarity: (q, k), the nearest first.
        rows: (q, k).
    """

    similarity: Tensor
    rows: Tensor


def find(bank: Tensor, queries: Tensor, *, k: int, own: Tensor | None = None) -> Found:
    """The k nearest rows of a bank (n, D) for queries (q, D), none of them the query itself.

    Args:
        bank: Features to search.
        queries: Features to search for.
        k: Neighbours.
        own: (q,) row of each query in the bank, which is left out; None where the queries are other images.
    """
    if own is None:
        return Found(*nearest(bank, queries, k=k))
    similarity, rows = nearest(bank, queries, k=k + 1)
    is_other = rows != own[:, None]
    is_other[is_other.all(1), -1] = False  # a query with k + 1 equals does not find itself
    shape = (len(queries), rows.shape[1] - 1)
    return Found(similarity[is_other].view(shape), rows[is_other].view(shape))


def shared(one: Found, other: Found) -> Tensor:
    """(q, k) bool: which neighbours of one the other finds too."""
    return (one.rows[:, :, None] == other.rows[:, None, :]).any(2)


def agreement(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], *, own: Tensor | None = None) -> Tensor:
    """(q,) correlation, over the bank, of the cosine similarities that two models see.

    It asks for no common space, so that models of different widths compare.

    Args:
        one: Bank (n, D) and queries (q, D) of one model.
        other: Of the other model, whose width may differ; the same images in the same order.
        own: (q,) row of each query in the bank, which is left out.
    """
    columns = []
    for bank, queries in (one, other):
        seen = F.normalize(queries.float(), dim=1) @ F.normalize(bank.float(), dim=1).T
        is_left = torch.ones_like(seen, dtype=torch.bool)
        if own is not None:
            is_left.scatter_(1, own[:, None], False)
        seen = seen[is_left].view(len(queries), -1)
        columns.append(seen - seen.mean(1, keepdim=True))
    return F.cosine_similarity(columns[0], columns[1], dim=1)


@dataclass(frozen=True)
class Outcome:
    """How two models do on the same images.

    Attributes:
        images: How many.
        one: Share on which the first model is right, in [0, 1].
        other: Share on which the second is.
        margin: Half of the 95 % interval of the difference, from the images on which exactly one is right.
    """

    images: int
    one: float
    other: float
    margin: float

    @classmethod
    def of(cls, one: Tensor, other: Tensor) -> Outcome:
        """From which of (n,) images either is right on."""
        images, lost, gained = len(one), int((one & ~other).sum()), int((~one & other).sum())
        # one image more of either kind, so that a class on which both agree is not taken for certain
        spread = (lost + gained + 2) / (images + 2) - ((gained - lost) / (images + 2)) ** 2
        margin = _Z * math.sqrt(spread / (images + 2))
        return cls(images, float(one.float().mean()), float(other.float().mean()), margin)


def by_class(one: Tensor, other: Tensor, targets: Tensor) -> dict[int, Outcome]:
    """For each class among the targets (q,), what predictions (q,) of two models come to."""
    classes = sorted(set(targets.tolist()))
    return {
        number: Outcome.of(one[targets == number] == number, other[targets == number] == number) for number in classes
    }


def predictions(found: Found, labels: Tensor, *, num_classes: int) -> Tensor:
    """(q,) class of each query by the vote of its neighbours; labels (n,) are those of the bank."""
    return vote(found.similarity, labels[found.rows], num_classes=num_classes)
