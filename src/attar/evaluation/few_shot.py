"""Few-shot probe: logistic regression on a few images of each class, over several draws."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attar.data.draws import few_of_each_class
from attar.evaluation.logistic import Solver, logistic_path
from attar.evaluation.logistic_probe import Metric


@dataclass(frozen=True)
class FewShot:
    """Metric on the test images after fits on a few images of each class.

    Attributes:
        shots: Images of each class.
        values: One for each seed.
        scores: (n, K) of the test images for each seed.
    """

    shots: int
    values: tuple[float, ...]
    scores: tuple[Tensor, ...] = ()

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over seeds (n - 1); 0 of one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


def probe_few_shot(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    shots: int,
    seeds: Sequence[int],
    metric: Metric,
    penalty: float = 1.0,
) -> FewShot:
    """Fit on `shots` images of each class, drawn anew by each seed, and judge on all test images.

    The penalty is given, not chosen: so few images leave none to choose by, and the test images must not.

    Args:
        train: (n, D) features and (n,) classes to draw from.
        test: The same of the images that judge.
        shots: Images of each class.
        seeds: One draw each.
        metric: (scores (n, K), targets) -> float.
        penalty: lambda, on standardised features.

    Raises:
        DataError: If a class has fewer images than `shots`.
    """
    features, labels = train
    scores = []
    for seed in seeds:
        rows = torch.from_numpy(few_of_each_class(labels.numpy(), shots, seed=seed))
        solver = Solver(tolerance=1e-7)
        (fit,) = logistic_path(features[rows], labels[rows], [penalty], solver=solver)
        scores.append(fit.head.logits(test[0]))
    return FewShot(shots, tuple(metric(one, test[1]) for one in scores), tuple(scores))
