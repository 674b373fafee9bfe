"""`attar transfer --study` on playground scenes: what is shared, what is restarted, what is told."""

from __future__ import annotations

import json
import os
import re
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import attar
from attar.cli import main
from attar.config import StudyConfig
from attar.config.files import read_settings, to_yaml
from attar.errors import ConfigError, DataError, Interrupted, RunDirectoryError
from attar.recipes import study as recipe
from attar.recipes.quickstart import playground_teacher
from attar.utils.io import write_json

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
    assert [(run["row"], run["seed"]) for run in again.study.runs[:3]] == [("scratch", seed) for seed in (0, 1, 2)]
    assert again.study.runs[0] == first[0]
    assert all(run in again.study.runs for run in first)  # what is done stays
    assert len(again.study.runs) == 7
    assert json.loads((done.out / "study.json").read_text())["runs"] == list(again.study.runs)
    assert "task:query_balanced" in (done.out / "study.md").read_text()
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_figures_stay_while_a_study_begins_again(done, monkeypatch):
    before = json.loads((done.out / "study.json").read_text())["runs"]

    def stopped(out, found, *, keep=write_json):
        keep(out, found)
        if out.name == "study.json":
            raise Interrupted(15, "after the first run")

    monkeypatch.setattr(recipe, "write_json", stopped)
    with pytest.raises(Interrupted, match="after the first run"):
        attar.study(config_of(done.out))
    after = json.loads((done.out / "study.json").read_text())["runs"]
    assert sorted(map(str, after)) == sorted(map(str, before))


def test_done_rows_with_other_settings_are_refused(done):
    with pytest.raises(RunDirectoryError, match=r"finetune.batch_size was 8, now 4"):
        attar.study(config_of(done.out, finetune={"max_steps": 2, "batch_size": 4}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"finetune": {**SHORT, "max_steps": 3}}, r"finetune.max_steps was 2, now 3"),
        ({"student": STUDENT.replace("32", "48")}, r"student was \S+, now \S+embed_dim=48"),
    ],
)
def test_a_new_row_of_other_settings_does_not_enter_the_table(done, change, said):
    before = (done.out / "config.yaml").read_text()
    with pytest.raises(RunDirectoryError, match=said):
        attar.study(config_of(done.out, rows=("hint:random",), **change))
    assert (done.out / "config.yaml").read_text() == before  # which tells of the figures that stand


def test_another_set_under_a_done_row_is_refused(done, tmp_path):
    other = {"sets": {"budget": 28, "leak_threshold": None, "duplicate_threshold": None}}
    with pytest.raises(RunDirectoryError, match=r"sets\.budget was 42, now 28"):
        attar.study(config_of(done.out, **other))
    with pytest.raises(RunDirectoryError, match="another transfer set"):
        attar.study(config_of(done.out, resume_anyway=True, **other))
    attar.study(config_of(done.out, resume_anyway=True))  # and the first one still stands


def test_a_set_of_other_images_under_a_done_row_is_refused(done):
    file = done.out / "sets/labels-1-seed-0/random_by_place/images.parquet"
    content, table = file.read_bytes(), pq.read_table(file)
    pq.write_table(table.take(list(reversed(range(len(table))))), file)  # its manifest says the same as ever
    with pytest.raises(RunDirectoryError, match="another transfer set"):
        attar.study(config_of(done.out))
    file.write_bytes(content)
    attar.study(config_of(done.out))


@pytest.fixture
def folders(tmp_path):
    """Labelled images in parts, and a place to transfer on, as files that can change."""
    rng = np.random.default_rng(0)
    for part, count in (("task/train", 2), ("task/val", 2), ("task/test", 3), ("place", 4)):
        for name in ("one", "two"):
            for number in range(count):
                path = tmp_path / part / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return tmp_path


def study_of_files(folders, **changes):
    places = {"labelled": str(folders / "task"), "val": None, "test": None, "pool": ()}
    rows = ("scratch", f"task:{folders / 'place'}")
    return config_of(folders / "out", **places, rows=rows, seeds=0, **changes)


def test_done_rows_are_refused_when_their_images_change(folders):
    attar.study(study_of_files(folders))
    for part, file in (("train", "task/train/one/0.png"), ("test", "task/test/two/2.png")):
        path = folders / file
        content = path.read_bytes()
        Image.new("RGB", (32, 32)).save(path)
        with pytest.raises(RunDirectoryError, match=f"other images: those of {part} have changed"):
            attar.study(study_of_files(folders))
        with pytest.raises(RunDirectoryError, match=f"scratch was made with other images: those of {part}"):
            attar.study(study_of_files(folders).replace(rows=("hint",), pool=str(folders / "place")))
        path.write_bytes(content)
    Image.new("RGB", (32, 32)).save(folders / "place/one/new.png")
    with pytest.raises(RunDirectoryError, match=r"task-.*other images: those of place have changed"):
        attar.study(study_of_files(folders, reindex=True))


def test_rows_that_were_done_before_hashes_were_kept_stand(folders):
    first = attar.study(study_of_files(folders)).study.runs
    for path in (folders / "out").glob("cells/*/*/cell.json"):
        figures = json.loads(path.read_text())
        del figures["hashes"]
        path.write_text(json.dumps(figures))
    again = attar.study(study_of_files(folders)).study.runs
    assert [run["scores"] for run in again] == [run["scores"] for run in first]
    assert "not written down then: images of train, val, test, place" in (folders / "out/log.txt").read_text()


def test_a_teacher_from_a_weight_file_fetches(tmp_path):
    state = load_file(playground_teacher() / "model.safetensors")
    state["cls_token"] += 0.1  # no longer those of the folder
    save_file(state, tmp_path / "teacher.safetensors")
    changes = {"teacher_weights": str(tmp_path / "teacher.safetensors"), "rows": ("task:query_balanced",), "seeds": 0}
    (run,) = attar.study(config_of(tmp_path / "out", **changes)).study.runs
    assert run["set"]["fetched"] == 28


def test_a_row_may_begin_with_given_weights(done, tmp_path):
    weights = done.out / "cells/labels-1-seed-0/task-query_balanced/student/model.safetensors"
    state = {name: value for name, value in load_file(weights).items() if not name.startswith("head.")}
    save_file(state, tmp_path / "small.safetensors")
    rows = ("scratch", f"pretrained:{tmp_path / 'small.safetensors'}")
    found = attar.study(config_of(tmp_path / "out", rows=rows, seeds=0, teacher=None, pool=()))
    assert list(found.study.titles.values()) == ["scratch", "pretrained:small.safetensors"]
    assert found.study.runs[0]["scores"] == done.study.runs[0]["scores"]  # a scratch row is what it was beside others
    assert {run["student_steps"] for run in found.study.runs} == {2}
    settings = read_settings(tmp_path / "out/cells/labels-1-seed-0" / _folder_of(tmp_path) / "config.yaml")
    assert (settings["pretrain"], settings["student_weights"]) == ("none", str(tmp_path / "small.safetensors"))


def _folder_of(tmp_path):
    (folder,) = (path.name for path in (tmp_path / "out/cells/labels-1-seed-0").glob("pretrained-*"))
    return folder


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match="no study"):
        attar.study(config_of(tmp_path))
    assert [path.name for path in tmp_path.iterdir() if path.name != ".attar-lock"] == ["thesis.txt"]


def test_a_signal_within_a_run_ends_the_study(tmp_path, monkeypatch):
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
        ({"rows": ("pretrained:",)}, "'pretrained:' is no row"),
        ({"row_settings": {"scratch": {"transfer": {"cached_views": 2}}}}, "row scratch: transfer.cached_views is 2"),
        ({"rows": ("hint",), "transfer": SHORT | {"cached_views": 2}}, "row hint: transfer.cached_views is 2"),
        ({"rows": ("scratch", "task"), "pool": ()}, "row task: setting 'pool' is missing"),
        ({"task": "segmentation"}, "task is segmentation, and a study draws so many labelled images of each class"),
    ],
)
def test_wrong_studies_are_told(changes, says, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(says)):
        config_of(tmp_path, **changes)


def test_a_misspelt_strategy_is_not_only_a_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"row task:bestmatch: .* does not exist.* Did you mean 'best_match'\?"):
        recipe.study(config_of(tmp_path, rows=("task:bestmatch",)))


def test_a_row_may_have_settings_of_its_own(tmp_path):
    config = config_of(tmp_path, row_settings={"scratch": {"finetune": {"optim": {"lr": 0.5}}}})
    cells = {row.name: config.cell(row, 1, 0, pool=None, out="x") for row in config.table}
    assert cells["scratch"].finetune.optim.lr == 0.5
    assert cells["scratch"].finetune.batch_size == 8
    assert cells["task:query_balanced"].finetune.optim.lr == 1e-4


def test_settings_that_a_row_has_no_use_for_are_left_to_those_that_have(tmp_path):
    config = config_of(
        tmp_path,
        rows=("scratch", "pretrained", "contrastive", "task:random", "proteus"),
        transfer=SHORT | {"cached_views": 2, "proteus": {"mask_ratio": 0.25}, "optim": {"accumulate": 2}},
    )
    stages = {row.name: config.cell(row, 1, 0, pool=None, out="x").transfer for row in config.table}
    assert {name for name, stage in stages.items() if stage.cached_views == 2} == {"task:random"}
    assert {name for name, stage in stages.items() if stage.proteus.mask_ratio == 0.25} == {"proteus"}
    assert {name for name, stage in stages.items() if stage.optim.accumulate == 1} == {"contrastive"}
    assert all(stage.max_steps == 2 for stage in stages.values())


@pytest.mark.parametrize(
    ("rows", "unused"),
    [
        (("scratch",), ("adapt", "transfer.contrastive_temperature", "sets")),
        (("task",), ("transfer.contrastive_temperature", "sets")),
        (("scratch", "contrastive:random"), ("adapt",)),
        (("task:random", "contrastive"), ()),
    ],
)
def test_settings_that_no_row_has_a_use_for_are_told(rows, unused, tmp_path):
    given = {"adapt": {"mode": "lora"}, "transfer": SHORT | {"contrastive_temperature": 0.1}}
    assert config_of(tmp_path, rows=rows, **given).unused == unused


def test_help_says_which_settings_the_study_sets_itself(capsys):
    assert main(["transfer", "--study", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for rest in ("--rows says what", "--labels says how many", "--seeds says which"):
        assert f"set by the study: {rest}" in said


def test_the_command_line_reads_it(tmp_path, capsys):
    config = config_of(tmp_path / "out", rows=("scratch",), seeds=0)
    file = tmp_path / "study.yaml"
    file.write_text(to_yaml(config))
    assert main(["transfer", "--study", "--config", str(file), "--rows", "scratch", "task", "--print-config"]) == 0
    assert "- task" in capsys.readouterr().out
    assert main(["transfer", "--study", "--config", str(file)]) == 0
    assert "of no use to any of these rows: sets" in capsys.readouterr().out
    assert "scratch" in (tmp_path / "out" / "study.md").read_text()
