"""Several runs on one page: a table of all, curves in one frame, names that tell them apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from attar.reports import Result, write_result
from attar.reports.charts import chart, thinned
from attar.reports.overview import overview
from attar.reports.page import write_report
from attar.reports.run import run_section
from attar.reports.section import Section, titles
from attar.utils.io import write_json, write_text


def write_run(folder: Path, value: float, *, images: str = "a", **settings: object) -> Path:
    write_text(folder / "config.yaml", json.dumps({"teacher": "big", "batch_size": 8, **settings}))
    write_json(folder / "run.json", {"run_id": folder.name, "versions": {"attar": "0"}, "command": ["attar", "a b"]})
    lines = [{"step": step, "loss": 1 / step, "images_per_second": 4.0} for step in (10, 20)]
    lines += [{"step": step, "student_knn_select": value} for step in (10, 20)]
    write_text(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    for role, level in (("student", value), ("teacher", 0.8), ("random", 0.1)):
        result = Result(f"knn:{images}", role, "m", "top1", level, (level - 0.02, level + 0.02), 900)  # type: ignore[arg-type]
        write_result(folder / "results", role, result)
    return folder


def test_time_and_cost_follow_from_the_logged_rates(tmp_path: Path) -> None:
    section = run_section(write_run(tmp_path / "r", 0.6), price_per_hour=90.0)
    assert section.cells["views"] == "160"
    assert section.cells["training"] == "40 s"  # 20 steps of 8 at 4 a second
    assert section.cells["price"].startswith("1.00 at 90")


@pytest.mark.parametrize(("student", "reach", "tone"), [(0.6, 0.02, "good"), (0.12, 0.09, "open"), (0.1, 0.001, "bad")])
def test_the_tone_is_that_of_the_verdict(tmp_path: Path, student: float, reach: float, tone: str) -> None:
    folder = write_run(tmp_path / "r", student)
    for role, level in (("student", student), ("random", 0.1)):
        result = Result("knn:a", role, "m", "top1", level, (level - reach, level + reach), 900)  # type: ignore[arg-type]
        write_result(folder / "results", role, result)
    assert run_section(folder).tone == tone


def test_a_run_that_was_stopped_says_so_and_keeps_its_curves(tmp_path: Path) -> None:
    finished, stopped = (write_run(tmp_path / name, 0.6) for name in ("one", "two"))
    (stopped / "results/student.json").unlink()
    sections = [run_section(finished), run_section(stopped)]
    assert sections[1].verdict.startswith("Not finished: the last step on record is 20.")
    assert sections[1].verdict.endswith("without --monitor nobody will judge it.")
    assert [len(frame["lines"]) for frame in overview(["one", "two"], sections)["curves"]] == [2, 2]
    write_report(tmp_path / "page.html", sections)
    assert "not finished" in (tmp_path / "page.html").read_text()  # in the table too
    (stopped / "student-last").mkdir()  # its end came, and nobody judged
    assert run_section(stopped).verdict.startswith("Nothing was measured")


def test_images_of_the_monitor_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", 0.6)
    write_json(folder / "monitor.json", {"report": {"images": "a", "rows": list(range(903))}})
    assert run_section(folder).content["unreadable_monitor"] == 3


def test_rows_say_who_reaches_what_and_curves_share_a_frame(tmp_path: Path) -> None:
    sections = [run_section(write_run(tmp_path / name, value)) for name, value in (("one", 0.6), ("two", 0.4))]
    table = overview(["one", "two"], sections)
    assert [row["share"] for row in table["rows"]] == ["75%", "50%"]
    assert [row["figures"][0]["value"] for row in table["rows"]] == [0.6, 0.4]
    loss, score = table["curves"]
    assert [line["style"] for line in loss["lines"]] == [line["style"] for line in score["lines"]] == ["run-1", "run-2"]
    ends = [line["end"][1] for line in score["lines"]]
    assert ends[0] < ends[1]  # 60 stands above 40
    assert table["caution"] == ""
    assert [row["judged"] for row in table["rows"]] == ["k-NN top-1"] * 2


def test_losses_of_other_methods_and_scores_of_other_tasks_share_no_frame(tmp_path: Path) -> None:
    sections = [run_section(write_run(tmp_path / name, 0.5)) for name in ("one", "two", "three")]
    sections[2] = replace(
        sections[2],
        content={**sections[2].content, "about": {"method": "DIME-FM"}},
        figures={role: replace(found, task="zero_shot:a") for role, found in sections[2].figures.items()},
    )
    table = overview(["one", "two", "three"], sections)
    assert [row["judged"] for row in table["rows"]] == ["k-NN top-1", "k-NN top-1", "zero-shot top-1"]
    assert [[line["name"] for line in frame["lines"]] for frame in table["curves"]] == [["one", "two"]] * 2


def test_figures_of_other_images_are_not_to_be_compared(tmp_path: Path) -> None:
    sections = [run_section(write_run(tmp_path / name, 0.5, images=name)) for name in ("one", "two")]
    assert "not between rows" in overview(["one", "two"], sections)["caution"]


def test_a_page_of_two_has_both_and_escapes_their_names(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, 0.5, student=f"<i>{number}</i>") for number, name in enumerate(("a", "b&<b>"))]
    text = write_report(tmp_path / "page.html", [run_section(run) for run in runs]).read_text()
    assert 'id="s1"' in text
    assert 'id="s2"' in text
    assert "b&amp;&lt;b&gt;" in text
    assert "<i>" not in text
    assert "attar &#39;a b&#39;" in text  # the command, quoted for a shell and escaped for a page


def test_names_are_as_long_as_it_takes_to_tell_them_apart() -> None:
    def named(*paths: str) -> list[str]:
        return titles([Section("run", Path(path), "", {}) for path in paths])

    assert named("/x/a", "/x/b") == ["a", "b"]
    assert named("/x/a", "/y/a") == ["x/a", "y/a"]


def test_long_lines_keep_their_ends() -> None:
    points = [(step, float(step)) for step in range(1, 100_001)]
    kept = thinned(points)
    assert len(kept) <= 400
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert chart("loss", {"loss": points})["last"] == "100,000"
