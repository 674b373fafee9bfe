"""The playground as a place: `playground:SEED?n=COUNT` and what else may follow, as sources of scenes."""

from __future__ import annotations

import functools
import hashlib
import re
from typing import Literal, Self, TypeVar
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attar.config import Config
from attar.data.arrangements import COMBINATIONS, Part, render_arrangement
from attar.data.base import Labels, Problem
from attar.data.playground import CLASS_NAMES, render_scene
from attar.errors import ConfigError, DataError

_FORM = re.compile(r"playground(?::(\d+)(?:\?([!-~]+))?)?", re.ASCII)
_Options = TypeVar("_Options", bound=Config)
_KEPT = 4096  # scenes of each kind, 50 MB; drawing one costs as much as a small student's forward pass
_KEPT_SIZE = 64  # pixels up to which scenes are kept: more would take more memory than time


class _SceneOptions(Config):
    n: int = Field(10_000, ge=1)
    variety: float = Field(1.0, ge=0, le=1)


class _ArrangementOptions(Config):
    scenes: Literal["arrangements"]
    n: int = Field(10_000, ge=1)
    part: Part = "seen"
    things: int | None = Field(None, ge=1, le=2)
    size: int = Field(64, ge=16, le=1024)


def open_playground(reference: str) -> PlaygroundSource | ArrangementSource:
    """Scenes of one main shape, or with `scenes=arrangements` of one or two things in words.

    Raises:
        DataError: If the reference has another form, or an option is unknown or out of bounds.

    Example:
        >>> source = open_playground("playground:1?scenes=arrangements&part=held_out&things=1&n=50")
        >>> source.labels()[1][:2], source.read(0).shape
        (['red circle', 'red ring'], (64, 64, 3))
    """
    if "scenes" in _split(reference)[1]:
        return ArrangementSource.parse(reference)
    return PlaygroundSource.parse(reference)


class PlaygroundSource:
    """Procedural scenes with their classes: `playground:SEED?n=COUNT&variety=SHARE`."""

    problems: tuple[Problem, ...] = ()

    def __init__(self, seed: int, count: int, variety: float = 1.0) -> None:
        self.seed, self.count, self.variety = seed, count, variety
        self.root = f"playground:{seed}"
        self.fingerprint = hashlib.sha256(f"playground:{seed}:{count}:{variety}".encode()).hexdigest()

    @classmethod
    def parse(cls, reference: str) -> Self:
        """Read `playground`, `playground:SEED`, `playground:SEED?n=COUNT` or `…&variety=SHARE`.

        Raises:
            DataError: If the reference has another form, an option is unknown or out of bounds.
        """
        seed, options = _parse(reference, _SceneOptions)
        return cls(seed, options.n, options.variety)

    def __len__(self) -> int:
        return self.count

    def name(self, row: int) -> str:
        """Seed and row."""
        return f"playground:{self.seed}[{row}]"

    def uri(self, row: int) -> str:
        """Seed and row, as places are named."""
        return f"{self.root}#{row}"

    def read(self, row: int) -> NDArray[np.uint8]:
        """Pixels of the scene, (64, 64, 3)."""
        return _scene_pixels(self.seed, row, self.variety)

    @property
    def keeps_scenes(self) -> bool:
        """Whether a process draws each scene once."""
        return self.count <= _KEPT

    def labels(self) -> tuple[Labels, list[str]]:
        """Shape classes, as many as there are scenes at most."""
        return np.arange(self.count, dtype=np.int64) % len(CLASS_NAMES), list(CLASS_NAMES[: self.count])


class ArrangementSource:
    """Scenes of one or two things: `playground:SEED?scenes=arrangements&n=COUNT&part=PART&things=NUMBER&size=PIXELS`.

    Their class is colour and shape of the first thing, as in "red star". `COMBINATIONS` has the combinations of a part.
    """

    problems: tuple[Problem, ...] = ()

    def __init__(
        self, seed: int, count: int, *, part: Part = "seen", things: int | None = None, size: int = 64
    ) -> None:
        self.seed, self.count, self.part, self.things, self.size = seed, count, part, things, size
        self.root = f"playground:{seed}?scenes=arrangements&part={part}" + (f"&things={things}" if things else "")
        self.fingerprint = hashlib.sha256(f"{self.root}:{count}:{size}".encode()).hexdigest()

    @classmethod
    def parse(cls, reference: str) -> Self:
        """Read a reference with `scenes=arrangements`.

        Raises:
            DataError: If the reference has another form, an option is unknown or out of bounds.
        """
        seed, options = _parse(reference, _ArrangementOptions)
        return cls(seed, options.n, part=options.part, things=options.things, size=options.size)

    def __len__(self) -> int:
        return self.count

    def name(self, row: int) -> str:
        """The stream and the row."""
        return f"{self.root}[{row}]"

    def uri(self, row: int) -> str:
        """The stream and the row, as places are named."""
        return f"{self.root}#{row}"

    def read(self, row: int) -> NDArray[np.uint8]:
        """Pixels of the scene, (size, size, 3)."""
        return _arrangement_pixels(self.seed, row, self.part, self.things, self.size)

    @property
    def keeps_scenes(self) -> bool:
        """Whether a process draws each scene once."""
        return self.count <= _KEPT and self.size <= _KEPT_SIZE

    def labels(self) -> tuple[Labels, list[str]]:
        """Combinations of colour and shape, as many as there are scenes at most."""
        names = [" ".join(pair) for pair in COMBINATIONS[self.part]]
        return np.arange(self.count, dtype=np.int64) % len(names), names[: self.count]


@functools.lru_cache(maxsize=_KEPT)
def _scene_pixels(seed: int, row: int, variety: float) -> NDArray[np.uint8]:
    return _frozen(render_scene(seed, row, variety=variety).image)


def _arrangement_pixels(seed: int, row: int, part: Part, things: int | None, size: int) -> NDArray[np.uint8]:
    if size > _KEPT_SIZE:
        return render_arrangement(seed, row, part=part, things=things, size=size).image
    return _kept_pixels(seed, row, part, things, size)


@functools.lru_cache(maxsize=_KEPT)
def _kept_pixels(seed: int, row: int, part: Part, things: int | None, size: int) -> NDArray[np.uint8]:
    return _frozen(render_arrangement(seed, row, part=part, things=things, size=size).image)


def _frozen(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image.setflags(write=False)
    return image


def _parse(reference: str, options: type[_Options]) -> tuple[int, _Options]:
    """(seed, options) of a reference."""
    seed, given = _split(reference)
    try:
        return seed, options.build(given)
    except ConfigError as error:
        raise DataError(f"{_malformed(reference)} {error}") from None


def _split(reference: str) -> tuple[int, dict[str, str]]:
    """(seed, what follows the question mark)."""
    match = _FORM.fullmatch(reference)
    words = parse_qsl(match[2] or "", keep_blank_values=True) if match else []
    if match is None or len(dict(words)) < len(words):
        raise DataError(_malformed(reference))
    return int(match[1] or 0), dict(words)


def _malformed(reference: str) -> str:
    return (
        f"'{reference}' must look like playground:SEED?n=COUNT, both whole numbers, COUNT at least 1;"
        " &variety=SHARE may follow, from 0 to 1. Scenes of one or two things are"
        " playground:SEED?scenes=arrangements&n=COUNT, with part=seen or held_out, things=1 or 2, and size=PIXELS."
    )
