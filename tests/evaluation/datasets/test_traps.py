"""What makes each data set go wrong in its own way, and what is said then."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from attar.errors import DataError
from attar.evaluation.datasets import open_dataset, open_training
from attar.evaluation.datasets.layouts import imagenet_wnids
from miniatures import MINIATURES, write_image, write_lines


def make(name: str, root: Path) -> None:
    MINIATURES[name].make(root, MINIATURES[name])


def edit(path: Path, pattern: str, new: str, count: int = 0) -> None:
    text, changes = re.subn(pattern, new, path.read_text(), count=count, flags=re.MULTILINE)
    assert changes
    path.write_text(text)


def zero_based_mat(path: Path, key: str, field: str | None = None) -> None:
    found = loadmat(path)
    if field is None:
        found[key] = found[key] - 1
    else:
        for entry in found[key].flat:
            entry[field] = entry[field] - 1
    savemat(path, {name: value for name, value in found.items() if not name.startswith("__")})


def swapped_flowers(path: Path) -> None:
    found = loadmat(path)
    savemat(path, {"trnid": found["tstid"], "valid": found["valid"], "tstid": found["trnid"]})


def zero_based_cub(path: Path) -> None:
    lines = [line.split() for line in path.read_text().splitlines()]
    write_lines(path, [f"{number} {int(label) - 1}" for number, label in lines])


def without_labels(path: Path) -> None:
    savemat(path, {"annotations": np.array([(1, "00007.jpg")], dtype=[("bbox_x1", "O"), ("fname", "O")])})


Damage = tuple[str, str, Callable[[Path], object], str, str]
DAMAGES: list[Damage] = [
    (
        "cars",
        "stanford_cars/devkit/cars_train_annos.mat",
        lambda path: zero_based_mat(path, "annotations", "class"),
        "train",
        "classes run from 0 to 2; the official file counts from 1 to 3",
    ),
    ("cars", "stanford_cars/cars_test_annos_withlabels.mat", without_labels, "test", "has no labels"),
    (
        "cars",
        "stanford_cars/devkit/cars_meta.mat",
        lambda path: path.write_bytes(b"<html>"),
        "test",
        "not a MATLAB file",
    ),
    (
        "flowers102",
        "flowers-102/imagelabels.mat",
        lambda path: zero_based_mat(path, "labels"),
        "train",
        "classes run from 0 to 2; the official file counts from 1 to 3",
    ),
    ("flowers102", "flowers-102/setid.mat", swapped_flowers, "train", "number of test: the two seem to be swapped"),
    (
        "cub200",
        "CUB_200_2011/image_class_labels.txt",
        zero_based_cub,
        "train",
        "classes run from 0 to 2; the official file counts from 1 to 3",
    ),
    (
        "cub200",
        "CUB_200_2011/train_test_split.txt",
        lambda path: edit(path, r"(\d+) [01]$", r"\1 1"),
        "train",
        "has 15 images",
    ),
    (
        "pets",
        "oxford-iiit-pet/annotations/test.txt",
        lambda path: edit(path, r" 1 1 2$", " 0 1 2"),
        "test",
        "counts from 1 to 3",
    ),
    ("pets", "oxford-iiit-pet/annotations/test.txt", lambda path: edit(path, r" 1 2$", ""), "test", "line 1: 'Sphynx"),
    (
        "aircraft",
        "fgvc-aircraft-2013b/data/images_variant_val.txt",
        lambda path: edit(path, "Cessna 172", "Cessna"),
        "val",
        "names the class 'Cessna', which variants.txt does not",
    ),
    (
        "caltech101",
        "caltech101/101_ObjectCategories/BACKGROUND_Google",
        lambda path: path.rename(path.parents[1] / "elsewhere"),
        "test",
        "Is a folder missing, such as BACKGROUND_Google",
    ),
    (
        "gtsrb",
        "gtsrb/GT-final_test.csv",
        lambda path: edit(path, ";ClassId", ""),
        "test",
        "columns Filename and ClassId",
    ),
    (
        "hateful_memes",
        "hateful_memes/dev.jsonl",
        lambda path: edit(path, '"label": [01], ', ""),
        "test",
        "a line without 'img' or 'label'",
    ),
    (
        "hateful_memes",
        "hateful_memes/dev.jsonl",
        lambda path: path.write_text('{"img"'),
        "test",
        "a file of test is damaged",
    ),
    ("hateful_memes", "hateful_memes/dev.jsonl", lambda path: edit(path, '"label": 1', '"label": 2'), "test", "0 to 2"),
    (
        "mnist",
        "MNIST/raw/t10k-images-idx3-ubyte",
        lambda path: path.write_bytes(b"\x1f\x8b" + bytes(30)),
        "test",
        "not in IDX format",
    ),
    (
        "mnist",
        "MNIST/raw/t10k-labels-idx1-ubyte",
        lambda path: path.write_bytes(struct.pack(">2i", 2049, 1) + b"\1"),
        "test",
        "30 images, 1 labels",
    ),
    (
        "cifar100",
        "cifar-100-binary/test.bin",
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        "test",
        "whole records of 3,074",
    ),
    (
        "voc2007",
        "VOCdevkit/VOC2007/ImageSets/Main/cat_val.txt",
        lambda path: edit(path, r" +-?[01]$", ""),
        "val",
        "lines of an image and 1, 0 or -1",
    ),
    (
        "voc2007",
        "VOCdevkit/VOC2007/ImageSets/Main/dog_val.txt",
        lambda path: edit(path, r"^(\d{5})\d", r"\g<1>9", 1),
        "val",
        "lists other images of 'val' for 'dog' than for 'aeroplane'",
    ),
    (
        "imagenet-a",
        "imagenet-a/n01498041",
        lambda path: path.rename(path.with_name("n01443537")),  # of ImageNet-R's 200, not of these
        "test",
        "a folder 'n01443537', which is no class",
    ),
    (
        "imagenetv2",
        "imagenetv2-matched-frequency/10",
        lambda path: path.rename(path.with_name("1000")),
        "test",
        "a folder '1000', which is no class",
    ),
    (
        "imagenet-real",
        f"imagenet/val/{imagenet_wnids()[1]}/ILSVRC2012_val_00000002.JPEG",
        lambda path: path.rename(path.with_name("2.JPEG")),
        "test",
        "not named as ImageNet's 4 validation images",
    ),
    (
        "objectnet",
        "objectnet-1.0/images/backpack",
        lambda path: path.rename(path.parents[1] / "elsewhere"),
        "test",
        "backpack does not exist",
    ),
    (
        "ham10k_apple",
        "HAM10K/val.txt",
        lambda path: edit(path, ",", " "),
        "val",
        "line 1: '7.jpg AKIEC' is not as in the official list",
    ),
    ("sun397", "SUN397/Training_01.txt", lambda path: edit(path, "^/", ""), "train", "not as in the official list"),
    (
        "sun397",
        "SUN397/b/barn",
        lambda path: path.rename(path.with_name("x")),
        "train",
        "does not exist, though it is listed",
    ),
]


@pytest.mark.parametrize(
    ("name", "path", "damage", "split", "message"), DAMAGES, ids=[f"{d[0]}-{d[4][:24]}" for d in DAMAGES]
)
def test_a_damaged_one_says_what_is_wrong(
    name: str, path: str, damage: Callable[[Path], object], split: str, message: str, tmp_path: Path
) -> None:
    make(name, tmp_path)
    damage(tmp_path / path)
    with pytest.raises(DataError, match=re.escape(message)):
        open_dataset(MINIATURES[name].row(name), tmp_path, split)


def test_caltech_without_lists_is_drawn_and_some_stand_twice(tmp_path: Path) -> None:
    mini = MINIATURES["caltech101"]
    make("caltech101", tmp_path)
    for split in ("train", "test"):
        (tmp_path / f"caltech101/{split}.txt").unlink()
    row = mini.row("caltech101").with_counts(train=4 * 30, test=0)
    train = open_dataset(row, tmp_path, "train")
    assert np.bincount(train.labels).tolist() == [30] * 4  # thirty draws of five images each
    assert len(np.unique(train.rows)) <= 20
    (tmp_path / "caltech101/test.txt").write_text("")
    with pytest.raises(DataError, match=r"train\.txt does not exist"):  # one list alone: not drawn over it
        open_dataset(row, tmp_path, "train")


def test_difficult_objects_are_negatives(tmp_path: Path) -> None:
    # as in the devkit they would be left out, and any flag but -1 as positive would make them ones
    make("voc2007", tmp_path)
    row = MINIATURES["voc2007"].row("voc2007")
    test = open_dataset(row, tmp_path, "test")
    flags = (tmp_path / "VOCdevkit/VOC2007/ImageSets/Main/cat_test.txt").read_text().split()[1::2]
    assert "0" in flags
    assert [flag == "1" for flag in flags] == test.labels[:, test.class_names.index("cat")].astype(bool).tolist()


def test_real_leaves_out_what_has_no_label(tmp_path: Path) -> None:
    make("imagenet-real", tmp_path)
    real = open_dataset(MINIATURES["imagenet-real"].row("imagenet-real"), tmp_path, "test")
    assert real.labels.sum(axis=1).tolist() == [2, 1, 1]
    assert real.labels.dtype == np.uint8  # 50 MB for all of it; as whole numbers of 64 bits 375


def test_reals_labels_come_with_timm_where_there_is_no_file(tmp_path: Path) -> None:
    make("imagenet-real", tmp_path)
    (tmp_path / "imagenet/real.json").unlink()
    # of the first four validation images one has no label; an image's number taken for its row would shift them
    found = open_dataset(MINIATURES["imagenet-real"].row("imagenet-real"), tmp_path, "test")
    given = json.loads((resources.files("timm") / "data/_info/imagenet_real_labels.json").read_text())
    numbers = [int(found.source.name(int(row))[-13:-5]) for row in found.rows]
    assert [np.flatnonzero(labels).tolist() for labels in found.labels] == [sorted(given[n - 1]) for n in numbers]


def test_folders_of_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    # sorted as text, folder 10 would be label 2 and folder 2 label 112
    make("imagenetv2", tmp_path)
    found = open_dataset(MINIATURES["imagenetv2"].row("imagenetv2"), tmp_path, "test")
    assert {found.source.name(row).split("/")[0]: int(found.labels[row]) for row in range(len(found))} == {
        "1": 1,
        "2": 2,
        "10": 10,
        "999": 999,
    }


def test_hidden_and_other_files_are_no_images(tmp_path: Path) -> None:
    make("eurosat", tmp_path)
    write_lines(tmp_path / "eurosat_clip/train/River/notes.txt", ["x"])
    write_image(tmp_path / "eurosat_clip/train/River/._1.jpg", "train", "River")
    write_image(tmp_path / "eurosat_clip/train/.cache/1.jpg", "train", "River")
    assert len(open_dataset(MINIATURES["eurosat"].row("eurosat"), tmp_path, "train")) == 6


def test_training_takes_the_given_val_where_the_papers_do(tmp_path: Path) -> None:
    make("dtd", tmp_path)
    train, val = open_training(MINIATURES["dtd"].row("dtd"), tmp_path)
    assert (len(train), len(val)) == (6, 3)
    train, val = open_training(MINIATURES["dtd"].row("dtd"), tmp_path, rule="elevater")
    assert (len(train), val.labels.tolist(), val.rows.tolist()) == (3, [0, 1, 2], [0, 1, 2])


def test_training_cuts_a_fifth_where_the_papers_have_no_val(tmp_path: Path) -> None:
    make("eurosat", tmp_path)  # has a val split, which the papers' rule passes over
    train, val = open_training(MINIATURES["eurosat"].row("eurosat"), tmp_path)
    assert (len(train), len(val)) == (5, 1)
    order = np.arange(6)
    np.random.RandomState(0).shuffle(order)
    assert val.rows.tolist() == order[:1].tolist()
    assert val.labels.tolist() == [train.source.labels()[0][order[0]]]


def test_without_h5py_pcam_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("x", "y"):
        path = tmp_path / f"pcam/camelyonpatch_level_2_split_test_{split}.h5"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(DataError, match="pip install h5py"):
        open_dataset("pcam", tmp_path, "test")


def test_a_shared_folder_without_the_marker_counts_as_missing(tmp_path: Path) -> None:
    make("imagenet", tmp_path)
    with pytest.raises(DataError, match=r"no folder imagenet with val\.txt"):
        open_dataset("imagenet_apple", tmp_path, "test")


def test_a_share_is_a_split_of_its_own(tmp_path: Path) -> None:
    mini = MINIATURES["ham10k_apple"]
    make("ham10k_apple", tmp_path)
    lines = (tmp_path / "HAM10K/train_full.txt").read_text().splitlines()[:3]
    write_lines(tmp_path / "HAM10K/train_100img_max_per_class.txt", lines)
    share = open_dataset(mini.row("ham10k_apple").with_counts(train_100=3), tmp_path, "train_100")
    assert share.labels.tolist() == [0, 1, 2]
    assert share.class_names == mini.classes
