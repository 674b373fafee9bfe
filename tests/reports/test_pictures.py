"""Images on a page: data addresses that decode to what was given."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from attar.reports.pictures import ClassChange, photo, pixel_map


def decoded(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def test_a_map_keeps_every_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    address = pixel_map(pixels)
    assert address.startswith("data:image/png;base64,")
    assert np.array_equal(np.asarray(decoded(address)), pixels)


def test_a_photo_is_small_and_never_enlarged() -> None:
    big, small = (decoded(photo(np.full((side, side, 3), 200, np.uint8))) for side in (518, 32))
    assert big.size == (192, 192)
    assert small.size == (32, 32)
    assert abs(int(np.asarray(big).mean()) - 200) < 3


def test_a_change_is_clear_when_its_interval_leaves_zero_out() -> None:
    assert ClassChange("a", 9, 0.5, 0.8, margin=0.2).is_clear
    assert ClassChange("a", 9, 0.8, 0.5, margin=0.2).is_clear
    assert not ClassChange("a", 9, 0.5, 0.6, margin=0.2).is_clear
