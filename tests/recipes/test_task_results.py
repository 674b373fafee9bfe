"""What a transfer costs, and what may be said of it."""

from __future__ import annotations

import pytest

import attar
from attar.recipes.stages import Outcome
from attar.recipes.task_results import Compute
from small_transfer import config_of

TEACHER, STUDENT, POOL = 1000, 10, 50


def macs(stage: str, outcome: Outcome, tmp_path, **changes) -> int:
    table = Compute(TEACHER, STUDENT).table({stage: outcome}, config_of(tmp_path, **changes), pool=POOL)
    return table["stages"][stage]["macs"]


@pytest.mark.parametrize(
    ("mode", "images", "expected"),
    [
        ("head", 0, 7 * TEACHER),  # features once
        ("full", 100, 7 * TEACHER + 3 * 100 * TEACHER),  # a backward pass costs two forward passes
        ("lora", 100, 7 * TEACHER + 2 * 100 * TEACHER),
    ],
)
def test_adapting_costs_the_heads_features_and_the_steps(mode, images, expected, tmp_path):
    outcome = Outcome(images, 1.0, 3, None, looks=7)
    assert macs("adapt", outcome, tmp_path, adapt={"mode": mode}) == expected


@pytest.mark.parametrize(
    ("cached", "asked"),
    [(None, 400), (2, 2 * POOL), (100, 400)],  # no more views are asked for than there are, or than were seen
)
def test_a_cached_teacher_is_paid_once_a_view(cached, asked, tmp_path):
    outcome = Outcome(400, 1.0, 8, None)
    section = {"max_steps": 8, "cached_views": cached}
    assert macs("transfer", outcome, tmp_path, transfer=section) == asked * TEACHER + 3 * 400 * STUDENT


def test_images_that_were_transferred_on_prove_nothing(tmp_path):
    test = "playground:4?n=42"
    report = attar.transfer(config_of(tmp_path / "run", pool=["playground:0?n=64", test]))
    assert report.verdict.startswith("Not proven")
    assert "nothing here is sure to be held out" in report.verdict
    assert "nothing here is sure to be held out" in (report.run / "report.html").read_text()


def test_a_few_images_prove_nothing_and_have_no_interval(tmp_path):
    verdict = attar.transfer(config_of(tmp_path / "run", test="playground:4?n=9")).verdict
    assert verdict.startswith("Not proven")
    assert verdict.endswith("points (9 test images, too few for an interval).")
    assert "the same one without the transfer stage" in verdict


def test_a_teacher_read_back_is_judged_on_the_images_of_now(tmp_path):
    attar.transfer(config_of(tmp_path / "run", scratch=False))
    other = config_of(tmp_path / "run", scratch=False, test="playground:4?n=28", resume_anyway=True)
    found = attar.transfer(other).results
    assert {result.n for result in found if result.protocol["part"] == "test"} == {28}
