"""Table and page of a study, from figures alone."""

from __future__ import annotations

import pytest

from attar.config import StudyConfig
from attar.reports.study import Spread, Study, study_sentence, study_table, write_study_page


def run(row: str, labels: int, seed: int, top1: float, *, adapted: float | None = None, sources=None):
    scores = {"finetune": {"top1": top1, "mean_per_class": top1 / 2}}
    if adapted is not None:
        scores |= {stage: {"top1": x, "mean_per_class": x} for stage, x in (("adapt", adapted), ("transfer", top1 / 4))}
    fetched = {"sources": [{"place": place, "fetched": n} for place, n in sources.items()]} if sources else None
    about = {"row": row, "labels": labels, "seed": seed, "set": fetched, "part": "test", "images": 1000}
    return about | {"scores": scores, "macs": 2e9, "seconds": 3.0, "student_steps": 10}


STUDY = Study(
    tuple(
        run(row, labels, seed, top1 + seed / 100, adapted=None if row == "scratch" else 0.9, sources=sources)
        for labels, offset in ((2, 0.0), (10, 0.2))
        for seed in (0, 1)
        for row, top1, sources in (
            ("scratch", 0.1 + offset, None),
            ("task:random", 0.3 + offset + seed / 50, {"/data/a": 3, "/data/<b>": 1}),
        )
    )
)


def test_figures_are_means_and_sample_deviations_over_seeds():
    assert STUDY.score("scratch", 2).text() == "10.5 ± 0.7"
    assert Spread((0.5,)).text() == "50.0"


def test_gains_are_taken_seed_by_seed():
    # 0.20 and 0.22: a deviation of 1.4, where the deviations of the two rows alone would say 0.7 and 2.1
    assert STUDY.gain("task:random", 2, over="scratch").text(sign="+") == "+21.0 ± 1.4"
    assert STUDY.gain("scratch", 2, over="scratch") is None


def test_the_table_has_a_column_for_each_number_of_labels_and_what_a_run_costs():
    table = study_table(STUDY).splitlines()
    assert table[0] == (
        "| row | top-1, 2 a class | top-1, 10 a class | over scratch, 2 a class | over scratch, 10 a class"
        " | student steps | GMACs | seconds |"
    )
    assert "| scratch | 10.5 ± 0.7 | 30.5 ± 0.7 |  |  | 10 | 2 | 3 |" in table
    assert "| teacher, adapted | 90.0 ± 0.0 | 90.0 ± 0.0 |  |  |  |  |  |" in table
    assert "| task:random | 75 % | 25 % |" in table
    assert "| task:random | 7.9 ± 0.5 | 12.9 ± 0.5 |" in table  # before finetuning
    assert sum(line.startswith("| scratch |") for line in table) == 1  # it has no such stage


def test_the_sentence_names_the_best_row_of_each_number_of_labels():
    assert study_sentence(STUDY) == (
        "With 2 labelled images a class task:random is best: 31.5 ± 2.1 %, +21.0 ± 1.4 points over scratch."
        " With 10 labelled images a class task:random is best: 51.5 ± 2.1 %, +21.0 ± 1.4 points over scratch."
    )


@pytest.mark.parametrize("labels", [(2,), (2, 10)])
def test_the_page_shows_every_row_and_escapes_names(labels, tmp_path):
    figures = Study(tuple(r for r in STUDY.runs if r["labels"] in labels))
    config = StudyConfig.build(
        {"teacher": "t", "student": "s", "labelled": "l", "pool": "p", "out": "o", "labels": labels}
        | {"transfer": {"max_steps": 1}}
    )
    write_study_page(tmp_path / "report.html", figures, config)
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="mean"') == 2
    assert "/data/&lt;b&gt;" in page
    assert "<b>" not in page
    assert page.count("<polyline") == (2 if len(labels) == 2 else 0)  # lines need two points
