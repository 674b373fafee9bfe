"""Which sentences of a corpus could be seen in some images: choices among each image's most similar sentences.

DIME-FM selects visually grounded sentences with images as queries; its algorithm is not public. These are attar's own
(spec dime_fm §2.3), and what was found for each image (`attar.curation.search`) is all they look at.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attar.curation.search import NOBODY, Found


@dataclass(frozen=True)
class Grounded:
    """Chosen sentences, each once.

    Attributes:
        sentence: (n,) place in the corpus.
        image: (n,) whose sentence it is.
        similarity: (n,) float64 of the two.
        rank: (n,) where it stands among the image's candidates, from 0.
    """

    sentence: NDArray[np.int64]
    image: NDArray[np.int64]
    similarity: NDArray[np.float64]
    rank: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sentence)


def topk_union(found: Found, *, count: int | None = None) -> Grounded:
    """The sentences that any image has among its k most similar ones, the most similar first.

    A sentence is that of the image which it is most similar to, of equal ones the first.

    Args:
        found: The k most similar sentences of each image.
        count: How many to choose: with the least k that gives as many, those of the highest similarity. None: all.

    Example:
        >>> import torch
        >>> found = Found(torch.tensor([[0.9, 0.8], [0.85, 0.3]]), torch.tensor([[0, 1], [0, 2]]))
        >>> topk_union(found).sentence.tolist(), topk_union(found, count=2).sentence.tolist()
        ([0, 1, 2], [0, 1])
    """
    pairs = _pairs(found)
    if count is not None:
        pairs = _part(pairs, pairs.rank <= _least_rank(pairs, count))
    best = np.lexsort((pairs.image, -pairs.similarity, pairs.sentence))
    is_first = np.diff(pairs.sentence[best], prepend=NOBODY) != 0
    chosen = best[is_first]
    return _part(pairs, chosen[np.lexsort((pairs.sentence[chosen], -pairs.similarity[chosen]))][:count])


def assignment_greedy(found: Found, *, per_image: int = 1, count: int | None = None) -> Grounded:
    """Sentences for each image that no other image has: pairs by falling similarity, if both are free.

    So a sentence that is near to everything serves one image and not all. This approximates the assignment of the
    highest total similarity in two ways: it is greedy, and it knows the candidates alone. Where every image gets its
    sentences, more candidates would change nothing (`short_of` counts those that do not).

    Args:
        found: Candidates of each image.
        per_image: Sentences that an image may have.
        count: Where to stop. None: when no pair is left.

    Example:
        >>> import torch
        >>> found = Found(torch.tensor([[0.9, 0.8], [0.85, 0.3]]), torch.tensor([[0, 1], [0, 2]]))
        >>> chosen = assignment_greedy(found)
        >>> chosen.image.tolist(), chosen.sentence.tolist()
        ([0, 1], [0, 2])
    """
    pairs = _pairs(found)
    order = np.lexsort((pairs.image, pairs.sentence, -pairs.similarity))
    names, sentence = np.unique(pairs.sentence[order], return_inverse=True)
    is_free, left, taken = bytearray(b"\1" * len(names)), [per_image] * len(found.place), list[int]()
    for pair, mine, image in zip(order.tolist(), sentence.tolist(), pairs.image[order].tolist(), strict=True):
        if len(taken) == count:
            break
        if is_free[mine] and left[image]:
            is_free[mine] = 0
            left[image] -= 1
            taken.append(pair)
    return _part(pairs, np.array(taken, dtype=np.int64))


def facility_location(found: Found, *, count: int) -> Grounded:
    """Sentences that together say something of every image: the sum of each image's best similarity is made large.

    Lazy greedy (Minoux 1978): each time the sentence that adds most to the sum, of equal ones the first. Similarities
    below 0 count as 0, so that the sum is at least 1 - 1/e of the best one among the candidates; a sentence that is no
    candidate of an image counts as 0 for it, which makes this approximate. A sentence is that of the image it adds most
    to.

    Args:
        found: Candidates of each image.
        count: How many to choose; fewer where no sentence adds anything.

    Example:
        >>> import torch
        >>> found = Found(torch.tensor([[0.9, 0.8], [0.85, 0.3]]), torch.tensor([[0, 1], [0, 2]]))
        >>> facility_location(found, count=1).sentence.tolist()  # what it adds after that is nothing
        [0]
    """
    pairs = _pairs(found)
    pairs = _part(pairs, np.lexsort((pairs.image, pairs.sentence)))
    names, firsts = np.unique(pairs.sentence, return_index=True)
    ends = np.append(firsts[1:], len(pairs))
    served = np.zeros(len(found.place))  # each image's best similarity so far

    def gains(number: int) -> NDArray[np.float64]:
        own = slice(firsts[number], ends[number])
        return np.maximum(pairs.similarity[own] - served[pairs.image[own]], 0)

    waiting = [(-float(gains(number).sum()), number) for number in range(len(names))]
    heapq.heapify(waiting)
    taken: list[int] = []
    while waiting and len(taken) < count:
        _, number = heapq.heappop(waiting)
        added = gains(number)
        now = (-float(added.sum()), number)
        if waiting and now > waiting[0]:  # gains only fall: where it is still the first, no other can be more
            heapq.heappush(waiting, now)
        elif now[0] == 0:
            break
        else:
            own = slice(firsts[number], ends[number])
            taken.append(int(firsts[number] + added.argmax()))
            served[pairs.image[own]] = np.maximum(served[pairs.image[own]], pairs.similarity[own])
    return _part(pairs, np.array(taken, dtype=np.int64))


def short_of(chosen: Grounded, *, images: int, per_image: int) -> int:
    """How many images have fewer sentences of their own than they may."""
    return int((np.bincount(chosen.image, minlength=images) < per_image).sum())


def _pairs(found: Found) -> Grounded:
    """Every image with every candidate it has."""
    sentence, similarity = found.place.numpy().ravel(), found.similarity.numpy().ravel()
    image, rank = (axis.ravel() for axis in np.indices(tuple(found.place.shape)))
    return _part(Grounded(sentence, image, similarity, rank), sentence != NOBODY)


def _part(pairs: Grounded, which: NDArray[np.int64] | NDArray[np.bool_]) -> Grounded:
    return Grounded(pairs.sentence[which], pairs.image[which], pairs.similarity[which], pairs.rank[which])


def _least_rank(pairs: Grounded, count: int) -> int:
    """The rank up to which all pairs together have `count` sentences; the last one if none has."""
    order = np.lexsort((pairs.rank, pairs.sentence))
    is_first = np.diff(pairs.sentence[order], prepend=NOBODY) != 0
    ranks = np.sort(pairs.rank[order][is_first])
    return int(ranks[min(count, len(ranks)) - 1]) if len(ranks) else 0
