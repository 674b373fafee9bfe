from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attar.data.crops import Crops, CropStream, LabelledCrops, crop_batches, distorted
from attar.data.geometry import Geometry
from attar.data.loader import training_batches
from attar.data.pairs import Pair, open_annotated
from attar.errors import DataError
from small_pairs import Drawn, board, write_pair


def crops(size: int, scales: tuple[float, float] = (0.5, 2.0), short_side: int | None = None) -> Crops:
    return Crops(Geometry(size, size, short_side), scales, 255, seed=0)


def classes(pair: Pair) -> torch.Tensor:
    return pair.classes()


@settings(max_examples=30, deadline=None)
@given(place=st.integers(0, 10_000), height=st.integers(10, 80), width=st.integers(10, 80))
def test_pixels_and_annotation_are_cut_alike(place: int, height: int, width: int) -> None:
    # swapped axes, a flip of one of the two, or a shift by half a square would mix black and white
    pair = board(height, width, cell=8)
    pixels, target = crops(32)(pair.open(), pair.classes(), place=place)
    same = (target[1:-1, 1:-1] == target[2:, 1:-1]) & (target[1:-1, 1:-1] == target[:-2, 1:-1])
    same &= (target[1:-1, 1:-1] == target[1:-1, 2:]) & (target[1:-1, 1:-1] == target[1:-1, :-2])  # away from edges
    inner, labels = pixels.float().mean(0)[1:-1, 1:-1][same], target[1:-1, 1:-1][same]
    if (labels == 0).any() and (labels == 1).any():
        assert inner[labels == 0].mean() > inner[labels == 1].mean() + 40
        assert inner[labels == 0].median() > inner[labels == 1].median() + 40


def test_a_crop_is_a_function_of_its_place() -> None:
    pair = board(50, 70)
    one, same, other = (crops(32)(pair.open(), pair.classes(), place=place) for place in (5, 5, 6))
    assert torch.equal(one[0], same[0])
    assert torch.equal(one[1], same[1])
    assert not torch.equal(one[1], other[1])


def test_an_image_smaller_than_the_crop_is_padded_with_the_mean_and_void() -> None:
    # padding with black, or with class 0, would be learned from
    pair = board(20, 30)
    pixels, target = crops(32, (0.5, 0.5))(pair.open(), pair.classes(), place=0)
    assert not target[:16, :24].eq(255).any()  # brought to 32 x 48 first, then halved
    assert target[16:].eq(255).all()
    assert target[:, 24:].eq(255).all()
    assert pixels[:, 20:, 0].T.unique(dim=0).tolist() == [[124, 116, 104]]


def test_a_crop_that_one_class_fills_is_drawn_again() -> None:
    numbers = np.zeros((64, 640), np.uint8)
    numbers[:, 300:340] = 1
    pair = Drawn("strip", np.zeros((64, 640, 3), np.uint8), numbers)
    cuts = [crops(64, (1.0, 1.0))(pair.open(), pair.classes(), place=place)[1] for place in range(40)]
    share = np.mean([len(cut.unique()) > 1 for cut in cuts])
    assert share > 0.5  # a single draw meets the 40 columns in 18 % of places


def test_every_image_comes_once_an_epoch() -> None:
    pairs = [Drawn(f"{n}", np.zeros((8, 8, 3), np.uint8), np.full((8, 8), n, np.uint8)) for n in range(6)]
    stream = CropStream(pairs, classes, crops(8, (1.0, 1.0)))
    found = torch.cat([target[:, 0, 0] for _, target in crop_batches(stream, batch_size=3, steps=range(4), workers=0)])
    assert sorted(found[:6].tolist()) == sorted(found[6:].tolist()) == list(range(6))
    assert found[:6].tolist() != found[6:].tolist()
    late = next(iter(crop_batches(stream, batch_size=3, steps=range(3, 4), workers=0)))
    assert torch.equal(late[1][:, 0, 0], found[9:])


def test_an_unreadable_annotation_ends_the_stream_by_name(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", "bad", np.zeros((8, 8), np.uint8))
    (pair,) = open_annotated(tmp_path, "train")
    pair.annotation.write_bytes(b"x")
    stream = CropStream([pair], classes, crops(8))
    with pytest.raises(DataError, match=r"bad\.png cannot be read"):
        next(crop_batches(stream, batch_size=2, steps=range(1), workers=0))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_distortion_keeps_grey_grey_and_within_its_bounds(seed: int) -> None:
    # hue of a colourless pixel is 0 whatever is added; 100 becomes (100 +- 32) * 1.5 at most
    found = distorted(np.full((2, 2, 3), 100, np.uint8), np.random.default_rng(seed))
    assert np.ptp(found) == 0
    assert 33 <= found[0, 0, 0] <= 198


def test_distortion_changes_hue_and_saturation_too() -> None:
    red = np.full((1, 1, 3), (200, 20, 20), np.uint8)
    found = np.stack([distorted(red, np.random.default_rng(seed))[0, 0] for seed in range(60)]).astype(int)
    assert (found[:, 1] > found[:, 2] + 10).any()  # towards yellow
    assert (found[:, 2] > found[:, 1] + 10).any()  # towards magenta
    assert (found[:, 0] >= found[:, 1:].max(1)).all()  # but never beyond 36 degrees


def test_labelled_crops_are_batches_of_the_same_places_on_any_number_of_ranks() -> None:
    # catches classes that stay uint8 or lose their map, pixels left at 255, another crop for another rank
    pairs = [board(40, 40, seed=seed) for seed in range(3)]
    stream = CropStream(pairs, classes, crops(16))
    labelled = LabelledCrops(stream)
    assert (labelled.img_size, labelled.epoch_length, len(labelled.source)) == (16, 3, 3)
    (whole,) = training_batches(labelled, batch_size=4, start_step=2, num_steps=3)
    (second,) = training_batches(labelled, batch_size=4, start_step=2, num_steps=3, rank=1, world_size=2)
    assert whole.labels is not None
    assert second.labels is not None
    assert whole.labels.shape == (4, 16, 16)
    assert whole.labels.dtype == torch.int64
    pixels, numbers = stream[8]  # the first place of step 2
    assert torch.equal(whole.views[0], pixels)
    assert torch.equal(whole.to(torch.device("cpu")).views[0], pixels.float() / 255)
    assert torch.equal(whole.labels[0], numbers.long())
    assert torch.equal(second.views, whole.views[2:])
    assert torch.equal(second.labels, whole.labels[2:])
    assert whole.names[0] == pairs[stream.row(8)].name


def test_an_annotated_image_that_is_gone_ends_the_training(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", "a", np.zeros((8, 8), np.uint8))
    pairs = open_annotated(tmp_path, "train")
    pairs[0].image.unlink()
    labelled = LabelledCrops(CropStream(pairs, classes, crops(8)))
    with pytest.raises(DataError, match=r"a\.png"):
        next(training_batches(labelled, batch_size=1, start_step=0, num_steps=1))
