from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attar.errors import DamagedFileError
from attar.evaluation import wilson_interval
from attar.reports import Result, caution, markdown_table, read_results, verdict, write_result

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
    ("shares", "n", "start"),
    [
        ((0.24, 0.90, 0.20), 1000, "Not proven"),  # better, but the intervals overlap
        ((0.19, 0.90, 0.20), 1000, "It did not help"),  # 0.22 - 0.18 at the most, of 0.70 to gain
        ((0.19, 0.90, 0.20), 23, "Not proven"),  # the same shares, of few images
        ((0.10, 0.90, 0.50), 23, "It did not help"),  # few, but the intervals lie apart
        ((0.21, 0.20, 0.22), 100_000, "It did not help"),  # worse than random, beside a teacher that is too
        ((0.22, 0.20, 0.22), 100_000, "Not proven"),  # and where there was nothing to gain
        ((0.81, 0.90, 0.20), 23, "It helped"),
    ],
)
def test_verdict_does_not_claim_what_the_intervals_do_not_show(shares: tuple[float, ...], n: int, start: str) -> None:
    results = [
        replace(result, value=share, ci95=wilson_interval(share, n), n=n)
        for result, share in zip((STUDENT, TEACHER, RANDOM), shares, strict=True)
    ]
    assert verdict(results).startswith(start)


def test_what_is_not_held_out_proves_nothing_and_says_so_everywhere(tmp_path: Path) -> None:
    results = [replace(result, held_out=False) for result in (STUDENT, TEACHER, RANDOM)]
    for result in results:
        write_result(tmp_path, result.role, result)
    assert read_results(tmp_path) == results
    assert verdict(results).startswith("Not proven: ")
    for text in (verdict(results), markdown_table(results)):
        assert "lie where those trained on do" in text
        assert "81.0" in text
    assert caution([STUDENT, TEACHER, RANDOM]) == ""
    assert caution([STUDENT, TEACHER, results[2]]) != ""


def test_verdict_without_a_monitor_says_that_nothing_is_known() -> None:
    assert "--monitor" in verdict([])
    assert "--monitor" in verdict([STUDENT, TEACHER])


def test_table_has_a_row_for_each_result() -> None:
    lines = markdown_table([STUDENT, TEACHER, RANDOM]).splitlines()
    assert len(lines) == 5
    assert lines[2] == "| student | small | 81.0 | 78.0 – 84.0 | 1,000 |"
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.pop("ci95"),
        lambda fields: fields.update(ci95=[0.1]),
        lambda fields: fields.update(ci95="ab"),
        lambda fields: fields.update(value="much"),
        lambda fields: fields.update(moeel="x"),
        lambda fields: fields.pop("task"),
    ],
)
def test_a_result_file_that_was_changed_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    write_result(tmp_path, "student", STUDENT)
    fields = json.loads((tmp_path / "student.json").read_text())
    change(fields)
    (tmp_path / "student.json").write_text(json.dumps(fields))
    with pytest.raises(DamagedFileError, match=r"student\.json is damaged: it is no result"):
        read_results(tmp_path)
