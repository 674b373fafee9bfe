from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from attar.evaluation.lbfgs import Memory, minimise
from attar.utils.seeding import torch_generator


class Squares:
    """|A w - t|^2 / 2 + penalty * w^2 / 2: its minimum is a linear system's solution."""

    def __init__(self, *, penalty: float = 0.1) -> None:
        generator = torch_generator(0, "squares")
        self.matrix = torch.randn(12, 5, generator=generator, dtype=torch.float64) * torch.logspace(-1, 1, 5)
        self.target = torch.randn(1, 12, generator=generator, dtype=torch.float64)
        self.penalty = torch.full((5,), penalty, dtype=torch.float64)

    def scores(self, parameters: Tensor) -> Tensor:
        return parameters @ self.matrix.T

    def loss(self, scores: Tensor) -> tuple[float, Tensor]:
        return (scores - self.target).square().sum().item() / 2, scores - self.target

    def gradient(self, residual: Tensor) -> Tensor:
        return residual @ self.matrix

    def project(self, direction: Tensor) -> Tensor:
        return direction

    def largest(self, gradient: Tensor, *, enough: float) -> float:
        return gradient.abs().max().item()

    def solution(self) -> Tensor:
        square = self.matrix.T @ self.matrix + self.penalty.diag()
        return torch.linalg.solve(square, self.target @ self.matrix, left=False)


class Bend(Squares):
    """softplus(w) - w / 2: straight far from its minimum at 0, where a unit step may be far too short or long."""

    def scores(self, parameters: Tensor) -> Tensor:
        return parameters

    def loss(self, scores: Tensor) -> tuple[float, Tensor]:
        return (torch.nn.functional.softplus(scores) - scores / 2).sum().item(), scores.sigmoid() - 0.5

    def gradient(self, residual: Tensor) -> Tensor:
        return residual


def zero(size: int) -> Tensor:
    return torch.zeros(1, size, dtype=torch.float64)


def test_least_squares_end_at_the_linear_systems_solution() -> None:
    # catches a penalty that the gradient, the value or the line search forgets
    problem = Squares()
    found = minimise(problem, zero(5), Memory(), metric=torch.ones(5).double(), tolerance=1e-10, max_iter=200)
    assert found.converged
    torch.testing.assert_close(found.parameters, problem.solution(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.scores, problem.scores(found.parameters))


def test_the_value_falls_with_every_step_and_is_the_objectives() -> None:
    problem = Squares()
    found = minimise(problem, zero(5), Memory(), metric=torch.ones(5).double(), tolerance=1e-10, max_iter=200)
    assert all(later <= before * (1 + 1e-14) for before, later in pairwise(found.values))
    w = found.parameters
    value = problem.loss(problem.scores(w))[0] + (problem.penalty * w.square()).sum().item() / 2
    assert found.values[-1] == pytest.approx(value, rel=1e-12)


def test_the_right_metric_needs_fewer_steps() -> None:
    problem = Squares()
    curvature = problem.matrix.square().sum(0) + problem.penalty
    steps = [
        len(minimise(problem, zero(5), Memory(1), metric=metric, tolerance=1e-8, max_iter=500).values)
        for metric in (torch.ones(5).double(), 1 / curvature)
    ]
    assert steps[1] < steps[0]


@pytest.mark.parametrize("length", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("start", [-200.0, 30.0])
def test_a_first_step_of_any_length_is_mended_by_the_line_search(length: float, start: float) -> None:
    # from -200 the slope is -1/2 over a long way and then bends: Newton's step goes past all bounds
    metric = torch.tensor([length], dtype=torch.float64)
    bend = Bend(penalty=0.0)
    bend.penalty = bend.penalty[:1]
    found = minimise(bend, zero(1) + start, Memory(), metric=metric, tolerance=1e-9, max_iter=60)
    assert found.converged
    assert abs(found.parameters.item()) < 1e-7


def test_steps_run_out() -> None:
    found = minimise(Squares(), zero(5), Memory(), metric=torch.ones(5).double(), tolerance=1e-12, max_iter=2)
    assert not found.converged
    assert len(found.values) == 3  # the start and two steps


def test_a_tolerance_below_rounding_ends() -> None:
    found = minimise(Squares(), zero(5), Memory(), metric=torch.ones(5).double(), tolerance=0.0, max_iter=10_000)
    assert len(found.values) < 500
    assert found.largest_gradient < 1e-9


def test_a_memory_maps_the_last_change_to_the_last_step() -> None:
    # the secant condition; catches pairs walked in the wrong order and a scale that is upside down
    generator = torch_generator(0, "memory")
    matrix = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    matrix = matrix @ matrix.T + torch.eye(5)
    memory, metric = Memory(), torch.rand(5, generator=generator, dtype=torch.float64) + 0.1
    for _ in range(3):
        step = torch.randn(1, 5, generator=generator, dtype=torch.float64)
        memory.add(step, step @ matrix)
    torch.testing.assert_close(memory.direction(step @ matrix, metric), -step)
    more = torch.rand(5, generator=generator, dtype=torch.float64)
    memory.add_quadratic(more)  # the same with another quadratic: catches a change that keeps the old penalty
    torch.testing.assert_close(memory.direction(step @ (matrix + more.diag()), metric), -step)


def test_a_pair_without_curvature_is_not_kept() -> None:
    memory = Memory()
    memory.add(torch.ones(1, 2).double(), -torch.ones(1, 2).double())
    assert len(memory) == 0
