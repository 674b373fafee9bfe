"""`attar predict`: which model is meant, and that nothing is lost where it says nothing."""

from __future__ import annotations

import csv
import shutil

import pytest

import attar
from attar import PredictConfig
from attar.cli import main
from attar.errors import ConfigError, DataError, ModelReferenceError
from attar.export import write_task_model
from attar.models import TaskModel, load_backbone
from attar.recipes.predict import predict
from attar.utils.run_directory import open_run, record_settings, start_run
from small_runs import write_pictures
from small_transfer import STUDENT


def write_model(folder, reference=STUDENT, *, of_pixels=False):
    make = TaskModel.segmenter if of_pixels else TaskModel.classifier
    backbone = load_backbone(reference, weights="random", img_size=32)
    write_task_model(folder, make(backbone, ["cat", "dog"]), card="a card")


def config(model, tmp_path, **changes):
    settings = {"model": str(model), "data": str(tmp_path / "images"), "out": str(tmp_path / "out"), "workers": 0}
    return PredictConfig.build(settings | {"device": "cpu"} | changes)


def begin_run(folder):
    """What a run of attar transfer is before its first stage is done."""
    settings = attar.TransferConfig(student=STUDENT, labelled="labelled", pretrain="none", out=str(folder))
    with open_run(folder, settings) as run:
        record_settings(start_run(run), settings, version="0")
    return folder


def test_a_folder_that_does_not_exist_is_told(tmp_path):
    with pytest.raises(ModelReferenceError, match="nowhere does not exist"):
        predict(config(tmp_path / "nowhere", tmp_path))


def test_an_unfinished_run_says_so_and_what_of_it_can_be_used(tmp_path):
    write_pictures(tmp_path / "images", 2)
    run = begin_run(tmp_path / "run")
    with pytest.raises(ModelReferenceError, match=r"run of attar transfer that is not finished.*Nothing in it"):
        predict(config(run, tmp_path))
    write_model(run / "transfer/student")
    write_model(run / "adapt/teacher")
    with pytest.raises(ModelReferenceError) as caught:
        predict(config(run, tmp_path))
    assert "the same attar transfer command goes on" in str(caught.value)
    assert str(caught.value).endswith(f"already: {run / 'adapt/teacher'}, {run / 'transfer/student'}.")
    assert predict(config(run / "adapt/teacher", tmp_path)).images == 2
    shutil.move(run / "transfer/student", run / "student")  # a finished one
    assert predict(config(run, tmp_path)).images == 2


@pytest.mark.parametrize("of_pixels", [False, True])
def test_what_stood_there_stays_where_no_image_can_be_read(of_pixels, tmp_path):
    write_model(tmp_path / "model", of_pixels=of_pixels)
    write_pictures(tmp_path / "images", 2)
    settings = config(tmp_path / "model", tmp_path)
    predict(settings)
    written = tmp_path / "out/classes.csv" if of_pixels else tmp_path / "out"
    before = written.read_bytes()
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of the 2 images can be read, such as 000\.png"):
        predict(settings)
    assert written.read_bytes() == before
    assert not list(written.parent.glob(".*"))


def test_a_module_of_ones_own_is_named_and_then_predicts(tmp_path, monkeypatch):
    (tmp_path / "own_student.py").write_text(
        "from torch import nn\n\ndef make(width=8):\n    return nn.Sequential(nn.Conv2d(3, width, 8, 8), nn.ReLU())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    reference = "module:own_student:make?width=12"
    write_model(tmp_path / "model", reference)
    write_pictures(tmp_path / "images", 2)
    with pytest.raises(ModelReferenceError, match=r"--reference module:own_student:make\?width=12$"):
        predict(config(tmp_path / "model", tmp_path))
    words = ["predict", str(tmp_path / "model"), "--data", str(tmp_path / "images"), "--out", str(tmp_path / "out.csv")]
    assert main([*words, "--reference", reference, "--workers", "0", "--device", "cpu"]) == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert {row["class"] for row in rows} <= {"cat", "dog"}
    assert len(rows) == 2


def test_a_reference_is_refused_where_the_folder_needs_none(tmp_path):
    write_model(tmp_path / "model")
    write_pictures(tmp_path / "images", 2)
    with pytest.raises(ConfigError, match=r"reference is resnet18, and .*model says all"):
        predict(config(tmp_path / "model", tmp_path, reference="resnet18"))
