"""Several sources as one: every row leads to the image, the label and the name that its part gives it."""

import pickle
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attar.data.merged import MergedSource
from attar.data.sources import open_source
from attar.errors import DataError, DecodeError


def write_classes(root, **classes):
    """So many files per class; each holds its class's name and number."""
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.jpg").write_bytes(f"{name} {number}".encode())
    return str(root)


def write_table(path, labels):
    pq.write_table(pa.table({"image": [f"{label} in {path.name}".encode() for label in labels], "label": labels}), path)
    return str(path)


def contents(source):
    return [source.read(row).decode() for row in range(len(source))]


def test_rows_of_all_parts_stand_in_order(tmp_path):
    table = write_table(tmp_path / "x.parquet", [1, 0, 1])
    folder = write_classes(tmp_path / "animals", cat=2, ant=1)
    source = open_source((table, folder))
    expected = [*["1 in x.parquet", "0 in x.parquet", "1 in x.parquet"], *["ant 0", "cat 0", "cat 1"]]
    assert contents(source) == expected
    assert [source.name(row) for row in (2, 3, 5)] == ["x.parquet[2]", "animals/ant/0.jpg", "animals/cat/1.jpg"]


def test_one_reference_is_the_source_itself_and_keeps_its_fingerprint(tmp_path):
    folder = write_classes(tmp_path / "animals", cat=2, ant=1)
    alone = open_source(folder)
    assert type(open_source([folder])) is type(alone)
    assert open_source(f"{folder}?weight=1").fingerprint == alone.fingerprint


def test_class_names_are_united_in_order_of_first_appearance(tmp_path):
    """Adding each part's class numbers up, or sorting all names, would give other rows of a classifier."""
    digits = write_table(tmp_path / "x.parquet", [10, 9, 10])
    first = write_classes(tmp_path / "first", cat=2, bee=1)
    second = write_classes(tmp_path / "second", cat=1, ant=1)
    labels, names = open_source((digits, first, second)).labels()
    assert names == ["9", "10", "bee", "cat", "ant"]
    assert labels.tolist() == [1, 0, 1, 2, 3, 3, 4, 3]
    assert labels.dtype == np.int64


def test_a_part_without_labels_leaves_none(tmp_path):
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "1.jpg").write_bytes(b"x")
    assert open_source((write_classes(tmp_path / "a", cat=1), str(tmp_path / "flat"))).labels() is None


@pytest.mark.parametrize(("weight", "times"), [(2, {2: 10}), (3.0, {3: 10}), (0.3, {1: 3}), (2.5, {2: 5, 3: 5})])
def test_weight_is_how_often_each_image_stands_in_an_epoch(tmp_path, weight, times):
    """A choice with repetition would show some image twice more; one that rounds the weight would miss 0.3 and 2.5."""
    folder = write_classes(tmp_path / "animals", cat=4, ant=6)
    source = open_source(f"{folder}?weight={weight}")
    assert isinstance(source, MergedSource)
    assert Counter(Counter(contents(source)).values()) == times
    labels, names = source.labels()
    assert [text.split()[0] for text in contents(source)] == [names[label] for label in labels]


def test_whole_rounds_come_in_order_and_names_need_no_title(tmp_path):
    folder = write_classes(tmp_path / "animals", cat=2)
    source = open_source(f"{folder}?weight=2")
    assert [source.name(row) for row in range(4)] == ["cat/0.jpg", "cat/1.jpg"] * 2


def test_the_fraction_is_chosen_by_its_seed(tmp_path):
    folder = write_classes(tmp_path / "animals", cat=100)

    def chosen(options):
        return contents(open_source(f"{folder}?weight=0.2{options}"))

    assert chosen("") == chosen("") == chosen("&subset_seed=0")
    assert set(chosen("")) != set(chosen("&subset_seed=1"))
    assert set(chosen("")) != {f"cat {number}" for number in range(20)}


def test_a_weighted_part_stands_beside_another(tmp_path):
    first, second = write_classes(tmp_path / "a", cat=3), write_classes(tmp_path / "b", dog=2)
    source = open_source((f"{first}?weight=2", second))
    assert contents(source) == ["cat 0", "cat 1", "cat 2"] * 2 + ["dog 0", "dog 1"]
    assert source.name(7) == "b/dog/1.jpg"


def test_a_part_is_never_empty(tmp_path):
    assert len(open_source(f"{write_classes(tmp_path / 'a', cat=1)}?weight=0.01")) == 1


def test_the_fingerprint_tells_parts_order_weight_and_seed(tmp_path):
    a, b = write_classes(tmp_path / "a", cat=9), write_classes(tmp_path / "b", dog=2)
    variants = [(a, b), (b, a), (a, a, b), (f"{a}?weight=2", b), (f"{a}?weight=0.5", b), (a,)]
    variants.append((f"{a}?weight=0.5&subset_seed=1", b))
    found = [open_source(variant).fingerprint for variant in variants]
    assert len(set(found)) == len(variants)
    assert open_source((a, b)).fingerprint == found[0]


def test_folders_of_equal_name_are_told_apart_by_their_paths(tmp_path):
    here, there = write_classes(tmp_path / "here/train", cat=1), write_classes(tmp_path / "there/train", cat=1)
    source = open_source((here, there))
    assert [source.name(row) for row in range(2)] == [f"{here}/cat/0.jpg", f"{there}/cat/0.jpg"]


def test_rows_of_shards_are_named_by_their_files(tmp_path):
    for number in (0, 1):
        write_table(tmp_path / f"x-{number}.parquet", [1])
    table = write_table(tmp_path / "y.parquet", [1])
    source = open_source((f"{tmp_path}/x-{{0..1}}.parquet", table, "playground:1?n=1"))
    names = [source.name(row) for row in range(4)]
    assert names == ["x-0.parquet[0]", "x-1.parquet[0]", "y.parquet[0]", "playground:1[0]"]


def test_an_unreadable_row_is_named_with_its_part(tmp_path):
    source = open_source((write_classes(tmp_path / "a", cat=1), write_classes(tmp_path / "b", dog=1)))
    (tmp_path / "b/dog/0.jpg").unlink()
    with pytest.raises(DecodeError, match=r"^b/dog/0\.jpg: cannot be read"):
        source.read(1)


def test_a_missing_part_is_an_error(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_source((write_classes(tmp_path / "a", cat=1), str(tmp_path / "nowhere")))


def test_a_merged_source_survives_pickling(tmp_path):
    folder = write_classes(tmp_path / "a", **{f"c{number}": 20 for number in range(20)})
    source = open_source((f"{folder}?weight=1.5", "playground:3?n=4"))
    data = pickle.dumps(source)
    assert len(data) < 2000  # not the paths, not the choice
    again = pickle.loads(data)
    assert (len(again), again.fingerprint) == (604, source.fingerprint)
    assert [again.name(row) for row in (0, 555, 603)] == [source.name(row) for row in (0, 555, 603)]
    assert source.name(603) == "playground:3[3]"
    np.testing.assert_array_equal(again.read(603), source.read(603))
