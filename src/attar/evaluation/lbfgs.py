"""L-BFGS for convex functions of linear scores: two matrix products a step, however long the line search."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_DECREASE, _SLOPE = 1e-4, 0.9  # strong Wolfe conditions, as Nocedal and Wright set them for quasi-Newton steps
_TRIALS = 30
_ROUNDING = 1e-14  # relative: two values closer than this are equal

Pair = tuple[Tensor, Tensor, float]


class Objective(Protocol):
    """A convex function loss(scores(w)) + sum(penalty * w^2) / 2 whose scores are linear in w."""

    @property
    def penalty(self) -> Tensor:
        """Broadcasts over the parameters."""
        ...

    def scores(self, parameters: Tensor) -> Tensor:
        """The linear map, in float64 whatever precision its product has."""
        ...

    def loss(self, scores: Tensor) -> tuple[float, Tensor]:
        """Value, and gradient in the scores."""
        ...

    def gradient(self, residual: Tensor) -> Tensor:
        """The transposed map: from a gradient in the scores to one in the parameters, float64."""
        ...

    def project(self, direction: Tensor) -> Tensor:
        """A direction without what rounding put into it, where the objective has a symmetry; else as it is."""
        ...

    def largest(self, gradient: Tensor, *, enough: float) -> float:
        """Largest entry of a gradient in the units of the tolerance; any smaller number above `enough` will do too."""
        ...


class Memory:
    """The last steps and what they did to the gradient: what L-BFGS knows of the curvature.

    Args:
        size: Pairs that are kept.
    """

    def __init__(self, size: int = 20) -> None:
        self._pairs: deque[Pair] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._pairs)

    def add(self, step: Tensor, change: Tensor) -> None:
        """Remember a step and the change of the gradient, unless they show no curvature, which is rounding."""
        curvature = _dot(step, change)
        if curvature > 0:
            self._pairs.append((step, change, curvature))

    def clear(self) -> None:
        """Forget everything."""
        self._pairs.clear()

    def add_quadratic(self, diagonal: Tensor) -> None:
        """The objective gains sum(diagonal * w^2) / 2, which changes every pair in a known way."""
        pairs = list(self._pairs)
        self.clear()
        for step, change, _ in pairs:
            self.add(step, change + diagonal * step)

    def direction(self, gradient: Tensor, metric: Tensor) -> Tensor:
        """Minus the estimated inverse Hessian times the gradient (two-loop recursion, Nocedal 1980).

        Args:
            gradient: In float64.
            metric: Diagonal of a first guess of the inverse Hessian, right but for a factor.
        """
        found, shares = gradient.clone(), []
        for step, change, curvature in reversed(self._pairs):
            shares.append(_dot(step, found) / curvature)
            found -= shares[-1] * change
        found *= metric * self._scale(metric)
        for (step, change, curvature), share in zip(self._pairs, reversed(shares), strict=True):
            found += (share - _dot(change, found) / curvature) * step
        return -found

    def _scale(self, metric: Tensor) -> float:
        if not self._pairs:
            return 1.0
        _, change, curvature = self._pairs[-1]
        return curvature / _dot(change, metric * change)


@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended.

    Attributes:
        parameters: Float64.
        scores: Of these parameters.
        values: Objective at the start and after every step; it rises by no more than rounding.
        largest_gradient: Largest entry of the gradient there, in the units of the tolerance.
        converged: Whether that is within the tolerance; else steps or precision were used up.
    """

    parameters: Tensor
    scores: Tensor
    values: tuple[float, ...]
    largest_gradient: float
    converged: bool


@dataclass(frozen=True)
class _Trial:
    """A point on a line: objective, its slope along the line, and the loss's gradient in the scores."""

    step: float
    value: float
    slope: float
    residual: Tensor


class _Line:
    """The objective along w + step * direction. The scores move linearly, so a trial costs no matrix product."""

    def __init__(self, objective: Objective, parameters: Tensor, scores: Tensor, direction: Tensor) -> None:
        self._loss, self._scores, self._move = objective.loss, scores, objective.scores(direction)
        penalised = objective.penalty * parameters
        self._constant = _dot(penalised, parameters) / 2
        self._linear = _dot(penalised, direction)
        self._square = _dot(objective.penalty * direction, direction)

    def scores(self, step: float) -> Tensor:
        return self._scores + step * self._move

    def at(self, step: float) -> _Trial:
        loss, residual = self._loss(self.scores(step))
        value = loss + self._constant + step * self._linear + step**2 * self._square / 2
        return _Trial(step, value, self.slope(residual) + step * self._square, residual)

    def slope(self, residual: Tensor) -> float:
        """Slope at step 0 for the residual there."""
        return _dot(residual, self._move) + self._linear


def minimise(
    objective: Objective, start: Tensor, memory: Memory, *, metric: Tensor, tolerance: float, max_iter: int
) -> Minimum:
    """The minimum of a convex objective by L-BFGS with a strong Wolfe line search.

    Products may be in float32: scores are summed up in float64 step by step, so their error shrinks with the steps,
    and the line search never sees rounding.

    Args:
        objective: What is minimised.
        start: Parameters to start from.
        memory: Curvature known from before, or an empty one; it is added to.
        metric: Diagonal of a first guess of the inverse Hessian, broadcast over the parameters.
        tolerance: The largest entry of the gradient that is small enough.
        max_iter: Steps at most.
    """
    parameters, scores = start, objective.scores(start)
    loss, residual = objective.loss(scores)
    values = [loss + _dot(objective.penalty * parameters, parameters) / 2]
    gradient = objective.gradient(residual) + objective.penalty * parameters
    while len(values) <= max_iter and objective.largest(gradient, enough=tolerance) > tolerance:
        direction = objective.project(memory.direction(gradient, metric))
        line = _Line(objective, parameters, scores, direction)
        found = _wolfe(line, values[-1], line.slope(residual))
        if found is None and len(memory) == 0:
            break
        if found is None:
            memory.clear()
            continue
        step, residual, scores = found.step * direction, found.residual, line.scores(found.step)
        parameters = parameters + step
        before, gradient = gradient, objective.gradient(residual) + objective.penalty * parameters
        memory.add(step, gradient - before)
        values.append(found.value)
    largest = objective.largest(gradient, enough=math.inf)
    return Minimum(parameters, scores, tuple(values), largest, largest <= tolerance)


def _wolfe(line: _Line, value: float, slope: float) -> _Trial | None:
    """A point that keeps both Wolfe conditions, by false position on the slope, which only rises.

    None if the slope points up or many trials find no point: at the minimum rounding is all that is left.
    """
    low, high, step = (0.0, slope), None, 1.0
    for _ in range(_TRIALS if slope < 0 else 0):
        trial = line.at(step)
        is_lower = trial.value <= value + _DECREASE * step * slope + _ROUNDING * abs(value)
        if is_lower and abs(trial.slope) <= -_SLOPE * slope:
            return trial
        if is_lower and trial.slope < 0:
            low = (step, trial.slope)
        else:
            high = (step, trial.slope)
        step = 4 * step if high is None else _between(low, high)
    return None


def _between(low: tuple[float, float], high: tuple[float, float]) -> float:
    """Where a straight line through two slopes is zero, kept away from both ends."""
    share = low[1] / (low[1] - high[1]) if high[1] > 0 else 0.5
    return low[0] + (high[0] - low[0]) * min(max(share, 0.1), 0.9)


def _dot(a: Tensor, b: Tensor) -> float:
    return torch.dot(a.flatten(), b.flatten()).item()
