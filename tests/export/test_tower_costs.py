"""What towers cost: counted parameters, measured times, and under which conditions."""

from __future__ import annotations

import re
import time

import torch

import small_models
from attar.export import Costs, costs_table, tower_costs
from attar.models import with_projection


def test_both_towers_are_counted_and_timed_where_they_lie() -> None:
    image, text = with_projection(small_models.backbone(), 24), small_models.text_tower(24)
    tokens = []

    def linger(module: torch.nn.Module, given: tuple[torch.Tensor], output: torch.Tensor) -> None:
        tokens.append(given[0])
        time.sleep(0.005)

    text.model.register_forward_hook(linger)
    text.train()
    costs = tower_costs(image, text)
    count = sum(parameter.numel() for parameter in text.parameters())
    assert costs.parameters == (image.num_parameters, count)
    assert costs.milliseconds[1] >= 5 > 0 < costs.milliseconds[0]
    assert len(tokens) >= 20  # a median
    assert all(len(given) == 1 for given in tokens)
    assert text.training
    threads = torch.get_num_threads()
    assert f"one image of 32 px, one sentence of 6 tokens, float32, CPU, {threads} thread" in costs.conditions


def test_the_table_has_a_row_for_each_tower_student_beside_teacher() -> None:
    student = Costs((5_500_000, 37_800_000), (12.34, 3.456), "here")
    table = costs_table(student, Costs((303_900_000, 123_700_000), (1310.2, 41.04), "here"))
    rows = [re.split(r" *\| *", line)[1:-1] for line in table.splitlines() if line.startswith("|")]
    assert ["image tower", "5.5 M", "12.3 ms", "304 M", "1,310 ms"] in rows
    assert ["text tower", "37.8 M", "3.46 ms", "124 M", "41 ms"] in rows
    assert ["both", "43.3 M", "", "428 M", ""] in rows
    assert "here" in table
    assert "there" in costs_table(student, Costs((1, 1), (1.0, 1.0), "there"))
