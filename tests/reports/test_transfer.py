"""Table and page of a transfer, from the files that a run leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attar.reports import Result, write_result
from attar.reports.transfer import transfer_rows, write_transfer_page

COSTS = {"stages": {"adapt": {"images": 1200, "macs": 3.2e12, "seconds": 7.4}}}


def result(stage: str, part: str, metric: str, value: float, **details) -> Result:
    return Result(
        task=f"transfer:{part}",
        role="student",
        model="s",
        metric=metric,
        value=value,
        ci95=(value - 0.1, value + 0.1),
        n=40,
        protocol={"stage": stage, "part": part},
        details=details,
    )


RESULTS = [
    result(stage, part, metric, value)
    for stage, value in (("finetune", 0.5), ("adapt", 0.75))
    for part in ("test", "val")
    for metric in ("mean_per_class", "top1")
]


def test_rows_come_stage_by_stage_with_what_each_cost():
    heading, *rows = transfer_rows(RESULTS, COSTS)
    assert heading[2:5] == ["top-1", "95 % interval", "mean/class"]
    assert [row[:2] for row in rows] == [
        ["teacher, adapted", "val"],
        ["teacher, adapted", "test"],
        ["student after finetuning", "val"],
        ["student after finetuning", "test"],
    ]
    assert rows[0][2:] == ["75.0", "65.0 – 85.0", "75.0", "1,200", "3,200", "7"]
    assert rows[2][5:] == ["", "", ""]


@pytest.mark.parametrize(("macs", "says"), [(0, "0"), (4.6e7, "0.046"), (1.52e9, "1.5"), (2.04e10, "20")])
def test_few_multiply_adds_are_not_none(macs, says):
    costs = {"stages": {"adapt": COSTS["stages"]["adapt"] | {"macs": macs}}}
    assert transfer_rows(RESULTS, costs)[1][6] == says


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run's files."""
    for number, one in enumerate(RESULTS):
        write_result(tmp_path / "results", str(number), one)
    (tmp_path / "compute.json").write_text(json.dumps(COSTS))
    (tmp_path / "config.yaml").write_text("student: a<b>\n")
    (tmp_path / "run.json").write_text(json.dumps({"versions": {"torch": "2"}}))
    for stage, scores in (("finetune", (0.2, 0.4)), ("scratch", (0.1, 0.3))):
        (tmp_path / stage).mkdir()
        lines = [{"step": step, "val": score} for step, score in zip((0, 8), scores, strict=True)]
        lines += [{"step": step, "loss": 1.0 / step} for step in (1, 2)]
        (tmp_path / stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_the_page_has_verdict_table_curves_and_settings(run: Path):
    page = write_transfer_page(run, "It helped & how.").read_text()
    assert "It helped &amp; how." in page
    assert "student: a&lt;b&gt;" in page
    assert "top-1 (%) on val while it learns from the labels" in page
    assert "while it learns from the teacher" not in page  # nothing of it is there
    assert page.count("<polyline") == 3  # finetune and scratch in one chart, and a loss
    assert "IoU by class" not in page


def test_segmentation_shows_each_class(run: Path):
    for old in (run / "results").iterdir():
        old.unlink()
    for part, sky in (("val", 0.1), ("test", 0.9)):
        for metric, details in (("miou", {"iou": {"sky": sky, "<tree>": None}}), ("class_accuracy", {})):
            write_result(run / "results", f"{part}-{metric}", result("finetune", part, metric, 0.5, **details))
    page = write_transfer_page(run, "").read_text()
    assert "IoU by class" in page
    assert ">90.0<" in page  # of the test images
    assert "&lt;tree&gt;" in page
    assert "mIoU" in page
