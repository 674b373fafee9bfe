"""Every row of the table: a miniature in its official layout loads rightly, and a damaged or missing one says so."""

from __future__ import annotations

import dataclasses
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from attar.data.decode import open_image
from attar.errors import ConfigError, DataError, MissingDatasetError
from attar.evaluation.datasets import DATASETS, Count, OpenedSplit, open_dataset
from miniatures import JPEG, MINIATURES

CASES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(name == "pcam" and find_spec("h5py") is None, reason="h5py is not installed"),
    )
    for name in MINIATURES
]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The data root of each miniature that was made so far."""
    return {}


@pytest.fixture
def root(request: pytest.FixtureRequest, made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the miniature of the test's `name`: made once, and not to be changed."""
    name = request.getfixturevalue("name")
    if name not in made:
        made[name] = tmp_path_factory.mktemp(name)
        MINIATURES[name].make(made[name], MINIATURES[name])
    return made[name]


def shown(opened: OpenedSplit, row: int) -> str:
    """`SPLIT/CLASS` of an image, as it says itself; of raw pixels, the class that their value names."""
    data = opened.source.read(int(opened.rows[row]))
    if isinstance(data, bytes):
        return data.removeprefix(JPEG).decode()
    return f"{opened.split}/{opened.class_names[int(data[0, 0, 0])]}"


def said(opened: OpenedSplit, row: int) -> str:
    """`SPLIT/CLASS` of an image, as its label says; several classes are joined by '+'."""
    labels = opened.labels[row]
    chosen = np.flatnonzero(labels) if opened.labels.ndim == 2 else [labels]
    return f"{opened.split}/{'+'.join(opened.class_names[label] for label in chosen)}"


def test_every_row_with_labels_has_a_miniature() -> None:
    assert set(MINIATURES) == {name for name, row in DATASETS.items() if row.kind == "classification"}


@pytest.mark.parametrize("name", CASES)
def test_classes_labels_and_splits_are_right(name: str, root: Path) -> None:
    # catches labels off by one, classes sorted where the official order is another, one split in another's place
    mini, prints = MINIATURES[name], set()
    for split in mini.splits:
        opened = open_dataset(mini.row(name), root, split)
        assert opened.class_names == mini.classes
        assert len(opened) == len(opened.labels) == opened.dataset.count(split).images
        assert opened.labels.shape[1:] == ((len(mini.classes),) if opened.dataset.is_multi_label else ())
        assert [shown(opened, row) for row in range(len(opened))] == [said(opened, row) for row in range(len(opened))]
        assert opened.warnings == ()
        prints.add(opened.source.fingerprint)
    assert len(prints) == len(mini.splits)
    assert open_image(opened.source.read(0), name=opened.source.name(0)).resized(None, (4, 4)).mode == "RGB"


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_number_of_images_or_classes_is_told(name: str, root: Path) -> None:
    mini = MINIATURES[name]
    row, split = mini.row(name), mini.splits[0]
    found = row.count(split).images
    hard = dataclasses.replace(row, splits={split: Count(found + 1000)})
    with pytest.raises(DataError, match=rf"{split} has {found:,} images; .* has {found + 1000:,}"):
        open_dataset(hard, root, split)
    soft = dataclasses.replace(row, splits={split: Count(found + 1000, is_soft=True)})
    assert f"has {found:,} images" in open_dataset(soft, root, split).warnings[0]
    with pytest.raises(DataError, match="That is the number of other: the two seem to be swapped"):
        open_dataset(dataclasses.replace(row, splits={**soft.splits, "other": Count(found)}), root, split)
    with pytest.raises(DataError, match=rf"has {len(mini.classes):,} classes; .* has {len(mini.classes) + 1:,}"):
        open_dataset(row.with_counts(num_classes=len(mini.classes) + 1), root, split)


@pytest.mark.parametrize("name", CASES)
def test_without_a_file_that_it_needs_the_file_is_named(name: str, root: Path, tmp_path: Path) -> None:
    mini = MINIATURES[name]
    shutil.copytree(root, tmp_path / "root")
    vital = tmp_path / "root" / mini.vital
    shutil.rmtree(vital) if vital.is_dir() else vital.unlink()
    expected = re.escape(vital.name)
    if name in ("imagenetv2", "imagenet-a", "imagenet-r"):  # a class's folder that is gone shows in the count
        expected = "has [0-9]+ images"
    with pytest.raises(DataError, match=expected):
        open_dataset(mini.row(name), tmp_path / "root", mini.splits[0])


@pytest.mark.parametrize("name", list(DATASETS))
def test_a_missing_one_tells_where_it_is_expected_and_how_to_get_it(name: str, tmp_path: Path) -> None:
    row = DATASETS[name]
    if row.kind != "classification":
        pytest.skip("see test_pairs.py")
    with pytest.raises(MissingDatasetError) as caught:
        open_dataset(name, tmp_path, next(iter(row.splits)))
    for part in (str(tmp_path), row.folders[0], row.how_to_get, row.licence_note):
        assert part in str(caught.value)


def test_an_unknown_name_or_split_is_met_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no data set 'flower102'\. Did you mean 'flowers102'"):
        open_dataset("flower102", tmp_path, "test")
    with pytest.raises(ConfigError, match=r"dtd has no split 'tests'\. Did you mean 'test'"):
        open_dataset("dtd", tmp_path, "tests")
    with pytest.raises(ConfigError, match="open_pairs"):
        open_dataset("ade20k", tmp_path, "test")
