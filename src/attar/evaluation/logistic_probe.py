"""Logistic-regression protocols: a penalty chosen on validation images, a fit on all, scores on test images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from attar.data.draws import fifth_of_each_class
from attar.errors import DataError
from attar.evaluation.logistic import Fit, LinearHead, Solver, logistic_path
from attar.evaluation.metrics import top1

Metric = Callable[[Tensor, Tensor], float]
"""(scores (n, K), targets) -> a number, more is better."""

PENALTIES = tuple(np.logspace(-6, 5, 45).tolist())
"""Proteus sweeps lambda, after SynCLR, SSLT and SimCLR: C = 1 / lambda lies in [1e-5, 1e6]."""

DINOV2_PENALTIES = tuple((1 / np.logspace(-6, 5, 45)).tolist())
"""DINOv2 sweeps C: the same count, but lambda = 1 / C lies in [1e-5, 1e6]."""

_FINAL_TOLERANCE = 1e-7
_SHORT_GRID = (1e4, 1e3, 1e2, 1e1, 1.0, 1e-1)


@dataclass(frozen=True)
class LogisticProtocol:
    """How a penalty is chosen.

    Attributes:
        penalties: Values of lambda that are tried.
        standardise: Bring features to mean 0 and standard deviation 1, anew for the final fit.
        ties: Which of equally good penalties is taken.
        solver: Of the sweep. The final fit starts from zero and has a tolerance of 1e-7 at most.
        plateau: Stop the sweep once the score is below the best and has been the same for so many weaker penalties.
    """

    penalties: tuple[float, ...] = PENALTIES
    standardise: bool = True
    ties: Literal["larger", "smaller"] = "larger"
    solver: Solver = field(default_factory=Solver)
    plateau: int | None = 3


HONEST = LogisticProtocol()
"""Ties go to the stronger penalty: among weak ones a score no longer changes, and which one is last says nothing."""

PAPER = LogisticProtocol(ties="smaller", solver=Solver(tolerance=1e-7), plateau=None)
"""Proteus' released script: penalties ascend and a later one must be better, so ties go to the smaller lambda; that
needs a tight tolerance, or all weak penalties tie. The script asks for 500 steps, but its solver keeps to 1000."""

DINOV2 = replace(HONEST, penalties=DINOV2_PENALTIES, standardise=False)
"""DINOv2's grid in C on features as they are; the rule for ties is ours."""


@dataclass(frozen=True)
class LogisticProbe:
    """What a logistic regression found.

    Attributes:
        head: Fitted on training and validation images with the chosen penalty; takes raw features.
        penalty: The chosen lambda.
        val_scores: Metric on the validation images by lambda, strong to weak.
        test_scores: (n, K) decision values of the test images.
        converged: Whether the final fit reached its tolerance.
    """

    head: LinearHead
    penalty: float
    val_scores: Mapping[float, float]
    test_scores: Tensor
    converged: bool


def probe_logistic(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    test: Tensor,
    *,
    metric: Metric,
    protocol: LogisticProtocol = HONEST,
) -> LogisticProbe:
    """Choose the penalty on validation images, fit on both parts, score the test images (spec evaluation §1.3).

    Args:
        train: (n, D) features with (n,) classes, or (n, K) of 0 and 1 for K binary fits that share the penalty.
        val: The same of the images that choose; no test image belongs here.
        test: (n, D) features.
        metric: Judges decision values, such as `top1` or a mean average precision.
        protocol: `HONEST`, `PAPER`, `DINOV2`, or another.

    Raises:
        DataError: If a part is empty or holds features that are not finite.
    """
    features, labels = (torch.cat(pair) for pair in zip(train, val, strict=True))
    num_classes = _num_classes(labels)
    val_scores = sweep_penalties(train, val, metric=metric, protocol=protocol, num_classes=num_classes)
    penalty = best_penalty(val_scores, ties=protocol.ties)
    fit = final_fit(features, labels, penalty, protocol=protocol)
    return LogisticProbe(fit.head, penalty, val_scores, fit.head.logits(test), fit.minimum.converged)


def sweep_penalties(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    *,
    metric: Metric,
    protocol: LogisticProtocol = HONEST,
    num_classes: int | None = None,
) -> dict[float, float]:
    """Metric on the validation images by lambda, strong to weak; the arguments are those of `probe_logistic`.

    Raises:
        DataError: If a part is empty or holds features that are not finite.
    """
    if len(val[0]) == 0:
        raise DataError(
            "there are no validation images to choose the penalty by. Hold some of the training images out."
        )
    penalties = sorted(protocol.penalties, reverse=True)
    path = logistic_path(
        *train, penalties, standardise=protocol.standardise, num_classes=num_classes, solver=protocol.solver
    )
    found: dict[float, float] = {}
    for fit in path:
        found[fit.penalty] = metric(fit.head.logits(val[0]), val[1])
        if protocol.plateau is not None and _is_flat(list(found.values()), protocol.plateau):
            break
    return found


def best_penalty(scores: Mapping[float, float], *, ties: Literal["larger", "smaller"]) -> float:
    """The lambda of the highest score, and of equals the larger or the smaller one."""
    best = max(scores.values())
    equals = [penalty for penalty, score in scores.items() if score == best]
    return max(equals) if ties == "larger" else min(equals)


def final_fit(features: Tensor, labels: Tensor, penalty: float, *, protocol: LogisticProtocol = HONEST) -> Fit:
    """A fit with one lambda, from zero and to a tight tolerance."""
    solver = replace(protocol.solver, tolerance=min(protocol.solver.tolerance, _FINAL_TOLERANCE))
    (fit,) = logistic_path(features, labels, [penalty], standardise=protocol.standardise, solver=solver)
    return fit


def choose_logistic(features: Tensor, labels: Tensor, *, seed: int) -> LinearHead:
    """A logistic regression whose C is chosen by accuracy on a fifth of each class, then fitted on all of them.

    Args:
        features: (n, D).
        labels: (n,) int64.
        seed: Names the fifth.

    Raises:
        DataError: If no class has two images.
    """
    is_held_out = torch.from_numpy(fifth_of_each_class(labels.numpy(), seed=seed))
    train, val = ((features[part], labels[part]) for part in (~is_held_out, is_held_out))
    protocol = replace(HONEST, penalties=_SHORT_GRID, plateau=None)
    scores = sweep_penalties(train, val, metric=top1, protocol=protocol, num_classes=_num_classes(labels))
    return final_fit(features, labels, best_penalty(scores, ties="larger"), protocol=protocol).head


def _num_classes(labels: Tensor) -> int | None:
    return int(labels.max()) + 1 if labels.ndim == 1 and len(labels) else None


def _is_flat(scores: list[float], length: int) -> bool:
    """Whether the last score has stayed what it is for `length` more penalties, below the best."""
    last = scores[-1 - length :]
    return len(last) == length + 1 and len(set(last)) == 1 and last[-1] < max(scores)
