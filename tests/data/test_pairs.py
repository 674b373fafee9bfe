from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attar.data.pairs import PairSource, Scene, holds_depth, open_annotated, read_annotation, read_depth
from attar.data.sources import images_in_both, open_source, share_a_place
from attar.errors import DataError
from attar.evaluation.dense.targets import Classes
from small_pairs import write_pair


def test_depth_files_hold_millimetres(tmp_path: Path) -> None:
    # centimetres, or 8 bits of the 16, would give 15 m or 0.22 m
    write_pair(tmp_path, "test", "a", np.array([[1500, 0], [9999, 65535]], np.uint16))
    (pair,) = open_annotated(tmp_path, "test")
    torch.testing.assert_close(pair.depth(), torch.tensor([[1.5, 0.0], [9.999, 65.535]]))
    assert holds_depth(pair.annotation)


def test_classes_and_depth_are_not_taken_for_each_other(tmp_path: Path) -> None:
    write_pair(tmp_path, "test", "classes", np.array([[3, 255]], np.uint8))
    write_pair(tmp_path, "test", "depth", np.array([[3, 255]], np.uint16))
    classes, depth = open_annotated(tmp_path, "test")
    assert classes.classes().tolist() == [[3, 255]]
    with pytest.raises(DataError, match=r"depth\.png is an image of mode I;16; it must hold one class number"):
        read_annotation(depth.annotation)
    with pytest.raises(DataError, match=r"classes\.png is an image of mode L; it must hold depth in millimetres"):
        read_depth(classes.annotation)


@pytest.mark.parametrize("damage", [b"", b"no image", None], ids=["empty", "text", "half"])
def test_a_damaged_annotation_is_named(tmp_path: Path, damage: bytes | None) -> None:
    noise = np.random.default_rng(0).integers(0, 9, (64, 64)).astype(np.uint8)
    write_pair(tmp_path, "test", "broken", noise)
    (pair,) = open_annotated(tmp_path, "test")
    whole = pair.annotation.read_bytes()
    pair.annotation.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with pytest.raises(DataError, match=r"broken\.png cannot be read"):
        pair.classes()


def test_an_annotation_of_another_size_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path, "test", "a", np.zeros((4, 6), np.uint8), pixels=np.zeros((6, 4, 3), np.uint8))
    (pair,) = open_annotated(tmp_path, "test")
    with pytest.raises(DataError, match=r"a\.png has 4x6 pixels, and its annotation 6x4"):
        Classes(2).read(pair)


def test_missing_folders_and_annotations_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images.train does not exist"):
        open_annotated(tmp_path, "train")
    write_pair(tmp_path, "train", "one", np.zeros((4, 6), np.uint8))
    (tmp_path / "annotations" / "train" / "one.png").unlink()
    with pytest.raises(DataError, match=r"one\.png does not exist"):
        open_annotated(tmp_path, "train")
    (tmp_path / "images" / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        open_annotated(tmp_path, "empty")


def test_an_annotation_in_colours_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="mode RGB"):
        read_annotation(tmp_path / "a.png")


def test_a_scene_has_one_size_for_all_it_knows() -> None:
    scene = Scene(1, 0)
    assert scene.open().size == (64, 64)
    assert scene.classes().shape == scene.depth().shape == (64, 64)
    assert set(torch.unique(scene.classes()).tolist()) == {0, 1}  # the first class of shapes
    assert scene.depth().min() >= 0.1
    assert scene.depth().max() <= 1


def test_images_of_pairs_are_a_source_that_tells_its_place(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_pair(tmp_path, part, "a", np.zeros((4, 4), np.uint8))
    train, val = (PairSource(open_annotated(tmp_path, part)) for part in ("train", "val"))
    assert train.read(0) == Path(train.uri(0)).read_bytes()
    assert train.labels() is None
    folder = open_source(str(tmp_path / "images" / "train"))
    assert share_a_place(folder, train)
    assert not share_a_place(folder, val)
    assert share_a_place(open_source("playground:3?n=9"), PairSource([Scene(3, 1)]))
    assert images_in_both(open_source("playground:3?n=9"), PairSource([Scene(3, 1), Scene(3, 9), Scene(4, 1)])) == 1
    assert images_in_both(train, folder) == len(train)
    assert train.fingerprint != val.fingerprint
