"""`attar plan` of each verb: what it finds, what it reckons, and that nothing stays behind."""

import json
import re
import sys
import tempfile
from pathlib import Path

import pytest

import attar
from attar.cli import PLAN_FLAGS, PLANNED, main
from attar.config import Config
from attar.errors import ConfigError
from attar.recipes.plan import PLANNERS
from attar.utils.io import read_lines
from small_runs import MODEL, distill_words, under_licence, write_pictures
from small_transfer import config_of

QUICK = attar.PlanConfig(probe_steps=1)


@pytest.fixture(autouse=True)
def _own_folder_for_temporary_files(tmp_path_factory, monkeypatch):
    """Where what a plan leaves behind would lie."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


def distillation(folder, **changes):
    settings = {
        "teacher": MODEL,
        "teacher_weights": "random",
        "student": MODEL,
        "data": "playground:0?n=40",
        "monitor": "playground:1?n=60",
        "out": str(folder / "out"),
        "img_size": 32,
        "batch_size": 8,
        "max_steps": 50,
        "workers": 0,
        "precision": "fp32",
        "device": "cpu",
    }
    return attar.DistillConfig.build(settings | changes)


def times(planned):
    return {part.what: part.times for part in planned.parts}


def subjects(planned):
    return {concern.subject for concern in planned.concerns}


# --- distill --------------------------------------------------------------------------------------------------------


def test_a_plan_counts_what_the_run_then_does(tmp_path):
    config = distillation(tmp_path, max_steps=7, monitoring={"every": 3}, checkpoint={"every": 2, "keep": 9})
    counted = times(attar.plan(config, QUICK))
    assert not (tmp_path / "out").exists()
    report = attar.distill(config)
    checks = [line for line in read_lines(report.run / "metrics.jsonl") if "student_knn_select" in line]
    assert counted["training steps"] == 7
    assert counted["checks by the monitor"] == 2 * len(checks) == 6  # of the student and its average
    assert counted["checkpoints"] == len(list((report.run / "checkpoints").iterdir())) == 4


def test_a_run_that_is_there_already_is_told(tmp_path):
    config = distillation(tmp_path, max_steps=2, monitor=None)
    assert attar.plan(config, QUICK).found["training"]["learning rate"] == "7.81e-06"
    attar.distill(config)
    before = sorted((tmp_path / "out").rglob("*"))

    def told(config):
        return [concern.text for concern in attar.plan(config, QUICK).concerns if concern.subject == "directory"]

    assert [text.partition(": ")[2] for text in told(config)] == [
        "the command goes on with it, or tells its results again where it has ended. Choose a new --out to begin"
        " another. The figures here are of a whole run."
    ]
    (other,) = told(config.replace(batch_size=4))
    assert "holds a run with other settings: batch_size was 8, now 4. Choose a new --out" in other
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_the_licence_of_the_weights_that_a_student_starts_from_is_told(tmp_path):
    start = {"student": under_licence(tmp_path / "start", "cc-by-nc-4.0"), "student_weights": "pretrained"}
    alone = config_of(tmp_path / "task", pretrain="none", teacher=None, pool=(), **start)
    for config in (distillation(tmp_path, max_steps=2, **start), alone):
        (told,) = [concern.text for concern in attar.plan(config, QUICK).concerns if concern.subject == "licence"]
        assert "**does not allow commercial use**" in told


def test_disk_and_memory_are_those_of_the_run(tmp_path):
    config = distillation(tmp_path, max_steps=5, checkpoint={"keep": 1})
    planned = attar.plan(config, QUICK)
    report = attar.distill(config)
    found = sum(path.stat().st_size for path in (report.run / "checkpoints").rglob("*") if path.is_file())
    assert planned.disk["2 checkpoints"] / 2 == pytest.approx(found, rel=0.05)  # the new one comes before the old goes
    students = [*report.run.glob("student*"), *report.run.glob("best/step-*")]
    assert 3 <= len(students) <= 4  # shown, last, and best by step for what checkpoints name
    weights = (report.student / "model.safetensors").stat().st_size
    assert planned.disk["4 students"] / 4 == pytest.approx(weights, rel=0.2)
    assert (planned.memory.peak is None) == (sys.platform != "linux")
    assert planned.memory.peak is None or planned.memory.peak > 100_000_000


def test_a_plan_names_the_settings_that_are_not_the_default_and_holds_all(tmp_path):
    planned = attar.plan(distillation(tmp_path, monitor=None, checkpoint={"keep": 1}), QUICK)
    assert planned.found["settings"]["checkpoint.keep"] == 1
    assert planned.found["settings"]["student"] == MODEL
    assert not {"seed", "checkpoint.every", "monitor"} & set(planned.found["settings"])
    assert attar.DistillConfig.build(planned.settings) == distillation(tmp_path, monitor=None, checkpoint={"keep": 1})


def test_without_a_monitor_nobody_judges_and_the_plan_says_so(tmp_path):
    planned = attar.plan(distillation(tmp_path, monitor=None), QUICK)
    assert not any("judged" in what or "checks" in what for what in times(planned))
    assert subjects(planned) == {"few images", "learning rate", "random teacher", "no monitor"}


def test_a_run_shorter_than_the_probe_is_probed_whole(tmp_path):
    planned = attar.plan(distillation(tmp_path, max_steps=1, monitor=None), attar.PlanConfig(probe_steps=5))
    assert times(planned)["training steps"] == 1
    assert planned.images_per_second > 0


def test_images_that_judge_among_those_that_teach_are_found(tmp_path):
    write_pictures(tmp_path / "images" / "a")
    write_pictures(tmp_path / "images" / "b")
    same = distillation(tmp_path, data=str(tmp_path / "images"), monitor=str(tmp_path / "images"))
    assert "test images in training data" in subjects(attar.plan(same, QUICK))
    assert "test images in training data" not in subjects(attar.plan(distillation(tmp_path), QUICK))


def test_other_grids_are_a_warning_where_tokens_are_resampled(tmp_path):
    finer = {"teacher": MODEL.replace("patch_size=8", "patch_size=4"), "monitor": None}
    resampled = distillation(tmp_path, **finer, proteus={"resample_tokens": True})
    assert "grids do not match" in subjects(attar.plan(resampled, QUICK))
    tokens_alone = {"resample_tokens": True, "feature_weight": 0.0, "patch_weight": 0.0}
    assert "grids do not match" not in subjects(
        attar.plan(distillation(tmp_path, **finer, proteus=tokens_alone), QUICK)
    )


def test_the_price_of_kept_answers_is_what_the_run_then_pays(tmp_path):
    changes = {"max_steps": 30, "cached_views": 2, "cache": {"format": "int8"}, "monitor": None}
    config = distillation(tmp_path, **changes)
    planned = attar.plan(config, QUICK)
    counted = times(planned)
    assert counted["training steps, teacher asked"] == pytest.approx(10)  # 40 images, 2 views, by 8
    assert counted["training steps, answers read"] == pytest.approx(20)
    assert "answers are not read again" not in subjects(planned)
    assert any("int8" in line for line in planned.found["answers"])
    report = attar.distill(config)
    sizes = [(report.run / "teacher_cache" / name).stat().st_size for name in ("values.i8", "sums.u32")]
    assert planned.disk["teacher's answers"] == sum(sizes)


def test_steps_of_small_views_are_priced_apart(tmp_path):
    model = "vit_tiny_patch16_224?patch_size=4&embed_dim=96&depth=2&num_heads=2&dynamic_img_size=true"
    changes = {"teacher": model, "student": model, "img_size": 64, "batch_size": 24, "max_steps": 50, "monitor": None}
    config = distillation(tmp_path, **changes, proteus={"small_size": 16, "small_share": 0.3})
    parts = {part.what: part for part in attar.plan(config, attar.PlanConfig(probe_steps=3)).parts}
    small, whole = parts["training steps, small views"], parts["training steps, whole views"]
    assert (small.times, whole.times) == (15, 35)
    assert small.seconds > 0
    assert whole.seconds > 0


def test_a_plan_of_a_run_with_one_small_step_is_made_too(tmp_path):
    model = f"{MODEL}&dynamic_img_size=true"
    changes = {"teacher": model, "student": model, "max_steps": 3, "monitor": None}
    counted = times(attar.plan(distillation(tmp_path, **changes, proteus={"small_size": 16}), QUICK))
    assert counted["training steps, small views"] == 1
    assert counted["training steps, whole views"] == 2


def test_answers_that_are_asked_for_beforehand_are_priced_apart(tmp_path):
    changes = {"max_steps": 5, "cached_views": 2, "cache": {"beforehand": True}, "monitor": None}
    config = distillation(tmp_path, **changes)
    planned = attar.plan(config, QUICK)
    counted = times(planned)
    assert counted["batches, teacher asked beforehand"] == pytest.approx(10)  # 40 images, 2 views, by 8: all of them
    assert counted["training steps, answers read"] == pytest.approx(5)
    report = attar.distill(config)
    sizes = [(report.run / "teacher_cache" / name).stat().st_size for name in ("values.f32", "sums.u32")]
    assert planned.disk["teacher's answers"] == sum(sizes)


def test_a_plan_leaves_a_folder_of_answers_alone_and_says_when_it_is_of_no_use(tmp_path):
    changes = {"max_steps": 5, "cached_views": 2, "cache": {"folder": str(tmp_path / "answers")}, "monitor": None}
    planned = attar.plan(distillation(tmp_path, **changes), QUICK)
    assert "answers are not read again" in subjects(planned)  # five steps of eight are one epoch
    assert not (tmp_path / "answers").exists()


# --- the other verbs ------------------------------------------------------------------------------------------------


def test_a_transfer_is_planned_stage_by_stage(tmp_path):
    config = config_of(tmp_path / "out", adapt={"mode": "lora", "max_steps": 2, "batch_size": 4, "every": 1})
    planned = attar.plan(config, QUICK)
    counted = times(planned)
    assert counted["adapt: head fitted"] == 1
    assert counted["adapt: training steps at most"] == 2
    assert counted["transfer: training steps at most"] == 4
    assert counted["finetune: training steps at most"] == counted["scratch: training steps at most"] == 4
    assert counted["adapt: validations"] == 3  # two steps, and what it starts from
    assert counted["finetune: model written"] == 2
    assert {"few images", "few images to choose by", "few images to judge"} <= subjects(planned)
    assert not (tmp_path / "out").exists()


def test_images_of_the_pool_that_choose_or_are_reported_on_are_told_apart(tmp_path):
    pool = ["playground:3?n=140", "playground:4?n=7"]
    planned = attar.plan(config_of(tmp_path / "out", val=None, labels_per_class=5, pool=pool), QUICK)
    said = {concern.subject: concern.text for concern in planned.concerns}
    assert said["val images in training data"].startswith("14 of the 14 val images are in --pool")
    assert said["test images in training data"].startswith("7 of the 42 test images are in --pool")


def test_steps_that_ask_the_teacher_and_steps_that_read_its_answers_are_told_apart(tmp_path):
    section = {"max_steps": 40, "batch_size": 8, "cached_views": 2, "optim": {"lr": 1e-3}}
    planned = attar.plan(config_of(tmp_path / "out", transfer=section), QUICK)
    counted = times(planned)
    assert counted["transfer, teacher asked: training steps at most"] == pytest.approx(16)  # 64 images, 2 views, by 8
    assert counted["transfer, answers read: training steps at most"] == pytest.approx(24)
    assert planned.disk["teacher's answers"] > 64 * 2 * 4 * 7  # float32 of seven classes, and checksums


def test_a_transfer_from_labels_alone_has_one_stage(tmp_path):
    counted = times(attar.plan(config_of(tmp_path / "out", pretrain="none", teacher=None, pool=()), QUICK))
    assert {what.partition(":")[0] for what in counted} == {"images opened, models loaded", "finetune"}


def test_a_pool_is_planned_and_then_as_large_as_planned(tmp_path):
    settings = {"model": MODEL, "weights": "random", "img_size": 32, "data": "playground:0?n=300", "workers": 0}
    config = attar.EmbedConfig(**settings, batch_size=16, shard_size=100, out=str(tmp_path / "pool"), device="cpu")
    planned = attar.plan(config, attar.PlanConfig(probe_steps=4))
    assert times(planned)["images embedded"] == 300
    assert not (tmp_path / "pool").exists()
    attar.embed(config)
    shards = sum(path.stat().st_size for path in (tmp_path / "pool").glob("*.parquet"))
    assert planned.disk["vectors"] == pytest.approx(shards, rel=0.5)
    queries = {"queries": "playground:5?n=30", "budget": 50, "out": str(tmp_path / "set"), "workers": 0}
    found = attar.plan(attar.CurateConfig(pool=str(tmp_path / "pool"), **queries, device="cpu"), QUICK)
    assert found.found["queries"] == "30 images"
    assert times(found)["queries seen"] == 30
    assert not (tmp_path / "set").exists()


def test_an_evaluation_says_which_data_sets_are_missing(tmp_path):
    config = attar.EvaluateConfig(
        model=MODEL,
        weights="random",
        tasks=("knn:playground:1?n=140", "proteus12"),
        data_root=str(tmp_path),
        out=str(tmp_path / "out"),
        img_size=32,
        workers=0,
        device="cpu",
    )
    planned = attar.plan(config, QUICK)
    assert len(planned.found["missing"]) == 12
    assert "logistic:food101 is skipped" in subjects(planned)
    assert times(planned)["images seen by model"] == 140
    assert not (tmp_path / "out").exists()


# --- the command line -----------------------------------------------------------------------------------------------


def test_the_command_line_prints_writes_json_and_leaves_out_alone(tmp_path, capsys):
    write_pictures(tmp_path / "images")
    words = distill_words(tmp_path, "--probe-steps", "1", "--price-per-hour=3", "--json", str(tmp_path / "plan.json"))
    assert main(["plan", *words]) == 0
    told = json.loads((tmp_path / "plan.json").read_text())
    out = capsys.readouterr().out
    assert "nothing was written into --out" in out
    assert "cost     " in out
    assert told["cost"] == pytest.approx(3 * told["seconds"] / 3600)
    assert told["settings"]["batch_size"] == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "plan.json"]


def test_help_names_the_flags_and_the_verbs(capsys):
    assert main(["plan", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in (*PLAN_FLAGS, *PLANNED))
    assert main(["plan", "distill", "--help"]) == 0
    assert "--probe-steps" in capsys.readouterr().out


def test_a_wrong_setting_is_the_verbs_own_error(capsys):
    assert main(["plan", "distill", "--teacher", "t", "--batchsize", "3"]) == 2
    assert "Did you mean '--batch-size'" in capsys.readouterr().err
    assert (
        main(["plan", "distill", "--probe-steps", "0", "--teacher", "t", "--student", "s", "--data", "d", "--out", "o"])
        == 2
    )
    assert "'probe_steps' is '0'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["predict"], ["curate", "--sentences", "x"], ["transfer", "--study"], ["nothing"]])
def test_a_verb_without_a_plan_names_those_that_have_one(words, capsys):
    assert main(["plan", *words]) == 2
    said = capsys.readouterr().err
    assert f"no plan for '{' '.join(words[:2])}'" in said
    assert ", ".join(PLANNED) in said


def test_the_plan_of_quickstart_takes_its_settings(tmp_path, capsys):
    assert main(["plan", "quickstart", "--out", str(tmp_path / "run"), "--print-config"]) == 0
    assert capsys.readouterr().out == f"out: {tmp_path / 'run'}\n"


@pytest.mark.slow
def test_quickstart_is_planned(tmp_path, capsys):
    assert main(["plan", "quickstart", "--out", str(tmp_path / "run"), "--probe-steps", "1"]) == 0
    assert re.search(r"training steps +700 ", capsys.readouterr().out)
    assert not (tmp_path / "run").exists()


def test_a_misspelt_verb_is_told_without_its_settings(capsys):
    assert main(["plan", "distil", "--teacher", "t"]) == 2
    assert "there is no plan for 'distil'. Did you mean 'distill'? There is one for" in capsys.readouterr().err


def test_every_verb_that_is_offered_has_a_plan():
    assert {verb.model for verb in PLANNED.values()} == set(PLANNERS)


def test_settings_without_a_plan_and_several_ranks_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="no plan for Config"):
        attar.plan(Config())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 ranks"):
        attar.plan(distillation(tmp_path))


def test_what_the_verb_refuses_the_plan_refuses(tmp_path):
    with pytest.raises(attar.UserError, match="does not exist"):
        attar.plan(distillation(tmp_path, data=str(Path("nowhere") / "at all")), QUICK)
