"""What towers cost: counted parameters, measured times, under which conditions, and whether these were steady."""

from __future__ import annotations

import re
import time
from itertools import groupby

import pytest
import torch

import small_models
from attar.export import Costs, Times, costs_table, tower_costs
from attar.models import TwoTowers, with_projection


def small_towers() -> TwoTowers:
    return TwoTowers(with_projection(small_models.backbone(), 24), small_models.text_tower(24))


def test_both_towers_are_counted_and_timed_where_they_lie() -> None:
    towers = small_towers()
    image, text = towers.image, towers.text
    tokens = []

    def linger(module: torch.nn.Module, given: tuple[torch.Tensor], output: torch.Tensor) -> None:
        tokens.append(given[0])
        time.sleep(0.005)

    text.model.register_forward_hook(linger)
    text.train()
    (costs,) = tower_costs(towers)
    count = sum(parameter.numel() for parameter in text.parameters())
    assert costs.parameters == (image.num_parameters, count)
    assert costs.times[1].median >= 5 > 0 < costs.times[0].median
    assert len(tokens) >= 20  # a median
    assert all(len(given) == 1 for given in tokens)
    assert text.training
    threads = torch.get_num_threads()
    assert f"one image of 32 px, one sentence of 6 tokens, float32, CPU, {threads} thread" in costs.conditions


def test_models_are_measured_in_turn() -> None:
    # catches a load that comes while one of them is measured, and makes it look slow
    models, order = {"student": small_towers(), "teacher": small_towers()}, []
    for name, towers in models.items():
        towers.text.model.register_forward_hook(lambda *_, name=name: order.append(name))
    tower_costs(*models.values())
    turns = [name for name, _ in groupby(order)]
    assert turns == ["student", "teacher"] * (len(turns) // 2)
    assert len(turns) >= 20


def test_times_are_unsteady_where_half_of_them_lie_far_apart() -> None:
    calm = Times.of([10.0, 10.1, 10.2, 9.9, 10.0, 10.1, 30.0, 10.0])  # one that was disturbed changes nothing
    assert calm.is_steady
    assert calm.median == pytest.approx(10.05)
    busy = Times.of([10.0, 20.0, 11.0, 25.0, 10.0, 22.0, 12.0, 21.0])
    assert not busy.is_steady
    assert str(busy).endswith(" ms (unsteady)")


def test_the_table_has_a_row_for_each_tower_student_beside_teacher() -> None:
    student = Costs((5_500_000, 37_800_000), (Times(12.34), Times(3.456)), "here")
    table = costs_table(student, Costs((303_900_000, 123_700_000), (Times(1310.2), Times(41.04)), "here"))
    rows = [re.split(r" *\| *", line)[1:-1] for line in table.splitlines() if line.startswith("|")]
    assert ["image tower", "5.5 M", "12.3 ms", "304 M", "1,310 ms"] in rows
    assert ["text tower", "37.8 M", "3.46 ms", "124 M", "41 ms"] in rows
    assert ["both", "43.3 M", "", "428 M", ""] in rows
    assert "here" in table
    assert "nsteady" not in table
    other = costs_table(student, Costs((1, 1), (Times(1.0, 0.45), Times(1.0, 0.3)), "there"))
    assert "there" in other
    assert "1 ms (unsteady)" in other
    assert "Unsteady: the machine did other work meanwhile, and the middle half of the times lies up to 45%" in other
