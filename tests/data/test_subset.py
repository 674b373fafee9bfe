"""Shares of classes and of images are exact, nested and named by their seed; rows keep image, name and label."""

from collections import Counter

import numpy as np
import pytest

from attar.config import ViewsConfig
from attar.data.loader import ViewDataset
from attar.data.sampler import ViewOrder
from attar.data.sources import open_source
from attar.errors import DataError

SIZES = {"ant": 10, "bee": 4, "cat": 1, "dog": 25, "eel": 2, "fly": 8, "gnu": 3, "hen": 5, "ibis": 6, "jay": 7}


@pytest.fixture
def folder(tmp_path):
    for name, count in SIZES.items():
        (tmp_path / "animals" / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "animals" / name / f"{number:02}.jpg").write_bytes(f"{name} {number}".encode())
    return str(tmp_path / "animals")


def names_of(reference):
    source = open_source(reference)
    return [source.name(row) for row in range(len(source))]


def classes_of(reference):
    return {name.partition("/")[0] for name in names_of(reference)}


@pytest.mark.parametrize(("share", "count"), [(0.2, 2), (0.5, 5), (0.01, 1), (0.26, 3), (1, 10)])
def test_a_share_of_classes_is_exact_and_keeps_all_their_images(folder, share, count):
    found = Counter(name.partition("/")[0] for name in names_of(f"{folder}?classes={share}"))
    assert len(found) == count
    assert all(SIZES[name] == images for name, images in found.items())


@pytest.mark.parametrize("share", [0.2, 0.5, 0.01])
def test_a_share_of_images_is_exact_in_each_class_and_at_least_one(folder, share):
    """A share of all images together would leave some classes too many, others none."""
    found = Counter(name.partition("/")[0] for name in names_of(f"{folder}?images={share}"))
    assert found == {name: max(1, round(share * size)) for name, size in SIZES.items()}


@pytest.mark.parametrize("option", ["classes", "images"])
def test_a_smaller_share_is_part_of_a_larger(folder, option):
    shares = [set(names_of(f"{folder}?{option}={share}")) for share in (0.2, 0.5, 0.8, 1)]
    assert shares[0] < shares[1] < shares[2] < shares[3]


@pytest.mark.parametrize("option", ["classes", "images"])
def test_a_share_is_named_by_its_seed(folder, option):
    first, again, other = (names_of(f"{folder}?{option}=0.5&subset_seed={seed}") for seed in (1, 1, 2))
    assert first == again
    assert set(first) != set(other)
    assert first == sorted(first)  # the source's own order


def test_which_images_of_a_class_are_kept_does_not_depend_on_the_other_classes(folder):
    both = set(names_of(f"{folder}?classes=0.5&images=0.4"))
    kept = classes_of(f"{folder}?classes=0.5")
    assert both == {name for name in names_of(f"{folder}?images=0.4") if name.partition("/")[0] in kept}


def test_labels_are_those_of_the_classes_left(folder):
    source = open_source(f"{folder}?classes=0.5&images=0.5&weight=1.5")
    labels, names = source.labels()
    assert len(names) == 5
    assert names == sorted(names)
    assert labels.dtype == np.int64
    texts = [source.read(row).decode().split()[0] for row in range(len(source))]
    assert [names[label] for label in labels] == texts


def test_without_labels_it_is_a_share_of_all(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.jpg").write_bytes(b"%d" % number)
    found = names_of(f"{tmp_path}?images=0.3")
    assert len(found) == len(set(found)) == 3
    assert set(found) < set(names_of(f"{tmp_path}?images=0.6"))
    with pytest.raises(DataError, match=r"classes=0\.5' asks for a share of classes, .* no labels"):
        open_source(f"{tmp_path}?classes=0.5")


def test_the_whole_is_the_source_itself(folder):
    assert open_source(f"{folder}?classes=1&images=1").fingerprint == open_source(folder).fingerprint


def test_the_fingerprint_tells_what_was_chosen(folder):
    variants = ["", "?classes=0.5", "?images=0.5", "?images=0.5&subset_seed=1", "?crops=5", "?crops=5&image=1"]
    assert len({open_source(folder + variant).fingerprint for variant in variants}) == len(variants)


def test_the_playground_keeps_its_own_options():
    source = open_source("playground:3?n=40&images=0.5&variety=0")
    assert (
        np.bincount(source.labels()[0]).sum()
        == len(source)
        == sum(max(1, round(0.5 * count)) for count in np.bincount(open_source("playground:3?n=40").labels()[0]))
    )


@pytest.mark.timeout(20)
@pytest.mark.parametrize("option", ["classes", "images"])
def test_fewer_scenes_than_classes_are_a_share_of_those_there_are(option):
    """A share of a class without images would be searched for without end, or be an empty source."""
    source = open_source(f"playground:3?n=3&{option}=0.5")
    assert len(source) == {"classes": 2, "images": 3}[option]
    assert len(source.labels()[1]) == len(source)


# --- crops of one image ---------------------------------------------------------------------------------------------


def test_crops_are_rows_of_one_image(folder):
    source = open_source(f"{folder}?crops=6&image=12")
    assert {source.name(row) for row in range(len(source))} == {"bee/02.jpg"}
    assert len(source) == 6
    labels, names = source.labels()
    assert (labels.tolist(), names) == ([0] * 6, ["bee"])


def test_each_row_of_one_image_is_cropped_in_its_own_way():
    source = open_source("playground:0?n=3&crops=4&image=2")
    dataset = ViewDataset(source, ViewOrder(len(source), seed=0), ViewsConfig(), 32)
    views = [dataset[place].view.values().numpy().tobytes() for place in range(4)]
    assert len(set(views)) == 4


def test_an_image_that_is_not_there_is_an_error(folder):
    with pytest.raises(DataError, match="image is 71, but there are 71, counted from 0"):
        open_source(f"{folder}?crops=3&image=71")
    with pytest.raises(DataError, match="crops is not given"):
        open_source(f"{folder}?image=3")
