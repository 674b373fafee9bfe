from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from attar.errors import DataError
from attar.evaluation import LinearSegmentation, mean_iou, open_annotated
from attar.evaluation.segmentation import (
    bootstrap_miou,
    confusion_matrix,
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


def test_mean_iou_by_hand() -> None:
    target = torch.tensor([0, 0, 0, 1, 1, 2, VOID, VOID])
    predicted = torch.tensor([0, 0, 1, 1, 1, 0, 2, 0])
    confusion = confusion_matrix(predicted, target, num_classes=3)
    assert confusion.tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]  # transposed, class 0 would miss one too few
    # 2/4, 2/3, 0/1; pixel accuracy 4/6, mean class accuracy 5/9, Dice 22/45; void as wrong: 2/5 for class 0
    assert mean_iou(confusion) == pytest.approx((2 / 4 + 2 / 3 + 0) / 3)


def test_a_class_that_is_nowhere_does_not_count_and_one_only_predicted_does() -> None:
    # class 3 neither in target nor predicted: as 0 it would pull the mean down, as 1 up
    nowhere = confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, 1]), num_classes=4)
    assert mean_iou(nowhere) == 1.0
    predicted_only = confusion_matrix(torch.tensor([0, 2]), torch.tensor([0, 0]), num_classes=3)
    assert mean_iou(predicted_only) == pytest.approx((1 / 2 + 0) / 2)


def test_pixels_are_pooled_over_images() -> None:
    first = confusion_matrix(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1]), num_classes=2)
    second = confusion_matrix(torch.tensor([1]), torch.tensor([1]), num_classes=2)
    pooled = mean_iou(first + second)
    assert pooled == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert pooled != pytest.approx((mean_iou(first) + mean_iou(second)) / 2)  # what a mean over images gives


@pytest.mark.parametrize("void", [VOID, 255])
def test_void_is_left_out_whatever_is_predicted(void: int) -> None:
    target = torch.tensor([[0, void], [1, void]], dtype=torch.uint8)
    for guess in (0, 1, 10):
        predicted = torch.tensor([[0, guess], [1, guess]])
        assert mean_iou(confusion_matrix(predicted, target, num_classes=11)) == 1.0


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


def test_interval_widens_with_the_difference_between_images() -> None:
    good, bad = torch.tensor([[5, 0], [0, 5]]), torch.tensor([[3, 2], [2, 3]])
    assert bootstrap_miou(torch.stack([bad] * 6), seed=0) == pytest.approx((3 / 7, 3 / 7))
    low, high = bootstrap_miou(torch.stack([good, bad] * 10), seed=0)
    assert 3 / 7 < low < mean_iou(good + bad) < high < 1


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
