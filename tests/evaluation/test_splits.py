from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attar.errors import DataError
from attar.evaluation.splits import Splits, hold_out, open_splits
from small_runs import picture


def write_classes(root: Path, counts: dict[str, int]) -> None:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            picture(number).save(root / name / f"{number}.png")


def names(part) -> set[str]:
    return {f"{part.source.fingerprint}/{part.source.name(int(row))}" for row in part.rows}


def parts_of(splits: Splits) -> list[set[str]]:
    return [names(part) for part in (splits.train, splits.val, splits.test)]


def test_three_given_parts_are_kept(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        write_classes(tmp_path / part, {"a": count, "b": count})
    splits = open_splits(str(tmp_path), seed=0)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [6, 4, 2]
    assert splits.origin == "train, val and test as given"


@pytest.mark.parametrize("second", ["val", "test"])
def test_of_two_given_parts_a_fifth_of_each_class_of_the_first_is_set_apart(tmp_path: Path, second: str) -> None:
    # the reported part must be the given one whole: choosing on it is what an honest figure is not
    write_classes(tmp_path / "train", {"a": 10, "b": 5})
    write_classes(tmp_path / second, {"a": 2, "b": 1})
    splits = open_splits(str(tmp_path), seed=0)
    assert np.bincount(splits.val.labels).tolist() == [2, 1]
    assert np.bincount(splits.train.labels).tolist() == [8, 4]
    assert len(splits.test) == 3


def test_images_in_one_place_are_in_one_part_each(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 10, "b": 7})
    splits = open_splits(str(tmp_path), seed=0)
    train, val, test = parts_of(splits)
    assert len(train | val | test) == len(train) + len(val) + len(test) == 17
    assert parts_of(open_splits(str(tmp_path), seed=0)) == [train, val, test]
    assert parts_of(open_splits(str(tmp_path), seed=1)) != [train, val, test]
    assert "seed 0" in splits.origin


def test_a_class_of_one_image_stays_to_learn_from(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 1, "b": 3})
    write_classes(tmp_path / "test", {"a": 1, "b": 1})
    splits = open_splits(str(tmp_path), seed=0)
    assert np.bincount(splits.train.labels).tolist() == [1, 2]
    with pytest.raises(DataError, match="only one of its class"):
        hold_out(splits.test, seed=0)


def test_what_was_cut_from_train_goes_back_for_those_who_choose_nothing(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 10, "b": 5})
    write_classes(tmp_path / "test", {"a": 2, "b": 1})
    cut = open_splits(str(tmp_path), seed=0)
    assert names(cut.official_train) == names(cut.train) | names(cut.val)
    assert cut.official_train.labels.tolist() == [0] * 10 + [1] * 5
    write_classes(tmp_path / "val", {"a": 2, "b": 1})
    given = open_splits(str(tmp_path), seed=0)
    assert given.official_train is given.train
