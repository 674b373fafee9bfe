"""What a page shows of images: thumbnails and maps as data addresses, and the findings that they belong to."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray
from PIL import Image

from attar.data.base import Source
from attar.data.decode import open_image
from attar.errors import DecodeError

_SIDE = 112  # pixels of a thumbnail


@dataclass(frozen=True)
class Shown:
    """An image on the page.

    Attributes:
        address: Of its thumbnail; None if it cannot be read.
        name: Its path.
        label: Its class, or what a model takes it for; empty where there are none.
        mark: Whether that is the class that was looked for.
        is_shared: Whether teacher and student have both found it.
    """

    address: str | None
    name: str
    label: str = ""
    mark: Literal["", "right", "wrong"] = ""
    is_shared: bool = False


@dataclass(frozen=True)
class TokenMap:
    """Patch tokens of an image as colours, teacher beside student.

    Attributes:
        image: Address of the view that both have seen.
        name: Its path.
        teacher: Address of the teacher's map, a pixel a token.
        student: Of the student's.
        likeness: Cosine between the student's tokens, mapped, and the teacher's, each less the teacher's mean.
    """

    image: str
    name: str
    teacher: str
    student: str
    likeness: float


@dataclass(frozen=True)
class Neighbours:
    """A query, and the nearest images by either model.

    Attributes:
        query: What was looked for.
        teacher: What the teacher finds, the nearest first.
        student: What the student finds.
        agreement: Correlation of the similarities that both see between the query and all other images.
    """

    query: Shown
    teacher: tuple[Shown, ...]
    student: tuple[Shown, ...]
    agreement: float


@dataclass(frozen=True)
class ClassChange:
    """How often either model's neighbours vote for the right class.

    Attributes:
        name: Of the class.
        images: How many were judged.
        teacher: Share that is right, in [0, 1].
        student: Likewise.
        margin: Half of the 95 % interval of the difference.
        examples: Images on which exactly one of the two is right, the one that wins the class.
    """

    name: str
    images: int
    teacher: float
    student: float
    margin: float
    examples: tuple[Shown, ...] = ()

    @property
    def difference(self) -> float:
        """Student less teacher."""
        return self.student - self.teacher

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return abs(self.difference) > self.margin


@dataclass(frozen=True)
class Findings:
    """All that was found out with both models at hand.

    Attributes:
        place: Which images were looked at.
        mapped_by: How the student's tokens came into the teacher's space.
        maps: Patch tokens as colours.
        rows: Queries with neighbours.
        apart: Those on which the models agree least.
        total: How often the right class is found over all; None where there are no classes.
        classes: Where the student loses and gains, the greatest losses first.
        overlap: How many of the teacher's `nearest` the student finds too, on average.
        nearest: That many were looked at.
        models: Facts of both, by role: parameters, multiply-adds, images a second here.
        device: Where "here" is.
    """

    place: str
    mapped_by: str
    maps: tuple[TokenMap, ...]
    rows: tuple[Neighbours, ...]
    apart: tuple[Neighbours, ...]
    total: ClassChange | None
    classes: tuple[ClassChange, ...]
    overlap: float
    nearest: int
    models: Mapping[str, Mapping[str, Any]]
    device: str


def thumbnail(source: Source, row: int) -> str | None:
    """A square JPEG as a data address; None if the image cannot be read."""
    try:
        image = open_image(source.read(row), name=source.name(row))
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        pixels = image.resized((left, top, left + side, top + side), (_SIDE, _SIDE))
    except DecodeError:
        return None
    return _address(pixels, "JPEG", quality=80)


def photo(pixels: NDArray[Any], *, side: int = 192) -> str:
    """Address of a JPEG of (H, W, 3) uint8, no larger than `side`."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _address(image, "JPEG", quality=85)


def pixel_map(pixels: NDArray[Any]) -> str:
    """Address of a PNG of (h, w, 3) uint8, pixel for pixel: the page enlarges it without smoothing."""
    return _address(Image.fromarray(pixels), "PNG", optimize=True)


def _address(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
