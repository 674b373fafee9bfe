"""Classification as a task: which head a student is taught by."""

from __future__ import annotations

import torch

from attar.evaluation.logistic_probe import best_penalty, final_fit, sweep_penalties
from attar.evaluation.metrics import top1
from attar.recipes.tasks.classification import top1_then_likelihood


def test_one_more_right_row_is_worth_more_than_any_likelihood() -> None:
    targets = torch.tensor([0, 1, 0, 1])
    sure = torch.tensor([[9.0, 0.0], [0.0, 9.0], [9.0, 0.0], [0.1, 0.0]])
    unsure = torch.tensor([[0.1, 0.0], [0.0, 0.1], [0.1, 0.0], [0.0, 0.1]])
    assert 0.75 < top1_then_likelihood(sure, targets) < 1.0 < top1_then_likelihood(unsure, targets) < 1.125


def test_of_equally_right_rows_the_likelier_ones_win_also_where_a_class_was_never_shown() -> None:
    targets = torch.tensor([0, 1, 2])
    unsure = torch.tensor([[1.0, 0.0, -1e30], [0.0, 1.0, -1e30], [0.0, 0.0, -1e30]])
    sure = unsure * torch.tensor([3.0, 3.0, 1.0])
    assert top1_then_likelihood(sure, targets) > top1_then_likelihood(unsure, targets) > 2 / 3


def test_an_easy_task_is_taught_by_a_head_that_is_sure() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(5).repeat(12)
    features = torch.eye(16)[labels] * 4 + torch.randn(60, 16, generator=generator) * 0.3
    train, val = ((features[part], labels[part]) for part in (slice(0, 40), slice(40, 60)))

    def likelihood_by(metric: object) -> float:
        penalty = best_penalty(sweep_penalties(train, val, metric=metric), ties="larger")  # type: ignore[arg-type]
        shares = final_fit(*train, penalty).head.logits(val[0]).softmax(1)
        return shares.gather(1, val[1][:, None]).mean().item()

    assert likelihood_by(top1) < 0.5  # right each time, and yet it says little
    assert likelihood_by(top1_then_likelihood) > 0.95
