"""Factors of `benchmarks/time_to_quality.py` against curves that can be reckoned in the head."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from attar.recipes.proteus import RECIPES, from_recipe
from time_to_quality import (
    CHANGES,
    LR,
    SCREENED,
    best_rate_of_p1,
    factor_in_words,
    factors,
    seconds_of,
    settings_of,
    steps_in,
    table,
    time_at,
)

IMAGES = 1000


def cell(row: str, horizon: float, *, seconds: float, right: float, select: float | None = None) -> dict[str, Any]:
    """A cell with a share of the report half right, and of the selection half too, unless another is given."""
    hits = np.zeros((2, IMAGES // 2), bool)
    for half, share in zip(hits, (right if select is None else select, right), strict=True):
        half[: round(share * len(half))] = True
    return {
        "row": row,
        "horizon": horizon,
        "seed": 0,
        "views": 128,
        "wall_seconds": 2 * seconds,
        "cpu_seconds": seconds,
        "knn_select": hits[0].mean(),
        "knn_report": hits[1].mean(),
        "images": IMAGES,
        "hits": base64.b64encode(np.packbits(hits).tobytes()).decode(),
    }


CELLS = [
    cell("P0", 1.0, seconds=100, right=0.3),
    cell("P1", 1.0, seconds=100, right=0.5),
    cell("lr_x2", 1.0, seconds=100, right=0.6),
    cell("lr_x2", 0.1, seconds=10, right=0.2),
    cell("lr_x5", 0.1, seconds=10, right=0.7),  # not asked at the whole budget: it is no baseline
    cell("fast", 0.1, seconds=10, right=0.4),
    cell("fast", 0.4, seconds=40, right=0.8),
    cell("muon", 0.1, seconds=10, right=0.1),
]


@pytest.mark.parametrize("clock", ["cpu", "wall"])
def test_a_factor_is_the_baselines_time_over_the_time_that_its_quality_took(clock: str) -> None:
    found = factors(CELLS, "report", clock)
    against = found["fast"]["P1"]
    assert against["against"] == "lr_x2"
    assert against["factor"] == pytest.approx(100 / 20)  # 0.6 lies half way, and 20 s half way from 10 to 40 in ratio
    assert 4 < against["low"] < 5 < against["high"] < 6
    assert not against["at_least"]
    assert not against["high_at_least"]
    assert found["P1"]["P1"]["factor"] == 0  # never as good
    assert factor_in_words(found["muon"]["P1"]) == "never"


def test_where_the_shortest_run_is_good_enough_the_factor_is_a_bound() -> None:
    against = factors(CELLS, "report", "cpu")["fast"]["P0"]
    assert (against["factor"], against["at_least"], against["high_at_least"]) == (10, True, True)
    assert factor_in_words(against).startswith("≥ 10.00 (10.00 to ≥ 10.00")


def test_the_baselines_rate_is_chosen_by_the_selection_half_at_the_longest_horizon() -> None:
    assert best_rate_of_p1(CELLS) == "lr_x2"
    assert best_rate_of_p1([*CELLS, cell("P1", 1.0, seconds=100, right=0.1, select=1.0)]) == "P1"
    assert best_rate_of_p1([CELLS[0]]) is None
    wider = [cell("wider+lr_x2", 1.0, seconds=100, right=0.9), cell("muon+wider", 0.1, seconds=10, right=0.9)]
    assert best_rate_of_p1([*CELLS, *wider]) == "lr_x2"
    assert best_rate_of_p1([*CELLS, *wider], is_wider=True) == "wider+lr_x2"
    found = factors([*CELLS, *wider], "report", "cpu")["muon+wider"]
    assert found == {"P1": found["P1"]}  # the literal recipe was not run with this student
    assert (found["P1"]["against"], found["P1"]["factor"]) == ("wider+lr_x2", 10)


def test_the_table_has_each_row_with_its_factor() -> None:
    halves = {half: {clock: factors(CELLS, half, clock) for clock in ("wall", "cpu")} for half in ("select", "report")}
    lines = table({"cells": CELLS, "factors": halves}, "report", "cpu").splitlines()
    assert "sooner than P1 (lr_x2)" in lines[0]
    assert {line.split(" | ")[0].removeprefix("| ") for line in lines[2:]} == {one["row"] for one in CELLS}
    fast = next(line for line in lines if line.startswith("| fast"))
    assert "| 40.0 | 80.0 |" in fast
    assert "5.00 (" in fast


def test_time_is_interpolated_in_ratio() -> None:
    seconds, qualities = np.array([10.0, 40.0, 90.0]), np.array([0.2, 0.6, 0.5])
    assert time_at(seconds, qualities, 0.4) == pytest.approx(20)
    assert time_at(seconds, qualities, 0.1) == 10
    assert time_at(seconds, qualities, 0.6) == pytest.approx(40)
    assert time_at(seconds, qualities, 0.7) == float("inf")


RATES = {
    "alike": {"fixed": 3.0, "phases": [[0.5, 20_000]], "share": None},
    "asked, then read": {"fixed": 3.0, "phases": [[0.5, 30], [0.2, 19_970]], "share": None},
    "small, then large": {"fixed": 3.0, "phases": [[0.2, 10_000], [0.5, 10_000]], "share": 0.5},
}


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
def test_as_many_steps_are_planned_as_there_is_time_for(rate: dict[str, Any]) -> None:
    for seconds in (3.0, 4.6, 18.0, 18.1, 900.0):
        steps = steps_in(seconds, rate)
        assert seconds_of(steps, rate) <= seconds < seconds_of(steps + 1, rate) + 1e-9


def test_fast_is_the_recipe_as_it_ships_but_for_its_length() -> None:
    given = {"data": "d", "out": "o", "max_steps": 7, "teacher": "a", "student": "b"}
    ships = RECIPES["fast"](data="d", out="o").replace(max_steps=7, teacher="a", student="b", recipe="fast")
    assert from_recipe(given | settings_of("fast", 7)) == ships


def test_changes_are_made_over_the_repaired_recipe_and_rates_multiply() -> None:
    row = settings_of("no_masked+muon+lr_x2+lr_x5", steps=390)
    assert row["proteus"] == {"patch_weight": 0.0}
    assert row["optim"]["algorithm"] == "muon"
    assert row["optim"]["lr"] == pytest.approx(10 * LR)
    assert row["optim"]["warmup_epochs"] == pytest.approx(0.03)  # of an epoch of 390 steps
    assert settings_of("tenth", steps=390)["optim"]["warmup_epochs"] == pytest.approx(0.3)


@pytest.mark.parametrize("row", [row for row in SCREENED if row != "fast"] + list(CHANGES))
def test_every_row_is_a_run_that_attar_takes(row: str) -> None:
    settings = settings_of(row, 100)
    settings.pop("images", None)
    from_recipe({"teacher": "a", "student": "b", "data": "d", "out": "o", "max_steps": 100} | settings)
