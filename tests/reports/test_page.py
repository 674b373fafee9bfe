from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from attar.reports import Result, write_page, write_result
from attar.reports.charts import ticks_around
from attar.utils.io import write_json, write_text

RESULTS = [
    Result("knn:images", "student", "small", "top1", 0.81, (0.78, 0.84), 1000),
    Result("knn:images", "teacher", "big", "top1", 0.90, (0.88, 0.92), 1000),
    Result("knn:images", "random", "small", "top1", 0.20, (0.17, 0.23), 1000),
]
VOID = {"meta", "link", "br", "img", "input"}


class Page(HTMLParser):
    """Collects addresses and polylines, and insists that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.polylines: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag == "polyline":
            self.polylines.append(str(found["points"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    metrics = [{"step": step, "loss": 3.0 / step} for step in range(1, 11)]
    metrics += [{"step": 5, "student_knn_select": 0.4}, {"step": 10, "student_knn_select": 0.8}]
    write_text(tmp_path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics))
    write_text(tmp_path / "config.yaml", "teacher: big\nproteus:\n  token_weight: 1.0\n")
    write_json(tmp_path / "run.json", {"run_id": "a", "versions": {"attar": "0"}})
    write_json(tmp_path / "about.json", {"teacher": "a <b>bold</b> & <script>alert(1)</script> name"})
    write_text(tmp_path / "bad_files.jsonl", json.dumps({"path": "<img src=x>.jpg", "reason": "cut short"}) + "\n")
    for result in RESULTS:
        write_result(tmp_path / "results", f"knn-{result.role}", result)
    return tmp_path


def test_page_is_well_formed_and_asks_nothing_of_the_network(run: Path) -> None:
    page = Page(write_page(run).read_text())
    assert page.addresses == ["data:,"]
    assert "It helped" in page.text
    assert len(page.polylines) == 2


def test_names_from_outside_cannot_become_markup(run: Path) -> None:
    text = write_page(run).read_text()
    assert "<script>" not in text
    assert "<img src=x>" not in text
    assert "&lt;script&gt;" in text


def test_curves_keep_their_direction_and_frame(run: Path) -> None:
    page = Page(write_page(run).read_text())
    loss, accuracy = ([tuple(map(float, point.split(","))) for point in line.split()] for line in page.polylines)
    assert loss[0][1] < loss[-1][1]  # a falling loss goes down: y grows downwards
    assert accuracy == [(280.0, 200.0), (560.0, 0.0)]  # steps 5 and 10 of 10; the frame is from 40 to 80 %


def test_the_frame_holds_the_level_lines_and_says_its_round_numbers(run: Path) -> None:
    for result in RESULTS[1:]:
        write_result(run / "results", f"knn-{result.role}", replace(result, selection=result.value))
    page = Page(write_page(run).read_text())
    assert [point.split(",")[1] for point in page.polylines[1].split()] == ["150.0", "50.0"]  # 40 and 80 % of 20 to 100
    assert "random 20.0" in page.text
    assert "teacher 90.0" in page.text
    assert "10080604020" in page.text


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([13.4, 99.7], [0, 20, 40, 60, 80, 100]),
        ([0.00123, 0.00137], [0.0012, 0.00125, 0.0013, 0.00135, 0.0014]),
        ([7.0], [6, 8]),
        ([0.0], [0, 0.2]),
        ([100.0, 100.0], [80, 100]),
    ],
)
def test_ticks_are_round_and_hold_all_values(values: list[float], ticks: list[float]) -> None:
    assert ticks_around(values) == pytest.approx(ticks)


def test_page_of_a_run_without_measurements_says_so(tmp_path: Path) -> None:
    write_text(tmp_path / "config.yaml", "teacher: big\n")
    write_json(tmp_path / "run.json", {"run_id": "a", "versions": {}})
    assert "Not finished" in Page(write_page(tmp_path).read_text()).text
    (tmp_path / "student-last").mkdir()
    assert "Nothing was measured" in Page(write_page(tmp_path).read_text()).text
