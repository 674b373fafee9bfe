from __future__ import annotations

from attar.data.geometry import Geometry


def test_an_image_is_as_large_as_its_window_at_least() -> None:
    assert Geometry(518, 345, short_side=518).base_size((690, 518)) == (518, 690)
    assert Geometry(64, 42).base_size((100, 80)) == (80, 100)
    assert Geometry(64, 42).base_size((30, 20)) == (64, 96)
