from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attar.errors import DataError
from attar.evaluation.dense.splits import open_dense, open_dense_parts
from small_pairs import write_pair


def fill(root: Path, **counts: int) -> None:
    for part, count in counts.items():
        for number in range(count):
            write_pair(root, part, f"{part}{number}", np.array([[0, number % 4, 255]], np.uint8))


def test_three_parts_are_taken_as_they_are(tmp_path: Path) -> None:
    fill(tmp_path, train=4, val=2, test=3)
    splits = open_dense(str(tmp_path), seed=0)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [4, 2, 3]
    assert splits.origin == "train, val and test as given"


def test_classes_are_counted_without_void(tmp_path: Path) -> None:
    # counting 255 in would make 256 classes; counting values rather than the highest, 3 of {0, 1, 3}
    fill(tmp_path, train=4, test=1)
    assert open_dense(str(tmp_path), seed=0).num_classes == 4
    assert open_dense(f"{tmp_path}?classes=7", seed=0).num_classes == 7


def test_a_fifth_of_train_is_set_apart_by_seed(tmp_path: Path) -> None:
    fill(tmp_path, train=10, test=1)
    one, same, other = (open_dense(str(tmp_path), seed=seed) for seed in (0, 0, 1))
    assert len(one.val) == 2
    assert not {pair.name for pair in one.val} & {pair.name for pair in one.train}
    assert one.val == same.val != other.val
    assert "val: a fifth of train by seed 0" in one.origin


def test_without_test_val_is_reported_and_not_chosen_by(tmp_path: Path) -> None:
    fill(tmp_path, train=5, val=2)
    splits = open_dense(str(tmp_path), seed=0)
    assert [Path(pair.name).stem for pair in splits.test] == ["val0", "val1"]
    assert all(Path(pair.name).stem.startswith("train") for pair in splits.val)


def test_depth_has_no_classes(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        write_pair(tmp_path, part, "a", np.full((2, 2), 900, np.uint16))
    splits = open_dense(f"{tmp_path}?max_depth=80", seed=0)
    assert (splits.num_classes, splits.max_depth) == (0, 80.0)


def test_what_is_missing_or_wrong_is_said(tmp_path: Path) -> None:
    fill(tmp_path, train=1)
    with pytest.raises(DataError, match="neither images/val nor images/test"):
        open_dense(str(tmp_path), seed=0)
    with pytest.raises(DataError, match=r"unknown setting 'clases'. Did you mean 'classes'"):
        open_dense(f"{tmp_path}?clases=3", seed=0)
    fill(tmp_path, test=1)
    with pytest.raises(DataError, match="is the only image to learn from"):
        open_dense(f"{tmp_path}?classes=3", seed=0)
    for part in ("train", "val", "test"):
        write_pair(tmp_path / "blank", part, "a", np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match="hold class 0 alone"):
        open_dense(str(tmp_path / "blank"), seed=0)


def test_the_playground_has_masks_and_depth() -> None:
    splits = open_dense("playground:1?n=50&variety=0", seed=0)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [30, 10, 10]
    assert splits.num_classes == 15
    assert splits.test[0].name == "playground:1[40]"
    with pytest.raises(DataError, match="three parts need five"):
        open_dense("playground:1?n=4", seed=0)


def test_a_file_names_the_classes(tmp_path: Path) -> None:
    fill(tmp_path, train=4, test=1)
    assert open_dense_parts(str(tmp_path)).class_names == ("0", "1", "2", "3")
    (tmp_path / "classes.txt").write_text("sky\nroad\n\ncar\n")
    assert open_dense_parts(str(tmp_path)).class_names == ("sky", "road", "car")  # what is 3 is void now
    with pytest.raises(DataError, match=r"names 3 classes, and \?classes=2 asks for 2"):
        open_dense_parts(f"{tmp_path}?classes=2")


def test_parts_that_are_not_there_are_not_made_up(tmp_path: Path) -> None:
    fill(tmp_path, train=4, val=1)
    found = open_dense_parts(str(tmp_path))
    assert [len(part) for part in (found.train, found.val, found.test)] == [4, 1, 0]
    assert found.origin == "train and val as given"
