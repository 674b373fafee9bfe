"""Parts of an image are found in it, whatever was done to them; other images of the kind and smooth ones are not."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from attar.curation.pixels import PART, compare, grey, sameness
from attar.data.decode import open_image
from attar.data.sources import open_source

SIDE = 64


def picture(number: int, *, layout: int | None = None) -> Image.Image:
    """Noise of all scales; pictures of one layout share light and dark areas, and no details."""
    pixels = np.full((SIDE, SIDE, 3), 128.0)
    for cells in (3, 6, 12, 24, 48):
        rng = np.random.default_rng([layout, cells] if layout is not None and cells < 12 else [1000 + number, cells])
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3)).astype(np.uint8))
        pixels += (np.asarray(noise.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=float) - 128) / cells**0.5
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, quality: int = 30) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def pairs_of(ones: list[Image.Image], others: list[Image.Image]) -> torch.Tensor:
    """(n,) sameness, pair by pair."""
    images = [grey(open_image(np.asarray(image.convert("RGB")), name="test")) for image in (*ones, *others)]
    first = torch.arange(len(ones))
    return sameness(torch.stack(images), torch.stack([first, first + len(ones)], dim=1))


CHANGES = {
    "nothing": lambda image: image,
    "JPEG of quality 30": encoded,
    "mirrored": mirrored,
    "half its size": lambda image: image.resize((SIDE // 2, SIDE // 2)),
    "brighter": lambda image: image.point(lambda value: min(255, int(value * 1.15) + 10)),
    "four fifths": lambda image: image.crop((5, 2, 62, 59)),
    "half, wide": lambda image: image.crop((9, 23, 61, 62)),
    "a quarter": lambda image: image.crop((17, 30, 49, 62)),
    "a quarter, wide, encoded": lambda image: encoded(image.crop((1, 3, 38, 31))),
    "a quarter, tall, stretched to a square": lambda image: image.crop((33, 20, 61, 57)).resize((50, 50)),
    "a fifth, mirrored": lambda image: mirrored(image.crop((8, 11, 37, 40))),
    "half, stretched, mirrored, encoded, brighter": lambda image: encoded(
        mirrored(image.crop((3, 14, 43, 63)).resize((48, 48))).point(lambda value: min(255, int(value * 1.1)))
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_parts_are_found_whatever_was_done_to_them_and_whichever_comes_first(change) -> None:
    whole = [picture(number) for number in range(6)]
    parts = [CHANGES[change](image) for image in whole]
    assert pairs_of(parts, whole).min() > PART
    assert pairs_of(whole, parts).min() > PART


def test_pictures_that_share_light_and_dark_areas_are_not_parts_of_each_other() -> None:
    ones, others = ([picture(number, layout=number % 8) for number in range(start, start + 32)] for start in (0, 32))
    found = pairs_of(ones, others)
    assert found.max() < PART - 0.1
    assert (found > 0).float().mean() > 0.5  # not for want of a closer look


def test_of_smooth_pictures_nothing_is_said() -> None:
    ramp = np.linspace(0, 1, SIDE)
    across, down = np.meshgrid(ramp, ramp)
    smooth = [np.full((SIDE, SIDE), 0.5), across, down, across * down, (across - 0.5) ** 2 + (down - 0.5) ** 2]
    noisy = np.random.default_rng(0).normal(0, 0.003, (SIDE, SIDE)) + 0.5
    images = [Image.fromarray((255 * values).clip(0, 255).astype(np.uint8)) for values in (*smooth, noisy)]
    for turn in range(len(images)):
        assert pairs_of(images, images[turn:] + images[:turn]).max() < PART
        assert pairs_of(images, [encoded(image) for image in images[turn:] + images[:turn]]).max() < PART


def test_scenes_of_the_playground_are_told_apart_and_their_parts_are_found() -> None:
    source = open_source("playground:0")
    scenes = [Image.fromarray(np.asarray(source.read(row))) for row in range(40)]
    width, height = scenes[0].size
    box = (width // 8, height // 8, width // 8 + round(0.6 * width), height // 8 + round(0.6 * height))
    parts = pairs_of([encoded(mirrored(scene.crop(box)), 75) for scene in scenes], scenes)
    assert (parts > PART).float().mean() > 0.9
    others = pairs_of(scenes, scenes[1:] + scenes[:1])
    assert (others > PART).float().mean() <= 0.05  # a bare shape in grey is any other bare shape of its form


def test_pairs_do_not_depend_on_each_other_nor_on_their_order() -> None:
    images = [picture(number, layout=0) for number in range(5)]
    images += [image.crop((10, 10, 50, 50)) for image in images]
    stacked = torch.stack([grey(open_image(np.asarray(image), name="test")) for image in images])
    pairs = torch.cartesian_prod(torch.arange(10), torch.arange(10))
    together = sameness(stacked, pairs)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sameness(stacked, pairs[order]), together[order], atol=1e-4, rtol=0)
    torch.testing.assert_close(sameness(stacked[[7, 2]], torch.tensor([[0, 1]])), together[72:73], atol=1e-4, rtol=0)
    assert sameness(stacked, pairs[:0]).shape == (0,)


def test_of_images_that_cannot_be_read_nothing_is_known(tmp_path) -> None:
    for number in range(4):
        for folder, image in (("whole", picture(number)), ("parts", picture(number).crop((4, 4, 50, 50)))):
            (tmp_path / folder).mkdir(exist_ok=True)
            image.save(tmp_path / folder / f"{number}.png")
    (tmp_path / "whole/1.png").write_bytes(b"no image")
    (tmp_path / "parts/2.png").write_bytes(b"neither")
    parts, whole = open_source(str(tmp_path / "parts")), open_source(str(tmp_path / "whole"))
    found = compare(parts, np.array([0, 1, 2, 3, 0]), whole, np.array([0, 1, 2, 3, 3]))
    assert found.isnan().tolist() == [False, True, True, False, False]
    assert (found > PART).tolist() == [True, False, False, True, False]
    nothing = np.zeros(0, dtype=np.int64)
    assert compare(parts, nothing, whole, nothing).shape == (0,)
