"""Sentences of each step, drawn without regard to the images: a pure function of the step, nothing stored.

What is known of a sentence (its teacher's feature, its token numbers) lies in arrays, in memory or mapped from files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.data.sampler import Places, permute
from attar.errors import ConfigError, ShapeError
from attar.utils.seeding import derive


def rows_of(values: Any, rows: Places) -> Tensor:
    """Rows, which may repeat, of an array, a memory-mapped one or a tensor; floats in float32 at least."""
    if isinstance(values, Tensor):
        found = values[torch.from_numpy(rows)]
    else:
        found = torch.from_numpy(np.ascontiguousarray(values[rows]))
    return found.float() if found.is_floating_point() and found.element_size() < 4 else found


@dataclass(frozen=True)
class Texts:
    """Some sentences.

    Attributes:
        features: (m, E) float32, the teacher's, of any length: terms compare directions.
        tokens: (m, L) int64 token numbers for the student, None where no text tower learns.
    """

    features: Tensor
    tokens: Tensor | None = None

    def to(self, device: torch.device) -> Texts:
        """The same on `device`."""
        tokens = None if self.tokens is None else self.tokens.to(device, non_blocking=True)
        return Texts(self.features.to(device, non_blocking=True), tokens)


class Sentences:
    """Rows of a set of sentences.

    Args:
        features: (n, E), the teacher's: an array, a memory-mapped one, or a tensor; any float dtype.
        tokens: (n, L) token numbers, any integer dtype; needed where a text tower learns.

    Raises:
        ShapeError: If there are none, or the two are not of the same sentences.
    """

    def __init__(self, features: Any, tokens: Any | None = None) -> None:
        if features.ndim != 2 or len(features) == 0:
            raise ShapeError(f"features of sentences are {tuple(features.shape)}. They must be (n, E) of one or more.")
        if tokens is not None and (tokens.ndim != 2 or len(tokens) != len(features)):
            raise ShapeError(
                f"tokens of sentences are {tuple(tokens.shape)}, their features {tuple(features.shape)}."
                " Both need one row a sentence."
            )
        self._features, self._tokens = features, tokens

    def __len__(self) -> int:
        return len(self._features)

    @property
    def embed_dim(self) -> int:
        """Width E of the features."""
        return int(self._features.shape[1])

    @property
    def has_tokens(self) -> bool:
        """Whether a text tower can learn from them."""
        return self._tokens is not None

    def rows(self, rows: Places) -> Texts:
        """Sentences by row, which may repeat."""
        tokens = None if self._tokens is None else rows_of(self._tokens, rows).long()
        return Texts(rows_of(self._features, rows), tokens)


@dataclass(frozen=True)
class SentenceStream:
    """Which sentences a step learns from: all of them in random order, then all in another one.

    Like the images' stream it is endless and without an uneven last batch, and a resume needs the step alone. The two
    streams are independent of each other.

    Attributes:
        sentences: To draw from.
        batch_size: Sentences per step over all ranks.
        seed: Names the order.
    """

    sentences: Sentences
    batch_size: int
    seed: int

    def at(self, step: int, *, rank: int = 0, world_size: int = 1) -> Texts:
        """This rank's sentences of a step; those of all ranks, one behind the other, are those of one process.

        Raises:
            ConfigError: If the ranks cannot share the step's sentences equally.
        """
        size, rest = divmod(self.batch_size, world_size)
        if rest or not size:
            raise ConfigError(
                f"{self.batch_size} sentences a step do not divide into {world_size} ranks."
                f" Try {max(1, round(self.batch_size / world_size)) * world_size}."
            )
        start = step * self.batch_size + rank * size
        epochs, slots = np.divmod(np.arange(start, start + size), len(self.sentences))
        rows = np.empty_like(slots)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = permute(slots[here], len(self.sentences), derive(self.seed, "sentences", int(epoch)))
        return self.sentences.rows(rows)
