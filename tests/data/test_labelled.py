"""Labelled images in two parts: a split that is given is kept, one that is made is fair and repeatable."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attar.data.labelled import open_labelled
from attar.errors import DataError
from shards import sample, write_tar


def write_classes(root, **classes):
    """So many files per class; each holds its class's name."""
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number:03}.jpg").write_bytes(name.encode())


def write_table(path, labels):
    pq.write_table(pa.table({"image": [f"{label}".encode() for label in labels], "label": labels}), path)


def contents(part):
    """(class name by label, bytes of the image) of each position: equal where the labels are right."""
    names = [part.class_names[label] for label in part.labels]
    return list(zip(names, (part.source.read(row).decode() for row in part.rows), strict=True))


def assert_labels_are_right(part):
    assert len(part) == len(part.rows) == len(part.labels) > 0
    assert all(label == content for label, content in contents(part))


@pytest.mark.parametrize("held_out", ["val", "test", "validation"])
def test_a_given_split_of_folders_is_kept(tmp_path, held_out):
    write_classes(tmp_path / "train", dog=4, ant=3, cat=2)
    write_classes(tmp_path / held_out, cat=1, dog=2, ant=3)
    write_classes(tmp_path / "other", bird=5)
    train, test = open_labelled(str(tmp_path), seed=0)
    assert train.class_names == test.class_names == ("ant", "cat", "dog")
    assert np.bincount(train.labels).tolist() == [3, 2, 4]
    assert np.bincount(test.labels).tolist() == [3, 1, 2]
    assert train.source.root == str(tmp_path / "train")
    assert test.source.root == str(tmp_path / held_out)
    assert_labels_are_right(train)
    assert_labels_are_right(test)


def test_a_given_split_of_tars_is_kept(tmp_path):
    write_tar(tmp_path / "train.tar", [*sample("0", 0), *sample("1", 1), *sample("2", 1)])
    write_tar(tmp_path / "val.tar", [*sample("0", 1), *sample("1", 0)])
    train, test = open_labelled(str(tmp_path), seed=0)
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 1], [1, 0])


def test_options_hold_for_both_parts_of_a_given_split(tmp_path):
    """Looked for under its whole name, the folder would be one with the classes 'train' and 'val'."""
    write_classes(tmp_path / "train", dog=4, ant=8, cat=2)
    write_classes(tmp_path / "val", cat=2, dog=2, ant=4)
    train, test = open_labelled(f"{tmp_path}?images=0.5", seed=0)
    assert np.bincount(train.labels).tolist() == [4, 1, 2]
    assert np.bincount(test.labels).tolist() == [2, 1, 1]
    assert_labels_are_right(train)
    train, test = open_labelled(f"{tmp_path}?classes=0.7", seed=0)
    assert train.class_names == test.class_names
    assert len(train.class_names) == 2


def test_validation_goes_before_test(tmp_path):
    for name, count in (("train", 3), ("val", 2), ("test", 1)):
        write_classes(tmp_path / name, a=count, b=count)
    assert len(open_labelled(str(tmp_path), seed=0)[1]) == 4


@pytest.mark.parametrize("held_out", ["val", "test", "validation"])
def test_a_given_split_of_parquet_files_is_kept(tmp_path, held_out):
    write_table(tmp_path / "train.parquet", [2, 0, 1, 2])
    write_table(tmp_path / f"{held_out}.parquet", [1, 1, 2, 0])
    train, test = open_labelled(str(tmp_path), seed=0)
    assert train.labels.tolist() == [2, 0, 1, 2]
    assert test.labels.tolist() == [1, 1, 2, 0]
    assert_labels_are_right(train)
    assert_labels_are_right(test)


@pytest.mark.parametrize("kind", ["folders", "parquet"])
def test_parts_with_different_classes_are_an_error(tmp_path, kind):
    # the same number of classes on both sides: only the names tell
    if kind == "folders":
        write_classes(tmp_path / "train", a=2, b=2, c=2)
        write_classes(tmp_path / "val", a=2, b=2, d=2)
        odd = "c, d"
    else:
        write_table(tmp_path / "train.parquet", [0, 1, 2])
        write_table(tmp_path / "val.parquet", [0, 1, 3])
        odd = "2, 3"
    with pytest.raises(DataError, match=rf"train.* and .*val.* have different classes, such as {odd}\."):
        open_labelled(str(tmp_path), seed=0)


def test_halves_are_made_class_by_class(tmp_path):
    write_classes(tmp_path, a=10, b=7, c=2, d=1)
    train, test = open_labelled(str(tmp_path), seed=3)
    assert train.class_names == test.class_names == ("a", "b", "c", "d")
    assert np.bincount(train.labels, minlength=4).tolist() == [5, 4, 1, 1]  # the odd one is for learning
    assert np.bincount(test.labels, minlength=4).tolist() == [5, 3, 1, 0]
    assert sorted([*train.rows, *test.rows]) == list(range(20))  # disjoint, and nothing is left over
    assert_labels_are_right(train)
    assert_labels_are_right(test)


def test_halves_depend_on_the_seed_and_on_nothing_else(tmp_path):
    write_classes(tmp_path / "one", a=20, b=20)
    write_classes(tmp_path / "two", b=20, a=20)
    chosen = [tuple(open_labelled(str(tmp_path / "one"), seed=seed)[1].rows) for seed in (0, 0, 1, 2)]
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) == 3
    assert tuple(open_labelled(str(tmp_path / "two"), seed=0)[1].rows) == chosen[0]
    # a shuffle of its own for each class: the same positions in both would be a chance of 1 in 184,756
    first, second = (sorted(row % 20 for row in chosen[0] if row // 20 == label) for label in (0, 1))
    assert first != second


def test_one_parquet_file_and_the_playground_are_halved_too(tmp_path):
    write_table(tmp_path / "x.parquet", [5, 3, 5, 3, 5, 5])
    for reference, counts in ((str(tmp_path / "x.parquet"), [1, 2]), ("playground:0?n=28", [1] * 14)):
        train, test = open_labelled(reference, seed=0)
        assert np.bincount(train.labels).tolist() == np.bincount(test.labels).tolist() == counts
        assert set(train.rows).isdisjoint(test.rows)
    assert_labels_are_right(open_labelled(str(tmp_path / "x.parquet"), seed=0)[0])


def test_take_keeps_rows_and_labels_together(tmp_path):
    write_classes(tmp_path / "train", a=3, b=3)
    write_classes(tmp_path / "val", a=3, b=3)
    part = open_labelled(str(tmp_path), seed=0)[0].take(np.array([5, 0, 4]))
    assert part.labels.tolist() == [1, 0, 1]
    assert part.rows.tolist() == [5, 0, 4]
    assert_labels_are_right(part.take(np.array([2, 1])))


def test_one_class_or_no_labels_is_an_error(tmp_path):
    write_classes(tmp_path / "one", cat=5)
    with pytest.raises(DataError, match=r"one class only \('cat'\)"):
        open_labelled(str(tmp_path / "one"), seed=0)
    write_classes(tmp_path, flat=3)
    with pytest.raises(DataError, match=r"images without labels. Put each class into a folder"):
        open_labelled(str(tmp_path / "flat"), seed=0)
    write_classes(tmp_path / "half" / "train", a=2, b=2)
    write_classes(tmp_path / "half" / "val", a=2)
    with pytest.raises(DataError, match=r"val holds one class only"):
        open_labelled(str(tmp_path / "half"), seed=0)
    with pytest.raises(DataError, match="does not exist"):
        open_labelled(str(tmp_path / "nowhere"), seed=0)
