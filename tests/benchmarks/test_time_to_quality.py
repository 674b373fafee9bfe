"""Factors of `benchmarks/time_to_quality.py` against curves that can be reckoned in the head."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attar.recipes.proteus import RECIPES, from_recipe

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")  # where a script finds its neighbours
    import time_to_quality as race

IMAGES = 1000


def cell(
    row: str, horizon: float, *, cpu: float, wall: float, report: float, select: float, seed: int = 0, first: int = 0
) -> dict[str, Any]:
    """A cell with shares of both halves right, from the first image of a half or from another one on."""
    hits = np.zeros((2, IMAGES // 2), bool)
    for half, share in zip(hits, (select, report), strict=True):
        half[first : first + round(share * len(half))] = True
    return {
        "row": row,
        "horizon": horizon,
        "seed": seed,
        "views": 128,
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "knn_select": hits[0].mean(),
        "knn_report": hits[1].mean(),
        "images": IMAGES,
        "hits": base64.b64encode(np.packbits(hits).tobytes()).decode(),
    }


CELLS = [
    cell("P0", 1.0, cpu=100, wall=100, report=0.3, select=0.3),
    cell("P1", 1.0, cpu=100, wall=100, report=0.7, select=0.4),
    cell("lr_x2", 1.0, cpu=80, wall=300, report=0.5, select=0.9, seed=0),
    cell("lr_x2", 1.0, cpu=120, wall=500, report=0.7, select=0.3, seed=1),
    cell("lr_x2", 0.1, cpu=10, wall=10, report=0.2, select=0.2),
    cell("lr_x5", 0.1, cpu=10, wall=10, report=0.9, select=0.9),  # not asked at the whole budget: it is no baseline
    cell("fast", 0.1, cpu=10, wall=20, report=0.4, select=0.5),
    cell("fast", 0.4, cpu=40, wall=80, report=0.8, select=0.6),
    cell("muon", 0.1, cpu=10, wall=10, report=0.1, select=0.1),
]


@pytest.mark.parametrize(
    ("half", "clock", "factor"),
    [
        (
            "report",
            "cpu",
            100 / 20,
        ),  # 0.6 lies half way from 0.4 to 0.8, 20 s half way from 10 to 40 in ratio
        ("report", "wall", 400 / 40),
        ("select", "cpu", 100 / 40),
    ],
)
def test_a_factor_is_the_baselines_time_over_the_time_that_its_quality_took(
    half: str, clock: str, factor: float
) -> None:
    found = race.factors(CELLS, half, clock)
    against = found["fast"]["P1"]
    assert (against["against"], against["at_least"]) == ("lr_x2", False)
    assert against["factor"] == pytest.approx(factor)
    assert against["low"] < against["factor"] < against["high"]
    assert "P1" not in found["lr_x2"]
    assert race.factor_in_words(found["muon"]["P1"]) == "never"


def test_an_interval_is_of_nine_tenths_of_the_draws_over_seeds_and_images() -> None:
    """With both seeds of lr_x2 drawn it has 0.6, with one of them twice 0.5 or 0.7, a quarter of the time each."""
    against = race.factors(CELLS, "report", "cpu")["fast"]["P1"]
    less, more = 80 / (10 * 4**0.25), 120 / (10 * 4**0.75)
    assert against["low"] < more < less < against["high"]
    one_seed = [one for one in CELLS if one["seed"] == 0]
    alone = race.factors(one_seed, "report", "cpu")["fast"]["P1"]
    assert alone["factor"] == pytest.approx(less)
    assert 0.03 < alone["high"] / alone["low"] - 1 < against["high"] / against["low"] - 1


def test_where_the_shortest_run_is_good_enough_the_factor_is_a_bound() -> None:
    against = race.factors(CELLS, "report", "cpu")["fast"]["P0"]
    assert (against["factor"], against["at_least"], against["high_at_least"]) == (10, True, True)
    assert race.factor_in_words(against).startswith("≥ 10.00 (10.00 to ≥ 10.00")


def test_the_end_of_an_interval_is_a_bound_where_one_draw_in_twenty_is() -> None:
    close = [cell("fast", 0.1, cpu=10, wall=20, report=0.285, select=0.5, first=150), CELLS[7], CELLS[0]]
    against = race.factors(close, "report", "cpu")["fast"]["P0"]
    assert (against["at_least"], against["high_at_least"]) == (False, True)


def test_the_baselines_rate_and_batch_are_chosen_by_the_selection_half_at_the_longest_horizon() -> None:
    assert race.best_of_p1(CELLS) == "lr_x2"  # 0.6 in the mean of its seeds
    for row in ("lr_x5", "lr_x2+batch_64"):
        assert race.best_of_p1([*CELLS, cell(row, 1.0, cpu=1, wall=1, report=0.1, select=0.7)]) == row
    assert race.best_of_p1([*CELLS, cell("fast", 1.0, cpu=1, wall=1, report=1.0, select=1.0)]) == "lr_x2"
    assert race.best_of_p1([CELLS[0]]) is None


def test_another_student_has_its_own_baseline() -> None:
    wider = [
        cell("wider+lr_x2", 1.0, cpu=100, wall=100, report=0.9, select=0.9),
        cell("muon+wider", 0.1, cpu=10, wall=10, report=0.9, select=0.9),
    ]
    assert race.best_of_p1([*CELLS, *wider]) == "lr_x2"
    assert race.best_of_p1([*CELLS, *wider], is_wider=True) == "wider+lr_x2"
    found = race.factors([*CELLS, *wider], "report", "cpu")["muon+wider"]
    assert found == {"P1": found["P1"]}  # the literal recipe was not run with this student
    assert (found["P1"]["against"], found["P1"]["factor"]) == ("wider+lr_x2", 10)


def test_the_table_has_each_row_with_its_factor() -> None:
    halves = {half: {clock: race.factors(CELLS, half, clock) for clock in race.CLOCKS} for half in race.HALVES}
    lines = race.table({"cells": CELLS, "factors": halves}, "report", "cpu").splitlines()
    assert "sooner than P1 (lr_x2)" in lines[0]
    assert {line.split(" | ")[0].removeprefix("| ") for line in lines[2:]} == {one["row"] for one in CELLS}
    fast = next(line for line in lines if line.startswith("| fast"))
    assert "| 40.0 | 80.0 |" in fast
    assert "5.00 (" in fast
    assert next(line for line in lines if line.startswith("| lr_x2")).startswith("| lr_x2 | 20.0 |  | 60.0 |")


def test_time_is_interpolated_in_ratio() -> None:
    seconds, qualities = np.array([10.0, 40.0, 90.0]), np.array([0.2, 0.6, 0.5])
    assert race.time_at(seconds, qualities, 0.4) == pytest.approx(20)
    assert race.time_at(seconds, qualities, 0.1) == 10
    assert race.time_at(seconds, qualities, 0.6) == pytest.approx(40)
    assert race.time_at(seconds, qualities, 0.7) == float("inf")


RATES = {
    "alike": {"fixed": 3.0, "phases": [[0.5, 20_000]], "share": None},
    "asked, then read": {"fixed": 3.0, "phases": [[0.5, 30], [0.2, 19_970]], "share": None},
    "small, then large": {"fixed": 3.0, "phases": [[0.2, 10_000], [0.5, 10_000]], "share": 0.5},
}


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
def test_as_many_steps_are_planned_as_there_is_time_for(rate: dict[str, Any]) -> None:
    for seconds in (3.0, 4.6, 7.0, 18.0, 18.1, 900.0):
        steps = race.steps_in(seconds, rate)
        assert race.seconds_of(steps, rate) <= seconds < race.seconds_of(steps + 1, rate)


def test_steps_of_both_phases_are_priced() -> None:
    prices = {name: [race.seconds_of(steps, rate) for steps in (10, 100)] for name, rate in RATES.items()}
    assert prices["alike"] == pytest.approx([3 + 5, 3 + 50])
    assert prices["asked, then read"] == pytest.approx([3 + 5, 3 + 30 * 0.5 + 70 * 0.2])
    assert prices["small, then large"] == pytest.approx([3 + 1 + 2.5, 3 + 10 + 25])


def test_fast_is_the_recipe_as_it_ships_but_for_its_length() -> None:
    given = {"data": "d", "out": "o", "max_steps": 7, "teacher": "a", "student": "b"}
    ships = RECIPES["fast"](data="d", out="o").replace(max_steps=7, teacher="a", student="b", recipe="fast")
    assert from_recipe(given | race.settings_of("fast", 7)) == ships


def test_changes_are_made_over_the_repaired_recipe_and_rates_multiply() -> None:
    row = race.settings_of("no_masked+muon+lr_x2+lr_x5", steps=390)
    assert row["proteus"] == {"patch_weight": 0.0}
    assert row["optim"]["algorithm"] == "muon"
    assert row["optim"]["lr"] == pytest.approx(10 * race.LR)
    assert row["optim"]["warmup_epochs"] == pytest.approx(0.03)  # of an epoch of 390 steps
    for name, times in (("tenth", 10), ("batch_64", 0.5)):
        assert race.settings_of(name, steps=390)["optim"]["warmup_epochs"] == pytest.approx(0.03 * times)


@pytest.mark.parametrize("row", [row for row in race.SCREENED if row != "fast"] + list(race.CHANGES))
def test_every_row_is_a_run_that_attar_takes(row: str) -> None:
    settings = race.settings_of(row, 100)
    settings.pop("images", None)
    from_recipe({"teacher": "a", "student": "b", "data": "d", "out": "o", "max_steps": 100} | settings)
