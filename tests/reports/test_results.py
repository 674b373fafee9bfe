from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from attar.reports import Result, markdown_table, read_results, verdict, write_result

STUDENT = Result("knn:images", "student", "small", "top1", 0.81, (0.78, 0.84), 1000)
TEACHER = replace(STUDENT, role="teacher", model="big", value=0.90, ci95=(0.88, 0.92))
RANDOM = replace(STUDENT, role="random", value=0.20, ci95=(0.17, 0.23))


def test_results_come_back_as_they_were_written_student_first(tmp_path: Path) -> None:
    for result in (TEACHER, RANDOM, STUDENT):
        write_result(tmp_path, f"knn-{result.role}", result)
    assert read_results(tmp_path) == [STUDENT, TEACHER, RANDOM]


def test_verdict_names_all_three_figures_and_the_share_of_the_teacher() -> None:
    text = verdict([STUDENT, TEACHER, RANDOM])
    assert text.startswith("It helped: ")
    assert all(word in text for word in ("81.0", "90% of the teacher's 90.0", "20.0", "1,000 images"))


@pytest.mark.parametrize(
    ("student", "start"),
    [
        (replace(STUDENT, value=0.24, ci95=(0.21, 0.27)), "Not proven"),  # better, but the intervals overlap
        (replace(STUDENT, value=0.19, ci95=(0.16, 0.22)), "It did not help"),
    ],
)
def test_verdict_does_not_claim_what_the_intervals_do_not_show(student: Result, start: str) -> None:
    assert verdict([student, TEACHER, RANDOM]).startswith(start)


def test_verdict_without_a_monitor_says_that_nothing_is_known() -> None:
    assert "--monitor" in verdict([])
    assert "--monitor" in verdict([STUDENT, TEACHER])


def test_table_has_a_row_for_each_result() -> None:
    lines = markdown_table([STUDENT, TEACHER, RANDOM]).splitlines()
    assert len(lines) == 5
    assert lines[2] == "| student | small | 81.0 | 78.0 – 84.0 | 1,000 |"
    assert len({line.count("|") for line in lines}) == 1
