"""How sure a measured value is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.errors import ConfigError, DataError
from attar.evaluation.metrics import Metric
from attar.utils.progress import track
from attar.utils.seeding import numpy_generator, torch_generator

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution
_TILE = 1 << 24  # numbers held at a time


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of `n` independent trials (Wilson 1927); stays within [0, 1].

    Example:
        >>> low, high = wilson_interval(0.8, 100)
        >>> round(low, 3), round(high, 3)
        (0.711, 0.867)
    """
    z2 = _Z * _Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(
    metric: Metric | Callable[..., float], *rows: Tensor, rounds: int = 1000, seed: int
) -> tuple[float, float]:
    """95 % interval of a metric over rows drawn with replacement (Efron's percentiles).

    A mean of rows (top-1, depth) and a function of their sum (mIoU of confusion matrices) take no longer for more
    rows or rounds than a product of matrices; anything else is computed anew in each round. Rounds in which the metric
    is undefined, as AUC of one class, do not count.

    Args:
        metric: One of `METRICS`, or a function of the drawn rows.
        rows: What the metric takes, one entry a row in each: scores and targets, or (images, K, K) confusion matrices,
            or (images,) values of depth.
        rounds: How often they are drawn.
        seed: Names the draws.

    Raises:
        ConfigError: If there are no rounds.
        DataError: If there are no rows, or the metric is defined in no round.
    """
    if rounds < 1:
        raise ConfigError(f"{rounds} bootstrap rounds give no interval. Try 1000.")
    summary: Callable[..., float] = metric
    draws: Iterator[Tensor]
    if isinstance(metric, Metric):
        rows, summary = metric.per_row(*rows), metric.of_rows
    if len(rows[0]) == 0:
        raise DataError("an interval needs rows to draw from, and there are none.")
    if isinstance(metric, Metric) and metric.takes == "mean":
        return _percentiles(_means(rows[0], rounds, seed))
    if isinstance(metric, Metric) and metric.takes == "sum":
        return _percentiles([metric.summary(total) for total in _sums(rows[0], rounds, seed)])
    draws = (drawn for tile in _draws(len(rows[0]), rounds, seed) for drawn in tile)
    draws = track(draws, "drawing rows again", total=rounds, unit="rounds")
    return _percentiles([summary(*(part[drawn] for part in rows)) for drawn in draws])


def _percentiles(values: list[float] | NDArray[np.float64]) -> tuple[float, float]:
    found = np.asarray(values, dtype=np.float64)
    if np.isnan(found).all():
        raise DataError("the metric is undefined in every bootstrap round. Judge on more rows.")
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(low), float(high)


def _means(values: Tensor, rounds: int, seed: int) -> NDArray[np.float64]:
    """(rounds,) means of rows drawn with replacement; equal rows are drawn together, so that shares cost nothing."""
    distinct, counts = np.unique(values.double().numpy(), return_counts=True)
    generator, n = numpy_generator(seed, "bootstrap"), len(values)
    tiles = _tiles(rounds, len(distinct))
    drawn = [generator.multinomial(n, counts / n, size=size) @ (distinct / n) for size in tiles]
    found: NDArray[np.float64] = np.concatenate(drawn)
    return found


def _sums(parts: Tensor, rounds: int, seed: int) -> Iterator[Tensor]:
    """The sum of rows (n, ...) drawn with replacement, once for each round."""
    n = len(parts)
    flat = parts.reshape(n, -1).double()
    for drawn in _draws(n, rounds, seed, width=max(n, flat.shape[1])):
        counts = torch.zeros(len(drawn), n, dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones_like(counts))
        yield from (counts @ flat).view(-1, *parts.shape[1:])


def _draws(n: int, rounds: int, seed: int, *, width: int | None = None) -> Iterator[Tensor]:
    """(some rounds, n) rows drawn with replacement, until `rounds` are done."""
    generator = torch_generator(seed, "bootstrap")
    for size in _tiles(rounds, width or n):
        yield torch.randint(n, (size, n), generator=generator)


def _tiles(rounds: int, width: int) -> list[int]:
    """Numbers of rounds that can be done at a time when each takes `width` numbers."""
    step = max(1, min(rounds, _TILE // width))
    return [min(step, rounds - start) for start in range(0, rounds, step)]
