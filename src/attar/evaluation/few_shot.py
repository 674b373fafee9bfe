"""Few-shot probe: logistic regression on a few images of each class, over several draws."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attar.errors import DataError
from attar.evaluation.logistic import Solver, logistic_path
from attar.evaluation.logistic_probe import Metric
from attar.utils.seeding import torch_generator


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
        rows = few_of_each_class(labels, shots, seed=seed)
        solver = Solver(tolerance=1e-7)
        (fit,) = logistic_path(features[rows], labels[rows], [penalty], solver=solver)
        scores.append(fit.head.logits(test[0]))
    return FewShot(shots, tuple(metric(one, test[1]) for one in scores), tuple(scores))


def few_of_each_class(labels: Tensor, shots: int, *, seed: int) -> Tensor:
    """(classes * shots,) rows, ascending, of `shots` images of each class; a class's draw depends on no other class.

    Raises:
        DataError: If a class has fewer images.
    """
    chosen = []
    for label in torch.unique(labels).tolist():
        rows = torch.nonzero(labels == label).squeeze(1)
        if len(rows) < shots:
            raise DataError(f"class {label} has {len(rows)} images, fewer than shots={shots}. Take fewer shots.")
        order = torch.randperm(len(rows), generator=torch_generator(seed, "few shot", label))
        chosen.append(rows[order[:shots]])
    return torch.cat(chosen).sort().values
