"""Speeds are medians of passes that take turns."""

import time

import pytest

from attar.export.speed import Speed, speed_table, speeds


def test_each_way_is_timed_in_every_round_and_the_slower_one_is_slower():
    asked = []
    ways = {
        "slow": lambda size: (asked.append(("slow", size)), time.sleep(0.004)),
        "fast": lambda size: asked.append(("fast", size)),
    }
    found = speeds(ways, repeats=3)
    one = [name for name, size in asked if size == 1]
    assert one == ["slow", "slow", "fast", "fast"] * 3
    assert found["slow"].milliseconds[1] >= 4 > found["fast"].milliseconds[1]
    assert found["slow"].per_second(32) == pytest.approx(32_000 / found["slow"].milliseconds[32])
    table = speed_table(found, {"slow": 2_500_000})
    assert "2.50 MB" in table
    assert "Median of 3 and 3 passes" in table


def test_speeds_are_unsteady_where_times_lie_far_apart():
    calm, busy = (Speed({1: 2.0, 32: 40.0}, {1: 20, 32: 20}, {1: 0.05, 32: spread}) for spread in (0.1, 0.3))
    table = speed_table({"torch": calm, "model.onnx": busy}, {})
    assert "| torch | 2.00 ms" in table
    assert "| model.onnx (unsteady) | 2.00 ms" in table
    assert "Unsteady: the machine did other work" in table
    assert "nsteady" not in speed_table({"torch": calm}, {})
