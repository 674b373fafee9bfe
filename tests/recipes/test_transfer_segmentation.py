"""`attar transfer --task segmentation` through all stages on playground scenes, and what it leaves."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import attar
from attar.cli import main
from attar.data.playground import CLASS_NAMES
from attar.errors import CheckpointError, ConfigError, DataError, RunDirectoryError, ShapeError
from attar.export import read_task_model
from attar.models import TaskModel, load_backbone
from attar.recipes.quickstart import playground_teacher
from attar.recipes.tasks import open_task
from small_pairs import write_pair
from small_runs import picture, write_pictures

STUDENT = "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=1&num_heads=2"
STEPS = {"max_steps": 2, "batch_size": 4}


def config_of(out, **changes):
    settings = {
        "task": "segmentation",
        "teacher": str(playground_teacher()),
        "student": STUDENT,
        "labelled": "playground:3?n=20&variety=0",
        "pool": "playground:0?n=32&variety=0",
        "labels_share": 0.5,
        "img_size": 32,
        "teacher_img_size": 64,
        "out": str(out),
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
        "transfer": {**STEPS, "optim": {"lr": 1e-3}},
        "finetune": {**STEPS, "every": 1},
        "adapt": {**STEPS, "every": 1},
    }
    return attar.TransferConfig.build(settings | changes)


def tensors_of(folder):
    return b"".join((folder / name).read_bytes() for name in ("model.safetensors", "head.safetensors"))


def test_one_command_runs_all_stages_and_is_not_repeated(tmp_path, capsys):
    report = attar.transfer(config_of(tmp_path / "run"))
    said = capsys.readouterr().out
    assert "task     segmentation" in said
    assert "mIoU" in said
    assert "top-1" not in said
    assert "6 train, 4 val, 4 test; 15 classes" in said
    assert {path.name for path in report.run.iterdir() if path.is_dir()} == {
        *("adapt", "transfer", "finetune", "scratch", "student", "results")
    }
    result = json.loads((report.run / "results/adapt-test-miou.json").read_text())
    assert list(result["details"]["iou"]) == ["background", *CLASS_NAMES]
    assert result["details"]["iou"]["background"] > 0.5  # the shipped teacher tells ground from shapes
    assert result["ci95"][0] <= result["value"] <= result["ci95"][1]
    assert result["protocol"]["labels_share"] == 0.5
    assert "mean IoU" in report.verdict
    assert report.compute["stages"]["adapt"]["images"] == 6 + 4  # a window each
    model = read_task_model(report.student)
    assert (model.task, model.head_kind, model.class_names[1]) == ("segmentation", "linear", "circle")
    card = (report.student / "README.md").read_text()
    assert "| mIoU |" in card
    assert "label_names" not in card
    weights = tensors_of(report.student)
    again = attar.transfer(config_of(tmp_path / "run"))
    assert capsys.readouterr().out.count("(complete)") == 3
    assert tensors_of(again.student) == weights
    assert [r.value for r in again.results] == [r.value for r in report.results]
    with pytest.raises(RunDirectoryError, match=r"labels_share was 0\.5, now 0\.25"):
        attar.transfer(config_of(tmp_path / "run", labels_share=0.25))


@pytest.mark.parametrize("pretrain", ["none", "contrastive", "cosine", "hint", "proteus"])
def test_baselines_come_from_the_same_command(pretrain, tmp_path):
    changes = {"teacher": None, "pool": ()} if pretrain == "none" else {"transfer": STEPS}
    if pretrain == "proteus":
        changes["transfer"] = {**STEPS, "proteus": {"resample_tokens": True}}
    report = attar.transfer(config_of(tmp_path / "run", pretrain=pretrain, scratch=False, **changes))
    assert not (report.run / "adapt").exists()
    assert "Nothing was measured beside it" in report.verdict
    assert read_task_model(report.student).task == "segmentation"


@pytest.mark.parametrize(("mode", "head"), [("lora", "linear"), ("head_then_full", "linear"), ("full", "deeplabv3")])
def test_the_teacher_is_adapted_in_other_ways_and_students_take_other_heads(mode, head, tmp_path):
    pytest.importorskip("segmentation_models_pytorch")
    adapt = {"mode": mode, "head": head, **STEPS, "every": 1}
    report = attar.transfer(config_of(tmp_path / "run", adapt=adapt, head=head, scratch=False))
    assert read_task_model(report.run / "adapt/teacher").head_kind == head
    ours = read_task_model(report.student)
    assert ours.head_kind == head
    assert ours.logits(torch.rand(1, 3, 32, 32)).shape[:2] == (1, 1 + len(CLASS_NAMES))


def test_what_a_draw_holds(tmp_path):
    # a smaller share is part of a larger one, and those to choose by are among the drawn where none are given
    for part, count in (("train", 16), ("test", 2)):
        for number in range(count):
            write_pair(tmp_path, part, f"{number:02}", np.eye(8, dtype=np.uint8))

    def names(share):
        task = open_task(config_of("out", labelled=str(tmp_path), labels_share=share), workers=0)
        return {part: {pair.name for pair in task.parts[part]} for part in ("train", "val")}

    small, large = names(0.25), names(0.5)
    assert [len(small[part]) for part in ("train", "val")] == [3, 1]
    assert [len(large[part]) for part in ("train", "val")] == [6, 2]
    assert small["train"] | small["val"] < large["train"] | large["val"]
    assert not large["train"] & large["val"]


def test_the_gain_is_paired_and_between_mean_ious(tmp_path):
    task = open_task(config_of(tmp_path), workers=0)
    right, half = torch.tensor([[[4, 0], [0, 4]]] * 6), torch.tensor([[[4, 0], [4, 0]]] * 6)
    gain, (low, high) = task.gain((right,), (half,), seed=0)
    assert gain == pytest.approx(1 - (0.5 + 0) / 2)
    assert low == high == pytest.approx(gain)  # each image says the same


def test_labels_on_the_pool_change_nothing(tmp_path):
    write_pictures(tmp_path / "plain", 6)
    students = []
    for number, pool in enumerate(("a", "b")):  # the same images, in classes that differ
        for path in sorted((tmp_path / "plain").iterdir()):
            folder = tmp_path / pool / ("one" if (int(path.stem) + number) % 2 == 0 or number else "two")
            folder.mkdir(parents=True, exist_ok=True)
    for name, source in (("c", "x"), ("d", "y")):
        for path in sorted((tmp_path / "plain").iterdir()):
            target = tmp_path / name / f"{source}{path.stem}" / path.name
            target.parent.mkdir(parents=True)
            target.write_bytes(path.read_bytes())
        run = attar.transfer(config_of(tmp_path / f"run-{name}", pool=str(tmp_path / name), scratch=False)).run
        students.append(tensors_of(run / "transfer/student"))
    assert students[0] == students[1]


def test_what_does_not_go_together_is_told(tmp_path):
    for changes, said in (
        ({"labels_per_class": 2}, "labels_share draws annotated images"),
        ({"val": "x"}, "images/val"),
        ({"finetune": {"views": {"crop_scale": (0.1, 1.0)}}}, r"dense\.scales says"),
        ({"adapt": {"head": "deeplabv3"}}, r"Try --adapt\.mode full or lora"),
        ({"task": "classification"}, "'labels_share' is 0.5, and the task is classification"),
        ({"task": "classification", "labels_share": None, "head": "deeplabv3"}, "or give --task segmentation"),
        ({"dense": {"scales": (2.0, 1.0)}}, "the smaller one first"),
    ):
        with pytest.raises(ConfigError, match=said):
            config_of("out", **changes)
    with pytest.raises(ShapeError, match=r"dense\.short_side of 32 at least"):
        attar.transfer(config_of(tmp_path / "run", dense={"short_side": 16}))
    with pytest.raises(DataError, match="has no images/train"):
        attar.transfer(config_of(tmp_path / "other", labelled=str(tmp_path)))


def test_other_annotations_are_refused(tmp_path):
    for part, count in (("train", 6), ("test", 2)):
        for number in range(count):
            write_pair(tmp_path / "data", part, f"{number:02}", np.eye(32, dtype=np.uint8))
    config = config_of(tmp_path / "run", labelled=str(tmp_path / "data"), labels_share=None, scratch=False)
    attar.transfer(config)
    for number in range(6):
        write_pair(tmp_path / "data", "train", f"{number:02}", 1 - np.eye(32, dtype=np.uint8))
    with pytest.raises(CheckpointError, match="labelled images"):
        attar.transfer(config)


def test_maps_keep_the_size_of_their_images_and_name_unreadable_ones(tmp_path, capsys):
    model = TaskModel.segmenter(load_backbone(STUDENT, weights="random", img_size=32), ["a", "b", "c"], short_side=40)
    from attar.export import write_task_model

    write_task_model(tmp_path / "model", model, card="a card")
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    picture(1, (70, 50)).save(images / "sub/wide.png")
    picture(2, (20, 30)).save(images / "same.png")
    picture(2, (20, 30)).save(images / "same.jpg")
    (images / "zero.png").write_bytes(b"no image")
    out = tmp_path / "maps"
    assert main(["predict", str(tmp_path / "model"), "--data", str(images), "--out", str(out)]) == 0
    assert "unreadable  zero.png" in capsys.readouterr().out
    rows = {row["path"]: row for row in csv.DictReader((out / "classes.csv").read_text().splitlines())}
    assert set(rows) == {"sub/wide.png", "same.png", "same.jpg", "zero.png"}
    assert {rows[name]["map"] for name in ("same.png", "same.jpg")} == {"same.png.png", "same.jpg.png"}
    found = np.asarray(Image.open(out / rows["sub/wide.png"]["map"]))
    assert found.shape == (50, 70)
    assert found.max() < 3
    assert sum(float(rows["sub/wide.png"][name]) for name in "abc") == pytest.approx(1, abs=1e-5)
    assert float(rows["sub/wide.png"]["b"]) == pytest.approx((found == 1).mean(), abs=1e-5)
    assert not rows["zero.png"]["a"]
