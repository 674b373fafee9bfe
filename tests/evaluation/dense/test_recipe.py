from __future__ import annotations

import pytest

from attar.data.geometry import Geometry
from attar.evaluation.dense.recipe import Recipe
from attar.evaluation.dense.view import quarters


def test_the_rate_grows_by_a_line_and_falls_by_a_line_or_a_cosine() -> None:
    poly = Recipe(Geometry(8, 8), steps=110, lr=1.0, weight_decay=0.0, warmup_steps=10)
    cosine = Recipe(Geometry(8, 8), steps=110, lr=1.0, weight_decay=0.0, warmup_steps=10, schedule="cosine")
    assert [poly.rate(step) for step in (0, 5, 10, 35, 60)] == pytest.approx([1e-6, 0.5, 1.0, 0.75, 0.5])
    assert [cosine.rate(step) for step in (5, 10, 35, 60)] == pytest.approx([0.5, 1.0, 0.8535534, 0.5])
    assert 0 < poly.rate(109) == pytest.approx(0.01)  # falls to 0 one step after the last


def test_quarters_end_where_dinov2_looks() -> None:
    # blocks 3, 6, 9, 12 and 10, 20, 30, 40, counted from 1
    assert quarters(12) == (2, 5, 8, 11)
    assert quarters(40) == (9, 19, 29, 39)
    assert quarters(2) == (0, 0, 1, 1)
