"""Table and page of a study, from figures alone."""

from __future__ import annotations

import re

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


CONFIG = StudyConfig.build(
    {"teacher": "t", "student": "s", "labelled": "l", "pool": "p", "out": "o", "labels": 2}
    | {"transfer": {"max_steps": 1}}
)
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


def test_the_sentence_names_the_highest_mean_of_each_number_of_labels():
    few = "; 2 seeds are few, take 3 at least."
    assert study_sentence(STUDY) == (
        "Not proven: with 2 labelled images a class task:random has the highest mean, 31.5 ± 2.1 %, +21.0 ± 1.4 points"
        f" over scratch{few} Not proven: with 10 labelled images a class task:random has the highest mean,"
        f" 51.5 ± 2.1 %, +21.0 ± 1.4 points over scratch{few}"
    )


def test_rows_far_apart_over_enough_seeds_are_told_without_reserve(tmp_path):
    clear, near = study_of(hint=(0.1, 0.11, 0.12), task=(0.3, 0.31, 0.32)), study_of(hint=(0.1, 0.2), task=(0.2, 0.3))
    assert study_sentence(clear) == "With 2 labelled images a class task has the highest mean, 31.0 ± 1.0 %."
    for figures, tone in ((clear, ""), (near, "plain")):
        write_study_page(tmp_path / "report.html", figures, CONFIG)
        assert f'<p class="verdict {tone}">' in (tmp_path / "report.html").read_text()


def study_of(**scores):
    """One number of labels; values by row and seed."""
    return Study(tuple(run(row, 2, seed, x) for row, values in scores.items() for seed, x in enumerate(values)))


def test_the_sentence_names_rows_that_are_not_told_apart_from_the_highest():
    rows = {"task": (0.30, 0.34, 0.32), "hint": (0.27, 0.31, 0.29), "cosine": (0.27, 0.27, 0.27)}  # 32.0 ± 2.0
    close = study_sentence(study_of(**rows))
    assert close.endswith("32.0 ± 2.0 %; hint is not told apart from it (deviations overlap).")  # 29.0 ± 2.0
    more = study_sentence(study_of(**rows, proteus=(0.30, 0.30, 0.30)))
    assert more.endswith("32.0 ± 2.0 %; hint and proteus are not told apart from it (deviations overlap).")


def test_the_sentence_of_one_seed_claims_no_spread():
    assert study_sentence(study_of(scratch=(0.1,), task=(0.3,))) == (
        "Not proven: with 2 labelled images a class task has the highest figure, of one seed, 30.0 %, +20.0 points over"
        " scratch; what another seed would give is not known."
    )


def test_places_of_one_folder_name_are_told_apart(tmp_path):
    sources = {"/data/a/rest": 3, "/data/b/rest": 1, "/data/c": 1}
    rows = ("task:/data/a/set", "task:/data/b/set", "task:/data/c/ideal")
    figures = Study(tuple(run(row, 2, 0, 0.3, sources=sources) for row in rows))
    assert list(figures.titles.values()) == ["task:/data/a/set", "task:/data/b/set", "task:ideal"]
    table = study_table(figures)
    assert "| fetched from | /data/a/rest | /data/b/rest | c |" in table
    write_study_page(tmp_path / "report.html", figures, CONFIG)
    page = (tmp_path / "report.html").read_text()
    assert len(set(re.findall(r'class="key" style="background: (#\w+)"', page))) == 3


def test_rows_that_ran_with_fewer_seeds_are_told():
    assert "over 2 seeds;" in study_table(study_of(scratch=(0.1, 0.2), task=(0.3, 0.4)))
    assert "over 1 to 2 seeds, as far as they ran;" in study_table(study_of(scratch=(0.1, 0.2), task=(0.3,)))


@pytest.mark.parametrize("labels", [(2,), (2, 10)])
def test_the_page_shows_every_row_and_escapes_names(labels, tmp_path):
    figures = Study(tuple(r for r in STUDY.runs if r["labels"] in labels))
    write_study_page(tmp_path / "report.html", figures, CONFIG)
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="mean"') == 2
    assert "/data/&lt;b&gt;" in page
    assert "<b>" not in page
    assert page.count("<polyline") == (2 if len(labels) == 2 else 0)  # lines need two points
