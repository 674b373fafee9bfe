"""Sizes in which a model looks at images that are larger than its input."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """Sizes in pixels in which a model sees images that are larger than its input.

    Attributes:
        crop: Side of training crops and of windows: the backbone's input.
        stride: From one window to the next.
        short_side: Images are resized to it; None for their own size, but `crop` at least.
        mirror: Average the predictions of an image and of its mirror image.
    """

    crop: int
    stride: int
    short_side: int | None = None
    mirror: bool = False

    def base_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in which an image of (width, height) is looked at.

        Example:
            >>> Geometry(518, 345, short_side=518).base_size((800, 600)), Geometry(224, 149).base_size((800, 600))
            ((518, 691), (600, 800))
        """
        width, height = size
        wanted = self.short_side or max(min(size), self.crop)
        return round(height * wanted / min(size)), round(width * wanted / min(size))
