"""Classes of the shifted sets among ImageNet's thousand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attar.errors import ConfigError, DataError, MissingDatasetError
from attar.evaluation.datasets import CORRUPTIONS, EXTRA_CORRUPTIONS, find_dataset, imagenet_indices, open_dataset
from attar.evaluation.datasets.layouts import imagenet_wnids
from miniatures import MINIATURES


def test_two_hundred_each_and_not_the_same(tmp_path: Path) -> None:
    wnids = imagenet_wnids()
    a, r = (np.array(imagenet_indices(f"imagenet-{name}", tmp_path)) for name in "ar")
    assert a.shape == r.shape == (200, 1)
    assert [wnids[index] for index in a[:, 0]] == list(imagenet_wnids("a"))  # catches ranks among 200 taken for indices
    assert [wnids[index] for index in r[:, 0]] == list(imagenet_wnids("r"))
    assert (np.diff(a[:, 0]) > 0).all()
    assert set(a[:, 0]) != set(r[:, 0])
    # heads of the authors' own lists of indices
    assert a[:5, 0].tolist() == [6, 11, 13, 15, 17]
    assert r[:5, 0].tolist() == [1, 2, 4, 6, 8]


def test_the_whole_thousand_stands_for_itself(tmp_path: Path) -> None:
    for name in ("imagenet", "imagenetv2", "imagenet-sketch", "imagenet-c", "imagenet-real"):
        assert imagenet_indices(name, tmp_path) == tuple((index,) for index in range(1000))
    with pytest.raises(ConfigError, match="not ImageNet's"):
        imagenet_indices("pets", tmp_path)


def test_objectnets_classes_by_hand(tmp_path: Path) -> None:
    # the miniature's 2012 numbers are 3 above a head's classes, modulo 11: unmapped, 'text nine' would be 9
    mini = MINIATURES["objectnet"]
    mini.make(tmp_path, mini)
    assert imagenet_indices("objectnet", tmp_path) == ((6,), (10, 4), (2,))
    opened = open_dataset(mini.row("objectnet"), tmp_path, "test")
    assert opened.class_names == ("Alarm clock", "Backpack", "Zebra toy")
    assert all("apron" not in opened.source.name(row) for row in range(len(opened.source)))

    (tmp_path / "objectnet-1.0/mappings/imagenet_to_label_2012_v2").write_text("text zero\n")
    with pytest.raises(DataError, match="no ImageNet class named 'text nine'"):
        imagenet_indices("objectnet", tmp_path)
    with pytest.raises(MissingDatasetError, match=r"objectnet-1\.0"):
        imagenet_indices("objectnet", tmp_path / "elsewhere")


def test_fifteen_corruptions_of_five_severities_and_four_more() -> None:
    assert (len(CORRUPTIONS), len(EXTRA_CORRUPTIONS)) == (15, 4)
    splits = find_dataset("imagenet-c").splits
    assert len(splits) == 19 * 5
    assert {f"{name}/{severity}" for name in CORRUPTIONS for severity in range(1, 6)} < set(splits)
