"""Dense data sets: images with their annotations, by folder or by list."""

from __future__ import annotations

from pathlib import Path

import pytest

from attar.errors import ConfigError, DataError, MissingDatasetError
from attar.evaluation.datasets import DATASETS, Dataset, find_dataset, open_pairs
from miniatures import write_image, write_lines

PLACES = {
    "ade20k": ("ADEChallengeData2016", {"train": "training", "test": "validation"}),
    "nyuv2": ("nyu", {"train": "train", "test": "test"}),
    "camvid": ("camvid", {"train": "train", "val": "val", "test": "test"}),
    "ade20k_apple": ("ADEChallengeData2016", {"train": "training", "val": "training", "test": "validation"}),
}
LISTS = {"train": "train_full.txt", "val": "val.txt", "test": "test.txt"}


def make(name: str, root: Path) -> Dataset:
    """Two images for each split; by lists where the row has some, which name them the other way round."""
    folder, places = PLACES[name]
    for split, place in places.items():
        for number in range(2):
            write_image(root / folder / f"images/{place}/{split}_{number}.jpg", split, "image")
            write_image(root / folder / f"annotations/{place}/{split}_{number}.png", split, "annotation")
        if name == "ade20k_apple":
            write_lines(root / folder / LISTS[split], [f"{split}_1.jpg", f"{split}_0.jpg"])
    return find_dataset(name).with_counts(**dict.fromkeys(places, 2))


def test_all_dense_rows_are_tested() -> None:
    assert set(PLACES) == {name for name, row in DATASETS.items() if row.kind != "classification"}


@pytest.mark.parametrize("name", PLACES)
def test_each_image_has_its_annotation(name: str, tmp_path: Path) -> None:
    row = make(name, tmp_path)
    for split in PLACES[name][1]:
        found = open_pairs(row, tmp_path, split)
        assert [pair.image.stem for pair in found.pairs] == [pair.annotation.stem for pair in found.pairs]
        order = (1, 0) if name == "ade20k_apple" else (0, 1)  # a list's own order
        assert [pair.image.stem for pair in found.pairs] == [f"{split}_{number}" for number in order]
        assert found.warnings == ()


@pytest.mark.parametrize("name", PLACES)
def test_what_is_missing_or_miscounted_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(MissingDatasetError, match=PLACES[name][0]):
        open_pairs(name, tmp_path, "test")
    row = make(name, tmp_path)
    with pytest.raises(DataError, match=r"train has 2 images; .* has 5"):
        open_pairs(row.with_counts(train=5), tmp_path, "train")
    annotation = next((tmp_path / PLACES[name][0] / "annotations" / PLACES[name][1]["test"]).iterdir())
    annotation.unlink()
    with pytest.raises(DataError, match=annotation.name):
        open_pairs(row, tmp_path, "test")
    with pytest.raises(ConfigError, match="open_dataset"):
        open_pairs("dtd", tmp_path, "test")


def test_soft_counts_are_warnings(tmp_path: Path) -> None:
    make("camvid", tmp_path)
    assert "train has 2 images; CamVid has 367" in open_pairs("camvid", tmp_path, "train").warnings[0]


def test_a_list_that_names_another_image_is_refused(tmp_path: Path) -> None:
    row = make("ade20k_apple", tmp_path)
    write_lines(tmp_path / "ADEChallengeData2016/val.txt", ["other.jpg", "val_0.jpg"])
    with pytest.raises(DataError, match=r"names other\.jpg, which is not in"):
        open_pairs(row, tmp_path, "val")
