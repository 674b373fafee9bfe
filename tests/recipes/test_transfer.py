"""`attar transfer` through all stages on playground scenes, and what each stage leaves."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import timm
import torch
from safetensors.torch import load_file

import attar
from attar.cli import main
from attar.errors import ConfigError, RunDirectoryError
from attar.export import read_task_model
from attar.methods import TaskTransfer
from attar.methods.teacher_cache import TeacherCache
from attar.recipes.quickstart import playground_teacher
from small_runs import environment, write_pictures
from small_transfer import STUDENT, config_of


def tensors_of(folder):
    return (folder / "model.safetensors").read_bytes()


def test_one_command_runs_all_stages_and_leaves_what_others_can_use(tmp_path):
    report = attar.transfer(config_of(tmp_path / "run"))
    run = report.run
    assert {path.name for path in run.iterdir() if path.is_dir()} == {
        *("adapt", "transfer", "finetune", "scratch", "student", "results")
    }
    teacher = read_task_model(run / "adapt/teacher")
    assert teacher.class_names[:2] == ("circle", "square")
    value = {name: json.loads((run / f"results/{name}-test-top1.json").read_text())["value"] for name in ("adapt",)}
    assert value["adapt"] > 0.5  # the shipped teacher knows these scenes
    ours = read_task_model(report.student)
    theirs = timm.create_model(f"local-dir:{report.student}", pretrained=True).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = theirs((images - ours.backbone.mean) / ours.backbone.std)
    torch.testing.assert_close(logits, ours.logits(images))
    assert theirs.num_classes == 14
    assert json.loads((report.student / "config.json").read_text())["label_names"] == list(ours.class_names)
    stages = report.compute["stages"]
    macs_s, macs_t = report.compute["student_macs"], report.compute["teacher_macs"]
    assert stages["transfer"]["macs"] == 4 * 8 * (macs_t + 3 * macs_s)  # spec 3.4
    assert stages["finetune"]["macs"] == stages["finetune"]["images"] * 3 * macs_s
    assert report.verdict.split(":")[0] in ("It helped", "Not proven", "It harmed")


def test_images_to_choose_by_that_are_in_the_pool_are_told(tmp_path, capsys):
    labelled = "playground:3?n=70"
    attar.transfer(config_of(tmp_path / "run", labelled=labelled, val=None, labels_per_class=5, pool=labelled))
    said = capsys.readouterr().out
    assert "           14 of the 14 val images are in --pool, so the student learns from them" in said
    assert "test images are in --pool" not in said
    assert said.index("  pool  ") < said.index("  teacher  ") < said.index("  adapt  ")


def test_lists_as_apple_publishes_them_go_through_all_stages(tmp_path, capsys):
    lists = {"train": 5, "val": 1, "test": 2}  # images of each class
    for name in ("Forest", "River"):
        write_pictures(tmp_path / "2750" / name, sum(lists.values()))
    first = 0
    for part, count in lists.items():
        lines = [f"{number:03}.png,{name}" for name in ("River", "Forest") for number in range(first, first + count)]
        (tmp_path / f"{part}.txt").write_text("\n".join(lines) + "\n")
        first += count
    words = ["transfer", "--teacher", str(playground_teacher()), "--student", STUDENT, "--pool", str(tmp_path / "2750")]
    for flag, part in (("--labelled", "train"), ("--val", "val"), ("--test", "test")):
        words += [flag, str(tmp_path / f"{part}.txt")]
    words += ["--images-root", str(tmp_path / "2750"), "--labels-per-class", "3", "--out", str(tmp_path / "run")]
    words += [
        "--img-size",
        "32",
        "--teacher-img-size",
        "64",
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--workers",
        "0",
    ]
    for stage in ("transfer", "finetune"):
        words += [f"--{stage}.max-steps", "2", f"--{stage}.batch-size", "4"]
    assert main(words) == 0
    assert "6 train, 2 val, 4 test; 2 classes: Forest, River" in capsys.readouterr().out
    for part, count in (("val", 2), ("test", 4)):
        result = json.loads((tmp_path / f"run/results/finetune-{part}-top1.json").read_text())
        assert (result["n"], result["protocol"]["chosen_on"]) == (count, "val")
    assert read_task_model(tmp_path / "run/student").class_names == ("Forest", "River")


def test_done_stages_are_not_repeated_and_other_settings_are_refused(tmp_path, capsys):
    config = config_of(tmp_path / "run")
    first = attar.transfer(config)
    weights, results = tensors_of(first.student), [r.value for r in first.results]
    capsys.readouterr()
    again = attar.transfer(config)
    said = capsys.readouterr().out
    assert "adapt    done before" in said
    assert said.count("(complete)") == 3
    assert "step 1 " not in said
    assert tensors_of(again.student) == weights
    assert [r.value for r in again.results] == results
    assert again.verdict == first.verdict
    with pytest.raises(RunDirectoryError, match=r"transfer\.temperature was 1\.0, now 2\.0"):
        attar.transfer(config_of(tmp_path / "run", transfer={"temperature": 2.0, "max_steps": 4, "batch_size": 8}))


@pytest.mark.parametrize("lost", ["transfer", "finetune"])
def test_a_stage_that_was_lost_is_done_again_alike(lost, tmp_path):
    config = config_of(tmp_path / "run")
    first = attar.transfer(config)
    weights = tensors_of(first.student)
    shutil.rmtree(first.run / lost)
    assert tensors_of(attar.transfer(config).student) == weights


@pytest.mark.parametrize("pretrain", ["none", "contrastive", "cosine", "hint", "proteus"])
def test_baselines_come_from_the_same_command(pretrain, tmp_path):
    changes = {"teacher_img_size": 32} | ({"teacher": None, "pool": ()} if pretrain == "none" else {})
    transfer = {"max_steps": 2, "batch_size": 8}
    report = attar.transfer(config_of(tmp_path / "run", pretrain=pretrain, transfer=transfer, **changes))
    assert not (report.run / "adapt").exists()
    assert (report.run / "scratch").exists() is (pretrain != "none")
    assert ("Nothing was measured beside it" in report.verdict) is (pretrain == "none")
    if pretrain != "none":
        attar.load_backbone(str(report.run / "transfer/student"))


@pytest.mark.parametrize("mode", ["lora", "full", "head_then_full"])
def test_the_teacher_is_adapted_in_other_ways(mode, tmp_path):
    adapt = {"mode": mode, "max_steps": 2, "batch_size": 4, "every": 1}
    report = attar.transfer(config_of(tmp_path / "run", adapt=adapt, scratch=False))
    before = attar.load_backbone(str(playground_teacher())).model.state_dict()
    after = read_task_model(report.run / "adapt/teacher").backbone.model.state_dict()
    assert before.keys() == after.keys()  # merged: an ordinary model


@pytest.mark.slow
@pytest.mark.parametrize("student", ["fastvit_t8", "mobilevitv2_050"])
def test_mobile_students_with_batch_norm_learn_and_ship(student, tmp_path):
    settings = {"max_steps": 2, "batch_size": 8}
    config = config_of(
        tmp_path / "run", student=student, img_size=64, transfer=settings, finetune=settings, scratch=False
    )
    report = attar.transfer(config)
    ours = read_task_model(report.student)
    theirs = timm.create_model(f"local-dir:{report.student}", pretrained=True).eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = theirs((images - ours.backbone.mean) / ours.backbone.std)
    torch.testing.assert_close(logits, ours.logits(images), atol=1e-4, rtol=1e-3)


def test_finetuning_starts_from_what_was_transferred_head_included(tmp_path):
    still = {"max_steps": 1, "batch_size": 8, "optim": {"lr": 1e-30}}  # what comes out is what went in
    report = attar.transfer(config_of(tmp_path / "run", finetune=still, scratch=False))
    transferred, finetuned = (
        load_file(report.run / name / "student/model.safetensors") for name in ("transfer", "finetune")
    )
    assert "head.weight" in transferred
    for name, tensor in transferred.items():
        torch.testing.assert_close(finetuned[name], tensor, rtol=0, atol=0)


def test_labels_on_the_pool_change_nothing(tmp_path):
    # a folder of classes and the same files without: other paths, equal images in equal order
    for number, name in enumerate(("a", "b")):
        write_pictures(tmp_path / "labelled" / name, 4)
        for path in sorted((tmp_path / "labelled" / name).iterdir()):
            target = tmp_path / "plain" / f"{number}{path.name}"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
    students = [
        attar.transfer(config_of(tmp_path / f"run-{pool}", pool=str(tmp_path / pool), scratch=False)).run
        / "transfer/student"
        for pool in ("labelled", "plain")
    ]
    assert tensors_of(students[0]) == tensors_of(students[1])


def test_a_cached_teacher_is_asked_once_a_view_and_teaches_the_same(tmp_path, monkeypatch):
    section = {"max_steps": 20, "batch_size": 16, "optim": {"lr": 1e-3}, "cached_views": 2, "feature_weight": 0.5}
    changes = {"transfer": section, "scratch": False}  # five epochs of 64 images, of which the first two are asked for
    asked = []
    ask = TaskTransfer.ask
    monkeypatch.setattr(TaskTransfer, "ask", lambda self, views: asked.append(len(views)) or ask(self, views))
    cached = attar.transfer(config_of(tmp_path / "cached", **changes))
    assert sum(asked) == 1 + 2 * 64  # one view for the shapes of what it says
    monkeypatch.setattr(TeacherCache, "__call__", lambda self, batch, ask: ask(batch.views))
    plain = attar.transfer(config_of(tmp_path / "plain", **changes))
    assert sum(asked) == 1 + (2 + 5) * 64
    ours, theirs = (load_file(report.run / "transfer/student/model.safetensors") for report in (cached, plain))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-6)


def test_what_is_missing_is_told():
    with pytest.raises(ConfigError, match="'pool' is missing: pretrain task needs it"):
        config_of("out", pool=())
    with pytest.raises(ConfigError, match="pretrain contrastive compares the images of a batch"):
        config_of("out", pretrain="contrastive", transfer={"optim": {"accumulate": 2}})
    with pytest.raises(ConfigError, match="small_size is 16, and views of attar transfer have one size"):
        config_of("out", pretrain="proteus", transfer={"proteus": {"small_size": 16}})


def test_predictions_of_a_folder_name_unreadable_files(tmp_path, capsys):
    report = attar.transfer(config_of(tmp_path / "run", pretrain="none", teacher=None, pool=()))
    write_pictures(tmp_path / "images", 3)
    (tmp_path / "images/001.png").write_bytes(b"no image")
    out = tmp_path / "out.csv"
    assert (
        main(["predict", str(report.run), "--data", str(tmp_path / "images"), "--out", str(out), "--top-k", "2"]) == 0
    )
    assert "unreadable  001.png" in capsys.readouterr().out
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["path"] for row in rows] == ["000.png", "001.png", "002.png"]
    assert not rows[1]["class"]
    first, second = float(rows[0]["probability"]), float(rows[0]["probability_2"])
    assert 1 >= first >= second > 0
    assert rows[0]["class"] in read_task_model(report.student).class_names


@pytest.mark.slow
def test_each_stage_goes_on_after_sigterm_to_the_same_bytes(tmp_path):
    stages = ("adapt", "transfer", "finetune")
    settings = {"max_steps": 40, "batch_size": 8, "every": 10, "optim": {"lr": 1e-3}}
    changes = {"adapt": settings | {"mode": "lora"}, "transfer": settings, "finetune": settings, "log_every": 1}
    straight = attar.transfer(config_of(tmp_path / "straight", scratch=False, **changes))
    config = config_of(tmp_path / "stopped", scratch=False, **changes)
    from attar.config.files import to_yaml

    (tmp_path / "c.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "attar.cli", "transfer", "--config", str(tmp_path / "c.yaml")]
    for stage in stages:
        process = subprocess.Popen(command, env=environment(OMP_NUM_THREADS="1"), stdout=subprocess.DEVNULL)
        metrics, deadline = tmp_path / "stopped" / stage / "metrics.jsonl", time.monotonic() + 120
        while not metrics.is_file() or len(metrics.read_text().splitlines()) < 6:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=120) == 143
    assert main(["transfer", "--config", str(tmp_path / "c.yaml")]) == 0
    for part in ("adapt/teacher", "transfer/student", "student"):
        assert tensors_of(tmp_path / "stopped" / part) == tensors_of(straight.run / part), part
