"""What ships beside a file sees the pixels that attar sees, of every kind of image file."""

import io

import numpy as np
import pytest
from PIL import Image

from attar.data.decode import open_image
from attar.data.views import EvaluationView
from attar.export.preprocess import prepare, view

SIZES = [(64, 64), (300, 200), (150, 431), (40, 33)]


def photo(size, mode="RGB", seed=0):
    """Smooth noise, in which resampling shows."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 4), dtype=np.uint8)
    image = Image.fromarray(small, "RGBA").resize(size, Image.Resampling.BICUBIC)
    return image.convert(mode) if mode != "I;16" else Image.fromarray(np.asarray(image.convert("L")).astype("u2") * 257)


def encoded(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def turned(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def assert_same(data, side=48, crop_pct=1.0):
    wanted = EvaluationView(side, crop_pct)(open_image(data, name="image")).numpy()
    found = np.asarray(view(io.BytesIO(data), side, crop_pct)).transpose(2, 0, 1)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_jpeg_of_any_shape_is_seen_as_attar_sees_it(size, crop_pct):
    assert_same(encoded(photo(size), "JPEG"), crop_pct=crop_pct)


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("size", [(301, 203), (59, 83)])  # one is decoded at reduced scale, with a rest
def test_orientation_of_exif_is_applied_as_in_attar(number, size):
    assert_same(encoded(photo(size), "JPEG", exif=turned(number)), crop_pct=0.9)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "I;16"])
def test_png_of_every_mode_is_seen_as_attar_sees_it(mode):
    assert_same(encoded(photo((90, 70), mode), "PNG"))


@pytest.mark.parametrize("normalise", ["inside", "beside"])
def test_what_the_model_takes_may_be_written_to_as_torch_asks(normalise):
    settings = {"img_size": 32, "crop_pct": 1.0, "normalise": normalise, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert prepare(io.BytesIO(encoded(photo((64, 48)), "PNG")), settings).flags.writeable


def test_cmyk_and_webp_and_a_turned_tiff_are_seen_as_attar_sees_them():
    assert_same(encoded(photo((210, 120), "CMYK"), "JPEG"))
    assert_same(encoded(photo((90, 70)), "WEBP", lossless=True))
    assert_same(encoded(photo((90, 70)), "TIFF", exif=turned(6)))


def test_values_are_normalised_beside_the_file_and_left_alone_inside():
    data = encoded(photo((60, 50)), "PNG")
    settings = {"img_size": 32, "crop_pct": 1.0, "normalise": "beside", "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    pixels = prepare(io.BytesIO(data), settings | {"normalise": "inside"})
    assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.uint8)
    values = prepare(io.BytesIO(data), settings)
    assert (values.shape, values.dtype) == ((3, 32, 32), np.float32)
    np.testing.assert_allclose(values[2, 5, 7], (pixels[5, 7, 2] / 255 - 0.3) / 0.7, rtol=1e-5)
