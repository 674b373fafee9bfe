"""Packed images: at most so large, else as they were; their order, names and classes stay."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attar.data.decode import open_image
from attar.data.files import File
from attar.data.pack import PACK_FILE, PackFile, Packing, class_names_beside, packed_shards, shard_name
from attar.data.shards import Shards
from attar.data.sources import open_source
from attar.errors import DataError, DecodeError
from attar.utils.io import write_json
from small_runs import picture


def encoded(size: tuple[int, int], kind: str = "JPEG", **settings: object) -> bytes:
    file = io.BytesIO()
    picture(size=size).save(file, kind, **settings)
    return file.getvalue()


@pytest.mark.parametrize("size", [(900, 600), (600, 900), (513, 300), (5000, 40)])
def test_a_large_image_gets_the_short_side_and_keeps_its_shape(size):
    data, ending = Packing(32, 95)(encoded(size), name="x")
    width, height = open_image(data, name="x").size
    assert ending == ".jpg"
    assert min(width, height) == 32
    assert width / height == pytest.approx(size[0] / size[1], rel=1 / 64)


def test_it_is_the_whole_image_scaled_down():
    large = encoded((400, 300), "PNG")
    data, _ = Packing(60, 100)(large, name="x")
    expected = open_image(large, name="x").resized(None, (80, 60))
    difference = np.asarray(Image.open(io.BytesIO(data)), np.float32) - np.asarray(expected, np.float32)
    assert np.abs(difference).mean() < 1.5  # JPEG at its best, colours at full resolution


def test_a_turned_photo_stands_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # its rows run downwards
    data, _ = Packing(50, 95)(encoded((200, 100), exif=exif), name="x")
    assert Image.open(io.BytesIO(data)).size == (50, 100)
    assert not Image.open(io.BytesIO(data)).getexif()


@pytest.mark.parametrize(("kind", "ending"), [("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"), ("BMP", ".bmp")])
def test_a_small_file_is_copied(kind, ending):
    small = encoded((40, 30), kind)
    assert Packing(30, 95)(small, name="x") == (small, ending)


def test_small_pixels_lose_nothing():
    pixels = np.asarray(picture(size=(40, 30)))
    data, ending = Packing(30, 95)(pixels, name="x")
    assert ending == ".png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)


@pytest.mark.parametrize("size", [(40, 30), (400, 300)])
def test_a_file_that_is_cut_is_an_error(size):
    whole = encoded(size, "PNG")
    with pytest.raises(DecodeError, match=r"^cut"):
        Packing(64, 95)(whole[: len(whole) // 2], name="cut")


def test_order_names_and_classes_stay_and_what_cannot_be_read_is_left_out(tmp_path):
    for number in range(7):
        path = tmp_path / "images" / f"class {number % 2}" / f"{number}.a.b.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded((40 + number, 30)))
    bad = tmp_path / "images" / "class 0" / "2.a.b.jpg"
    bad.write_bytes(b"no image")
    source = open_source(str(tmp_path / "images"))
    labels, names = source.labels()
    shards = Shards(len(source), 3, 2)
    done = list(packed_shards(source, labels, Packing(16, 95), shards, range(len(shards)), tmp_path))
    assert [image.row for image in done] == list(range(7))
    assert [image.name for image in done if image.bad is not None] == ["class 0/2.a.b.jpg"]
    packed = open_source([str(tmp_path / shard_name(number)) for number in range(3)])
    kept = [row for row in range(7) if source.name(row) != "class 0/2.a.b.jpg"]
    assert [packed.name(n).partition("/")[2] for n in range(6)] == [f"{source.name(r)}/{r:09}.jpg" for r in kept]
    assert [names[labels[row]] for row in kept] == [names[label] for label in packed.labels()[0]]
    assert all(min(open_image(packed.read(row), name="x").size) == 16 for row in range(6))


def test_the_same_images_make_the_same_shard(tmp_path):
    source, shards = open_source("playground:0?n=5"), Shards(5, 5, 2)
    for out, workers in (("one", 0), ("other", 2)):
        (tmp_path / out).mkdir()
        list(packed_shards(source, None, Packing(32, 95), shards, [0], tmp_path / out, workers=workers))
    one, other = (tmp_path / out / shard_name(0) for out in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


def beside(folder: Path, **about: object) -> list[File]:
    folder.mkdir(exist_ok=True)
    write_json(folder / PACK_FILE, PackFile(plan={}, **about).model_dump(mode="json"))
    return [File(str(folder / shard_name(0)))]


def test_names_of_classes_are_those_beside_the_shards(tmp_path):
    assert class_names_beside([File(str(tmp_path / "x.tar"))]) is None
    assert class_names_beside([File("s3://bucket/x.tar")]) is None
    assert class_names_beside(beside(tmp_path, images=3, class_names=("cat", "dog"))) == ["cat", "dog"]
    assert class_names_beside(beside(tmp_path, images=3)) is None


def test_shards_that_count_other_classes_are_not_taken_for_one(tmp_path):
    one = beside(tmp_path / "a", images=3, class_names=("cat", "dog"))
    assert class_names_beside([*one, *beside(tmp_path / "b", images=3, class_names=("cat", "dog"))]) == ["cat", "dog"]
    for other in (beside(tmp_path / "c", images=3, class_names=("dog", "cat")), [File(str(tmp_path / "x.tar"))]):
        with pytest.raises(DataError, match=r"count other classes. Give them as two places"):
            class_names_beside([*one, *other])


def test_a_class_that_nobody_has_named_is_told(tmp_path):
    source, shards = open_source("playground:0?n=4"), Shards(4, 4, 4)
    list(packed_shards(source, np.array([0, 1, 2, 1]), Packing(16, 95), shards, [0], tmp_path))
    packed = open_source(beside(tmp_path, images=4, class_names=("cat", "dog"))[0].address)
    with pytest.raises(DataError, match=r"000000002\.jpg is of class 2, and attar-pack\.json names 2"):
        packed.labels()


def test_a_part_is_not_taken_for_the_whole(tmp_path):
    with pytest.raises(DataError, match="not packed to its end"):
        class_names_beside(beside(tmp_path, class_names=("cat",)))
    for content in ("{", "[]", "{}"):
        (tmp_path / PACK_FILE).write_text(content)
        with pytest.raises(DataError, match=r"damaged\. Pack the images once more"):
            class_names_beside([File(str(tmp_path / shard_name(0)))])


def test_a_strip_that_is_too_long_for_jpeg_becomes_a_png():
    data, ending = Packing(16, 95)(encoded((20, 90_000), "PNG"), name="strip")
    assert ending == ".png"
    assert open_image(data, name="strip").size == (16, 72_000)
