"""Zero-shot tasks and ImageNet's shifts through `attar evaluate`, on a small CLIP and data sets in small."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import attar
from attar.cli import main
from attar.evaluation.datasets import CORRUPTIONS, catalogue
from attar.evaluation.datasets.layouts import imagenet_wnids
from attar.evaluation.task_data import centre_view, open_tests
from attar.evaluation.zero_shot import text_classifier
from attar.models import load_text_tower
from miniatures import MINIATURES
from small_runs import MODEL, picture

pytest.importorskip("open_clip")

import small_clip

ALL = imagenet_wnids()


@pytest.fixture(scope="module", autouse=True)
def _clip() -> None:
    small_clip.register()


@pytest.fixture
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of data sets with the counts of the miniatures."""
    rows = {name: MINIATURES[name].row(name) for name in MINIATURES}
    rows["imagenet"] = rows["imagenet"].with_counts(train=9, test=6)
    splits = dict.fromkeys(rows["imagenet-c"].splits, 2)
    rows["imagenet-c"] = rows["imagenet-c"].with_counts(**splits)
    monkeypatch.setattr(catalogue, "DATASETS", rows)


def words(out: Path, tasks: str, *more: str, model: str = small_clip.REFERENCE) -> list[str]:
    fixed = ("--weights", "random", "--img-size", "32", "--device", "cpu", "--workers", "0")
    return ["evaluate", model, "--tasks", tasks, "--out", str(out), *fixed, *more]


def results(out: Path) -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in sorted((out / "results").glob("*.json"))]
    return {one["task"]: one for one in found}


def write_images(folder: Path, classes: Sequence[str], count: int) -> Path:
    """Noise, in a folder for each class."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture(100 * label + number).save(folder / name / f"{number}.png")
    return folder


def write_imagenet(root: Path) -> None:
    """Three classes of which the last is the last of a head's."""
    classes = (ALL[0], ALL[6], ALL[999])
    write_images(root / "imagenet/train", classes, 3)
    write_images(root / "imagenet/val", classes, 2)


def test_class_names_of_a_folder_classify_its_test_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    folder = write_images(tmp_path / "mine", ("tabby_cat", "dog"), 6)
    assert main(words(tmp_path / "out", f"zero_shot:{folder}")) == 0
    found = results(tmp_path / "out")[f"zero_shot:{folder}"]
    assert (found["metric"], found["n"]) == ("top1", 6)
    assert found["protocol"]["templates"] == 1
    assert set(found["details"]) == {"top1", "mean_per_class"}
    (file,) = (tmp_path / "cache/probes").glob("*/*/classifier-*")
    tower = load_text_tower(small_clip.REFERENCE, weights="random")
    wanted = text_classifier(tower.encode, ["dog", "tabby cat"], ["a photo of a {}."])
    torch.testing.assert_close(load_file(file)["classifier"], wanted)


def test_other_templates_are_another_measurement(tmp_path: Path, capsys) -> None:
    folder = write_images(tmp_path / "mine", ("cat", "dog"), 6)
    task, file = f"zero_shot:{folder}", tmp_path / "templates.txt"
    file.write_text("# ours\nart of a {}.\n\na {} at night\n")
    assert main(words(tmp_path / "out", task)) == 0
    assert main(words(tmp_path / "out", task, "--zero-shot.templates", str(file))) == 0
    assert results(tmp_path / "out")[task]["protocol"]["templates"] == 2
    assert main(words(tmp_path / "out", task, "--zero-shot.templates", str(file))) == 0
    assert "measured before" in capsys.readouterr().out
    file.write_text("a cat\n")
    assert main(words(tmp_path / "out", task, "--zero-shot.templates", str(file))) == 2
    assert "has no place for the class name" in capsys.readouterr().err


@pytest.mark.usefixtures("_table")
def test_a_model_without_text_is_refused_or_skipped_in_a_suite(tmp_path: Path, capsys) -> None:
    MINIATURES["imagenetv2"].make(tmp_path, MINIATURES["imagenetv2"])
    data = ("--data-root", str(tmp_path))
    assert main(words(tmp_path / "out", "zero_shot:imagenetv2", *data, model=MODEL)) == 2
    assert "has no text tower" in capsys.readouterr().err
    assert main(words(tmp_path / "out", "robustness5", *data, model=MODEL)) == 2  # all of it skipped
    assert len(json.loads((tmp_path / "out/skipped.json").read_text())) == 5
    said = capsys.readouterr()
    assert "skipped  zero_shot:imagenetv2" in said.out
    assert "none of the 5 tasks can be done" in said.err


@pytest.mark.usefixtures("_table")
def test_of_a_shifted_set_only_its_own_classes_are_built(tmp_path: Path) -> None:
    """A prediction among all 1,000 would hardly ever be one of the 200."""
    for name in ("imagenet-a", "objectnet"):
        MINIATURES[name].make(tmp_path, MINIATURES[name])
    out, more = tmp_path / "out", ("--data-root", str(tmp_path), "--zero-shot.templates", "plain")
    assert main(words(out, "zero_shot:imagenet-a,zero_shot:objectnet", *more)) == 0
    classes = {task: found["protocol"]["classes"] for task, found in results(out).items()}
    assert classes == {"zero_shot:imagenet-a": 200, "zero_shot:objectnet": 3}


@pytest.mark.usefixtures("_table")
def test_a_head_is_trained_once_and_judged_on_every_shift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    write_imagenet(tmp_path)
    for name in ("imagenet-a", "objectnet"):
        MINIATURES[name].make(tmp_path, MINIATURES[name])
    more = ("--data-root", str(tmp_path), "--linear.epochs", "1", "--linear.batch-size", "4")
    assert main(words(tmp_path / "out", "linear:imagenet", *more, model=MODEL)) == 0
    (head,) = (tmp_path / "cache/probes").glob("*/*/linear-*")  # and no unfinished training beside it
    written = (head / "probe.json").stat().st_mtime_ns
    assert main(words(tmp_path / "out", "linear:imagenet-a,linear:objectnet", *more, model=MODEL)) == 0
    assert (head / "probe.json").stat().st_mtime_ns == written
    found = results(tmp_path / "out")
    assert len({one["protocol"]["head"] for one in found.values()}) == 1
    assert found["linear:imagenet-a"]["protocol"]["head_of"] == "linear:imagenet"
    assert found["linear:objectnet"]["n"] == 9


@pytest.mark.usefixtures("_table")
def test_missing_corruptions_skip_the_task(tmp_path: Path, capsys) -> None:
    for split in (f"{name}/{severity}" for name in CORRUPTIONS for severity in range(1, 6)):
        (tmp_path / "ImageNet-C" / split).mkdir(parents=True)
    (tmp_path / "ImageNet-C/fog/3").rmdir()
    assert main(words(tmp_path / "out", "zero_shot:imagenet-c", "--data-root", str(tmp_path))) == 2
    assert "1 of the 75 splits of ImageNet-C are not in" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("_table")
def test_corruption_error_is_of_all_75_splits(tmp_path: Path) -> None:
    for number, split in enumerate(f"{name}/{severity}" for name in CORRUPTIONS for severity in range(1, 6)):
        for label in (0, 999):
            folder = tmp_path / "ImageNet-C" / split / ALL[label]
            folder.mkdir(parents=True)
            picture(number + label).save(folder / "1.png")
    out, more = tmp_path / "out", ("--data-root", str(tmp_path), "--zero-shot.templates", "plain")
    assert main(words(out, "zero_shot:imagenet-c", *more)) == 0
    found = results(out)["zero_shot:imagenet-c"]
    assert (found["metric"], found["n"]) == ("mce", 2)
    assert len(found["details"]["by_corruption"]) == 15
    assert found["value"] == pytest.approx(sum(found["details"]["by_corruption"].values()) / 15)


def test_each_place_is_seen_as_its_papers_see_it() -> None:
    assert centre_view("imagenet-c", 224, 0.875).crop_pct == 1.0  # they have 224 pixels: no resize before the crop
    assert centre_view("objectnet", 224, 0.875).border == 2
    assert centre_view("kitti_distance", 224, 1.0).squash
    plain = centre_view("imagenet", 224, 0.875)
    assert (plain.crop_pct, plain.border, plain.squash) == (0.875, 0, False)


def test_tests_of_ones_own_are_the_part_that_other_protocols_report(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "mine", ("cat", "dog"), 4)
    config = attar.EvaluateConfig(model="m", tasks="knn:x", out="o")
    tests = open_tests(str(folder), config)
    assert list(tests) == ["test"]
    assert len(tests["test"]) == 4
