"""Logistic regression on frozen features along a whole path of penalties (spec evaluation §1.3 and §4.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import DataError
from attar.evaluation.coordinates import Coordinates
from attar.evaluation.lbfgs import Memory, Minimum, minimise

Point = tuple[Tensor, Tensor]
"""Parameters and their scores."""

_NEVER = -1e30  # bias of a class without an example
_LEAST_SPREAD = 1e-6  # of p (1 - p): classes that are told apart for certain leave no curvature to precondition by


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier of raw features; the standardisation it was fitted with is part of its weights.

    Attributes:
        weight: (K, D) float32.
        bias: (K,) float32.
        C: Inverse of the penalty it was fitted with.
    """

    weight: Tensor
    bias: Tensor
    C: float

    def logits(self, features: Tensor) -> Tensor:
        """(..., K) for features (..., D)."""
        return features.to(self.weight.dtype) @ self.weight.T + self.bias

    def predict(self, features: Tensor) -> Tensor:
        """(n,) class of each of (n, D) features."""
        return self.logits(features).argmax(-1)


@dataclass(frozen=True)
class Solver:
    """How a minimum is sought. Where it lies depends on none of this; each switch is there to be measured.

    Attributes:
        tolerance: The largest entry of the gradient of the objective J that is small enough.
        max_iter: Steps for one penalty at most.
        dtype: Of matrix products. Sums over images, dot products and parameters are float64 either way.
        rotate: Turn features to their principal axes and leave axes without variance out: fewer columns where there
            are fewer images than channels, and a curvature that is diagonal.
        precondition: Let L-BFGS start from that curvature.
        warm: Start from the next stronger penalty's solution and what was learned of the curvature there.
        extrapolate: Start from where the last two solutions point to instead.
    """

    tolerance: float = 1e-5
    max_iter: int = 1000
    dtype: torch.dtype = torch.float32
    rotate: bool = True
    precondition: bool = True
    warm: bool = True
    extrapolate: bool = True


@dataclass(frozen=True)
class Fit:
    """One point of a path.

    Attributes:
        head: For raw features.
        penalty: lambda.
        minimum: Of J, with the values on the way.
    """

    head: LinearHead
    penalty: float
    minimum: Minimum


def logistic_path(
    features: Tensor,
    labels: Tensor,
    penalties: Sequence[float],
    *,
    standardise: bool = True,
    num_classes: int | None = None,
    solver: Solver | None = None,
) -> Iterator[Fit]:
    """Logistic regressions with an L2 penalty, one for each lambda, in the order given; strong to weak is fastest.

    Minimises J = (mean over images of the loss) + lambda / (2 N) `|W|^2` with a free bias, which is scikit-learn's
    C * (sum of the losses) + `|W|^2` / 2 over C N with C = 1 / lambda. The loss is the cross-entropy of a softmax with
    K rows, or the sum of K binary ones. (With two classes scikit-learn fits one row w = W_1 - W_0, whose penalty is
    twice that of the softmax: its C is then 2 / lambda.)

    Args:
        features: (n, D).
        labels: (n,) int64 classes; one without an example is never predicted. Or (n, K) of 0 and 1, for K independent
            binary fits.
        penalties: Values of lambda.
        standardise: Bring features to mean 0 and standard deviation 1 first; constant ones are left unscaled.
        num_classes: K for classes; by default the largest label + 1.
        solver: How the minimum is sought.

    Raises:
        DataError: If a feature is not finite, or features and labels differ in number.
    """
    solver = solver or Solver()
    if len(features) != len(labels) or len(features) == 0:
        raise DataError(f"there are {len(features)} rows of features but {len(labels)} labels; each row needs one.")
    coordinates = Coordinates.of(features, standardise=standardise, rotate=solver.rotate)
    targets, present = _targets(labels, num_classes)
    problem = _Problem(coordinates, features, targets, is_softmax=labels.ndim == 1, dtype=solver.dtype)
    for penalty, minimum in zip(penalties, problem.path(penalties, solver), strict=True):
        yield Fit(_head(coordinates, minimum.parameters, present, penalty, solver.dtype), penalty, minimum)


def fit_logistic(
    features: Tensor, labels: Tensor, *, grid: Sequence[float], device: str | torch.device = "cpu"
) -> list[LinearHead]:
    """One head for each C = 1 / lambda of the grid, in its order, on standardised features.

    Args:
        features: (n, D).
        labels: (n,) int64; a class without an example is never predicted.
        grid: Values of C.
        device: Where they are fitted; features in float64 and a few times (n, K) must find room there.
    """
    strong_first = sorted(grid)
    path = logistic_path(features.to(device), labels.to(device), [1 / C for C in strong_first])
    heads = {C: fit.head for C, fit in zip(strong_first, path, strict=True)}
    return [heads[C] for C in grid]


class _Problem:
    """J of one set of images in given coordinates; parameters are (K, r + 1), the last column the bias."""

    def __init__(
        self, coordinates: Coordinates, features: Tensor, targets: Tensor, *, is_softmax: bool, dtype: torch.dtype
    ) -> None:
        self.coordinates, self.targets, self.is_softmax = coordinates, targets, is_softmax
        self.x = coordinates.of_features(features, dtype)  # (n, r + 1)
        self.penalty = torch.zeros_like(coordinates.curvature)

    def path(self, penalties: Sequence[float], solver: Solver) -> Iterator[Minimum]:
        """One minimum after the other."""
        memory, zero = Memory(), self.targets.new_zeros(len(self.targets), self.x.shape[1])
        known = [(zero, torch.zeros_like(self.targets))]
        for penalty in penalties:
            before, self.penalty = self.penalty, self._penalty(penalty)
            memory.add_quadratic(self.penalty - before)
            start, scores = self._start(known, solver)
            metric = self._metric(scores) if solver.precondition else torch.ones_like(self.penalty)
            found = minimise(self, start, memory, metric=metric, tolerance=solver.tolerance, max_iter=solver.max_iter)
            yield found
            if solver.warm:
                known = [known[-1], (found.parameters, found.scores)]
            else:
                memory.clear()

    def _penalty(self, penalty: float) -> Tensor:
        found = torch.full_like(self.coordinates.curvature, penalty / len(self.x))
        found[-1] = 0  # the bias is free
        return found

    def _start(self, known: list[Point], solver: Solver) -> Point:
        """The last solution, or as far beyond it as the one before is behind it, whichever is better."""
        if not solver.extrapolate or len(known) < 2:
            return known[-1]
        (w0, z0), (w1, z1) = known
        return min(known[-1], (2 * w1 - w0, 2 * z1 - z0), key=self._value)

    def _value(self, point: Point) -> float:
        parameters, scores = point
        return self.loss(scores)[0] + (self.penalty * parameters.square()).sum().item() / 2

    def _metric(self, scores: Tensor) -> Tensor:
        """Inverse of the Hessian's diagonal, with p (1 - p) of each image and class replaced by its mean over all.

        The bound 1/2 for p (1 - p) (Böhning 1992) would do too, but is far off once classes are told apart.
        """
        shares = self._shares(scores)
        spread = (shares * (1 - shares)).mean().clamp(min=_LEAST_SPREAD)
        return 1 / (spread * self.coordinates.curvature + self.penalty)

    def scores(self, parameters: Tensor) -> Tensor:
        """(K, n): this way round both products read the features row by row."""
        return (parameters.to(self.x.dtype) @ self.x.T).double()

    def loss(self, scores: Tensor) -> tuple[float, Tensor]:
        """Mean over images, and its gradient (K, n)."""
        total = scores.logsumexp(0).sum() if self.is_softmax else F.softplus(scores).sum()
        value = (total - (scores * self.targets).sum()) / len(self.x)
        return value.item(), (self._shares(scores) - self.targets) / len(self.x)

    def _shares(self, scores: Tensor) -> Tensor:
        return scores.softmax(0) if self.is_softmax else scores.sigmoid()

    def gradient(self, residual: Tensor) -> Tensor:
        """(K, r + 1)."""
        found = (residual.to(self.x.dtype) @ self.x).double()
        found[:, -1] = residual.sum(1)
        return found

    def project(self, direction: Tensor) -> Tensor:
        """A softmax ignores what all classes share. Rounding there would grow from step to step."""
        return direction - direction.mean(0) if self.is_softmax else direction

    def largest(self, gradient: Tensor, *, enough: float) -> float:
        """In the coordinates of the penalised weights; a rotation leaves the mean square as it is, which bounds it."""
        quick = float(gradient.square().sum().sqrt()) / math.sqrt(len(gradient) * (len(self.coordinates.mean) + 1))
        if quick > enough and not self._has_offset:
            return quick
        bias = gradient[:, -1:]
        weight = self.coordinates.unrotated(gradient) + bias * self.coordinates.offset
        return float(torch.cat([weight, bias], 1).abs().max())

    @cached_property
    def _has_offset(self) -> bool:
        return bool(self.coordinates.offset.any())


def _targets(labels: Tensor, num_classes: int | None) -> tuple[Tensor, Tensor]:
    """((present K, n) float64 of 0 and 1, (K,) bool whether a class is present)."""
    if labels.ndim == 2:
        return labels.double().T.contiguous(), torch.ones(labels.shape[1], dtype=torch.bool, device=labels.device)
    present = torch.bincount(labels, minlength=num_classes or 0) > 0
    return F.one_hot(labels, len(present)).double()[:, present].T.contiguous(), present


def _head(
    coordinates: Coordinates, parameters: Tensor, present: Tensor, penalty: float, dtype: torch.dtype
) -> LinearHead:
    """For raw features, on the CPU, with a place for classes that are not present ((K,) bool)."""
    weight = parameters.new_zeros(len(present), len(coordinates.mean))
    bias = parameters.new_full((len(present),), _NEVER)
    weight[present] = coordinates.unrotated(parameters) / coordinates.std
    bias[present] = parameters[:, -1] - weight[present] @ coordinates.mean
    return LinearHead(weight.to("cpu", dtype), bias.to("cpu", dtype), 1 / penalty)
