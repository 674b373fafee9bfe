"""`attar transfer --study` on playground scenes: what is shared, what is restarted, what is told."""

from __future__ import annotations

import json
import re

import pytest

import attar
from attar.cli import main
from attar.config import StudyConfig
from attar.config.files import to_yaml
from attar.errors import ConfigError, Interrupted, RunDirectoryError
from attar.recipes.quickstart import playground_teacher

STUDENT = "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=1&num_heads=2"
SHORT = {"max_steps": 2, "batch_size": 8}


def config_of(out, **changes):
    settings = {
        "teacher": str(playground_teacher()),
        "student": STUDENT,
        "labelled": "playground:3?n=140",
        "val": "playground:5?n=28",
        "test": "playground:4?n=42",
        "pool": ["playground:0?n=60", "playground:9?n=20"],
        "img_size": 32,
        "teacher_img_size": 64,
        "out": str(out),
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
        "transfer": SHORT,
        "finetune": SHORT,
        "labels": 1,
        "seeds": (0, 1),
        "rows": ("scratch", "task:query_balanced", "task:random_by_place"),
        "sets": {"budget": 42, "leak_threshold": None, "duplicate_threshold": None},
    }
    return StudyConfig.build(settings | changes)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished study."""
    return attar.study(config_of(tmp_path_factory.mktemp("study") / "out"))


def test_every_row_runs_in_every_cell_at_equal_steps(done):
    runs = json.loads((done.out / "study.json").read_text())["runs"]
    assert [(run["row"], run["seed"]) for run in runs] == [(row, seed) for seed in (0, 1) for row in done.study.rows]
    assert {run["student_steps"] for run in runs} == {2, 4}  # scratch has no stage B
    assert all(run["part"] == "test" and run["images"] == 42 for run in runs)
    adapted = {
        run["seed"]: {r["scores"]["adapt"]["top1"] for r in runs if r["seed"] == run["seed"] and r["set"]}
        for run in runs
    }
    assert all(len(values) == 1 for values in adapted.values())  # rows of a cell have the same teacher


def test_sets_have_the_budget_and_the_labelled_images_ask(done):
    runs = [run for run in done.study.runs if run["set"]]
    assert all(run["set"]["images"] <= 42 for run in runs)
    balanced, random = (next(run["set"] for run in runs if run["row"] == row) for row in done.study.rows[1:])
    assert balanced["fetched"] == 28  # 42 // 14 - 1 for each of 14 labelled images, which are in the set themselves
    by_place = [source["fetched"] for source in random["sources"]]
    assert abs(by_place[0] - by_place[1]) <= 1
    assert sum(by_place) == 28


def test_table_and_page_hold_what_was_measured(done):
    table = (done.out / "study.md").read_text()
    score = done.study.score("scratch", 1)
    assert f"| scratch | {100 * score.mean:.1f} ± {100 * score.deviation:.1f} |" in table
    assert "| teacher, adapted |" in table
    assert "fetched from" in table
    page = (done.out / "report.html").read_text()
    assert all(row in page for row in done.study.rows)
    assert "http" not in re.sub(r"<pre>.*</pre>", "", page, flags=re.S)


def test_more_seeds_may_be_asked_for_and_nothing_is_made_again(done, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in done.out.glob("cells/*/*/cell.json")}
    first = done.study.runs
    again = attar.study(config_of(done.out, seeds=(0, 1, 2), rows=("scratch",)))
    assert [run["seed"] for run in again.study.runs] == [0, 1, 2]
    assert again.study.runs[0] == first[0]
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_done_rows_with_other_settings_are_refused(done):
    with pytest.raises(RunDirectoryError, match=r"finetune.batch_size was 8, now 4"):
        attar.study(config_of(done.out, finetune={"max_steps": 2, "batch_size": 4}))


def test_another_set_under_a_done_row_is_refused(done, tmp_path):
    other = config_of(done.out, sets={"budget": 28, "leak_threshold": None, "duplicate_threshold": None})
    with pytest.raises(RunDirectoryError, match="another transfer set"):
        attar.study(other)
    attar.study(config_of(done.out))  # and the first one still stands


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match="no study"):
        attar.study(config_of(tmp_path))
    assert [path.name for path in tmp_path.iterdir() if path.name != ".attar-lock"] == ["thesis.txt"]


def test_a_signal_within_a_run_ends_the_study(tmp_path, monkeypatch):
    import os
    import signal

    from attar.recipes import study as recipe

    def stopped(config):
        os.kill(os.getpid(), signal.SIGTERM)
        return attar.transfer(config)

    monkeypatch.setattr(recipe, "transfer", stopped)
    with pytest.raises(Interrupted):
        attar.study(config_of(tmp_path / "out", rows=("scratch",)))
    monkeypatch.undo()
    assert len(attar.study(config_of(tmp_path / "out", rows=("scratch",), seeds=0)).study.runs) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rows": ("tusk:random",)}, "'tusk:random' is no row. Did you mean 'task'"),
        ({"rows": ("task:",)}, "'task:' is no row"),
        ({"rows": ("scratch", "scratch")}, "one stands there twice"),
        ({"labels": (2, 2)}, "labels are 2, 2"),
        ({"seed": 3}, "setting 'seed' is given, and a study sets it itself"),
        ({"transfer": {"epochs": 2}}, "transfer.max_steps is missing"),
        ({"row_settings": {"task": {}}}, "row_settings are given for 'task'"),
        ({"row_settings": {"scratch": {"seed": 1}}}, "row_settings hold 'seed'"),
    ],
)
def test_wrong_studies_are_told(changes, says, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(says)):
        config_of(tmp_path, **changes)


def test_a_row_may_have_settings_of_its_own(tmp_path):
    config = config_of(tmp_path, row_settings={"scratch": {"finetune": {"optim": {"lr": 0.5}}}})
    cells = {row.name: config.cell(row, 1, 0, pool=None, out="x") for row in config.table}
    assert cells["scratch"].finetune.optim.lr == 0.5
    assert cells["scratch"].finetune.batch_size == 8
    assert cells["task:query_balanced"].finetune.optim.lr == 1e-4


def test_the_command_line_reads_it(tmp_path, capsys):
    config = config_of(tmp_path / "out", rows=("scratch",), seeds=0)
    file = tmp_path / "study.yaml"
    file.write_text(to_yaml(config))
    assert main(["transfer", "--study", "--config", str(file), "--rows", "scratch", "task", "--print-config"]) == 0
    assert "- task" in capsys.readouterr().out
    assert main(["transfer", "--study", "--config", str(file)]) == 0
    assert "scratch" in (tmp_path / "out" / "study.md").read_text()
