from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from attar.errors import DataError
from attar.evaluation import LinearSegmentation, open_annotated
from attar.evaluation.segmentation import (
    dense_tokens,
    read_annotation,
    read_pixels,
    tokens_at,
)
from attar.models import load_backbone
from attar.types import Tokens

VOID = 11


class Colours:
    """A frozen backbone whose patch tokens are the mean colours of its patches."""

    embed_dim, img_size = 3, 8

    def __init__(self, patch_size: int) -> None:
        self.patch_size = patch_size

    def tokens(self, images: Tensor) -> Tokens:
        means = F.avg_pool2d(images.float() / 255, self.patch_size)
        patch = means.flatten(2).transpose(1, 2)
        return Tokens(patch.mean(1), patch, (means.shape[2], means.shape[3]), patch[:, :0])


def test_tiles_are_put_back_where_they_were_cut() -> None:
    # rows and columns of tiles or of patches taken the wrong way round would scramble the map
    pixels = torch.randint(0, 256, (3, 16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = F.avg_pool2d(pixels[None].float() / 255, 4)[0]
    torch.testing.assert_close(dense_tokens(Colours(4), pixels), expected)


def test_dense_tokens_of_one_tile_are_the_backbones_own() -> None:
    backbone = load_backbone(
        "vit_tiny_patch16_224?patch_size=8&embed_dim=16&depth=1&num_heads=2", weights="random", img_size=32
    )
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    expected = backbone.tokens(pixels[None]).patch[0].T.view(16, 4, 4)
    torch.testing.assert_close(dense_tokens(backbone, pixels), expected)


def test_tokens_at_pixels_are_what_interpolation_gives_there() -> None:
    # catches align_corners, swapped axes, and pixel corners taken for centres
    tokens = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(tokens[None], size=(15, 33), mode="bilinear")[0]
    where = torch.arange(15 * 33)
    torch.testing.assert_close(tokens_at(tokens, where, size=(15, 33)), large.flatten(1).T, atol=1e-5, rtol=0)


def test_images_are_stretched_to_the_nearest_multiple(tmp_path: Path) -> None:
    Image.new("RGB", (30, 19)).save(tmp_path / "a.png")
    assert read_pixels(tmp_path / "a.png", multiple_of=8).shape == (3, 16, 32)
    assert read_pixels(tmp_path / "a.png", multiple_of=64).shape == (3, 64, 64)  # one tile at least


def write_scene(root: Path, split: str, name: str, seed: int) -> None:
    """24 x 16 pixels of four plain colours in random order, a class each; grey is void and looks like anything."""
    colours = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [128, 128, 128]], np.uint8)
    classes = np.array([0, 1, 2, VOID], np.uint8)
    scene = np.random.default_rng(seed).integers(0, 4, (16, 24))
    for kind, pixels in (("images", colours[scene]), ("annotations", classes[scene])):
        folder = root / kind / split
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{name}.png")


def segmentation(root: Path) -> LinearSegmentation:
    for number, split in enumerate(("train", "train", "val", "test", "test")):
        write_scene(root, split, f"{number}", seed=number)
    parts = [open_annotated(root, split) for split in ("train", "val", "test")]
    return LinearSegmentation(*parts, num_classes=3, seed=0)


def test_features_that_tell_the_classes_apart_reach_one(tmp_path: Path) -> None:
    found = dict(segmentation(tmp_path).run(Colours(1)))  # a token for each pixel
    assert found["segmentation_miou"] == 1.0
    assert (found["segmentation_low"], found["segmentation_high"]) == (1.0, 1.0)
    assert found["segmentation_images"] == 2


def test_features_that_see_too_little_do_not(tmp_path: Path) -> None:
    probe = segmentation(tmp_path)
    coarse = dict(probe.run(Colours(8)))  # one colour for 64 pixels of random classes
    assert coarse["segmentation_miou"] < 0.5
    assert coarse == dict(probe.run(Colours(8)))
    assert coarse["segmentation_low"] <= coarse["segmentation_miou"] <= coarse["segmentation_high"]


def test_missing_folders_and_annotations_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images.train does not exist"):
        open_annotated(tmp_path, "train")
    write_scene(tmp_path, "train", "one", seed=0)
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
