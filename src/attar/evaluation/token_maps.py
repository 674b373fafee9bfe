"""Patch tokens as colours: a teacher's principal components, and a student's tokens on the same ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.utils.seeding import numpy_generator

_COLOURS = 3
_MOST_TOKENS = 16_384  # that anything is fitted on: components do not change with more
_ENDS = (4.0, 96.0)  # percentiles that become black and full: a few tokens with huge norms must not take all the range

Values = NDArray[np.float32]


@dataclass(frozen=True)
class ColourBasis:
    """Three principal components, and the range of each that colours show.

    Attributes:
        mean: (D,) of the tokens it was fitted on.
        components: (3, D), the strongest first; zeros where there are fewer.
        low: (3,) value of each component that is shown black.
        high: (3,) value that is shown full.
    """

    mean: Values
    components: Values
    low: Values
    high: Values

    @classmethod
    def fit(cls, tokens: Tensor, *, seed: int = 0) -> ColourBasis:
        """Of tokens (n, D); of very many some are drawn by seed."""
        from sklearn.decomposition import PCA  # a second to import

        values = _some(tokens, seed=seed)[0]
        count = min(_COLOURS, *values.shape)
        fitted = PCA(count, svd_solver="full").fit(values)
        components = np.zeros((_COLOURS, values.shape[1]), dtype=np.float32)
        components[:count] = fitted.components_
        mean = fitted.mean_.astype(np.float32)
        low, high = np.percentile((values - mean) @ components.T, _ENDS, axis=0)
        return cls(mean, components, low.astype(np.float32), high.astype(np.float32))

    def colours(self, tokens: Tensor) -> NDArray[np.uint8]:
        """(N, 3) RGB of tokens (N, D)."""
        values = (_values(tokens) - self.mean) @ self.components.T
        reach = np.maximum(self.high - self.low, 1e-12)
        shades: NDArray[np.uint8] = np.rint(255 * np.clip((values - self.low) / reach, 0, 1)).astype(np.uint8)
        return shades

    def likeness(self, one: Tensor, other: Tensor) -> float:
        """Mean cosine of tokens at the same places, (N, D) both, each less the basis' mean."""
        mean = torch.from_numpy(self.mean)
        return float(torch.cosine_similarity(one.float().cpu() - mean, other.float().cpu() - mean, dim=-1).mean())


def fit_map(student: Tensor, teacher: Tensor, *, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """The linear map, with offset, from student tokens (n, d) to teacher tokens (n, D) of the same places.

    Least squares; of seven ridges the one that predicts tokens left out best, so that few tokens do not fit anything.

    Returns:
        From (..., d) to (..., D), float32 on the CPU.
    """
    from sklearn.linear_model import RidgeCV  # a second to import

    inputs, targets = _some(student, teacher, seed=seed)
    scale = float(np.square(inputs - inputs.mean(0)).sum(1).mean()) / inputs.shape[1] * len(inputs)
    fitted: Any = RidgeCV(alphas=scale * np.logspace(-6, 0, 7) + 1e-12).fit(inputs, targets)
    weight, bias = (torch.from_numpy(np.atleast_1d(part)).float() for part in (fitted.coef_, fitted.intercept_))
    return lambda tokens: tokens.detach().float().cpu() @ weight.T + bias


def _some(*tokens: Tensor, seed: int) -> list[Values]:
    """The same rows of each, all where they are few."""
    count = len(tokens[0])
    if count <= _MOST_TOKENS:
        return [_values(part) for part in tokens]
    rows = np.sort(numpy_generator(seed, "tokens").permutation(count)[:_MOST_TOKENS])
    return [_values(part[torch.from_numpy(rows)]) for part in tokens]


def _values(tokens: Tensor) -> Values:
    return np.asarray(tokens.detach().float().cpu().numpy(), dtype=np.float32)
