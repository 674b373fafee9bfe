"""Pillow's pixels as arrays: the same numbers, whether they are lent or copied."""

import numpy as np
import pytest
from PIL import Image

from attar.data.rgbx import array_of, image_of


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (224, 224), (2500, 1900)])  # the last in several pieces of memory
def test_an_array_has_the_pixels_of_its_image_and_an_image_those_of_its_array(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    found = array_of(image)
    assert found.shape == (size[1], size[0], 4)
    np.testing.assert_array_equal(found[..., :3], pixels)
    np.testing.assert_array_equal(np.asarray(image_of(found)), pixels)


def test_an_array_outlives_its_image():
    image = Image.new("RGB", (300, 200), (1, 2, 3))
    found = array_of(image)
    del image
    others = [Image.new("RGB", (300, 200), (9, 9, 9)) for _ in range(20)]
    assert (found[..., :3] == (1, 2, 3)).all(), others


def test_an_image_has_memory_of_its_own():
    pixels = np.zeros((4, 5, 4), np.uint8)
    image = image_of(pixels)
    pixels[:] = 255
    assert np.asarray(image).max() == 0


def test_other_modes_have_no_four_bytes_a_pixel():
    with pytest.raises(AssertionError, match="mode L"):
        array_of(Image.new("L", (3, 3)))
