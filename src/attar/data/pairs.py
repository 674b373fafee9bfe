"""Images with ground truth for every pixel, on disk or drawn: where dense protocols read what they judge by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attar.data.base import Problem
from attar.data.decode import EncodedImage, open_image
from attar.data.files import File
from attar.data.playground import render_scene
from attar.errors import DataError
from attar.utils.io import sha256_text

VOID = 255
"""The class number that counts nowhere."""

_MILLIMETRES = 1000.0  # a metre, as depth files count
_CLASSES, _DEPTH = ("L", "P"), ("I;16", "I;16B", "I")  # Pillow's names of 8 bits and of 16


class Pair(Protocol):
    """One image and its annotation of the same size."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def place(self) -> str:
        """Folder of the image, or the stream it is from."""
        ...

    @property
    def uri(self) -> str:
        """Where the image lies, as sources tell it."""
        ...

    def read(self) -> bytes | NDArray[np.uint8]:
        """The image as it is stored, or its pixels (H, W, 3)."""
        ...

    def open(self) -> EncodedImage:
        """The image."""
        ...

    def classes(self) -> Tensor:
        """(H, W) uint8 class numbers."""
        ...

    def depth(self) -> Tensor:
        """(H, W) float32 metres, 0 where nobody knows."""
        ...


@dataclass(frozen=True)
class Annotated:
    """An image file and its annotation, a single-channel file of the same size: class numbers, or depth."""

    image: Path
    annotation: Path

    @property
    def name(self) -> str:
        """Path of the image."""
        return str(self.image)

    @property
    def place(self) -> str:
        """Folder of the image."""
        return str(self.image.parent.resolve())

    @property
    def uri(self) -> str:
        """Absolute path of the image."""
        return File(str(self.image.absolute())).uri

    def read(self) -> bytes:
        """The image file."""
        return File(str(self.image)).read(name=self.name)

    def open(self) -> EncodedImage:
        """The image file."""
        return open_image(self.read(), name=self.name)

    def classes(self) -> Tensor:
        """(H, W) uint8 class numbers."""
        return read_annotation(self.annotation)

    def depth(self) -> Tensor:
        """(H, W) float32 metres."""
        return read_depth(self.annotation)


@dataclass(frozen=True)
class Scene:
    """A scene of the playground, drawn when it is asked for."""

    seed: int
    index: int
    variety: float = 1.0

    @property
    def name(self) -> str:
        """Seed and place."""
        return f"playground:{self.seed}[{self.index}]"

    @property
    def place(self) -> str:
        """The stream."""
        return f"playground:{self.seed}"

    @property
    def uri(self) -> str:
        """The stream and the scene."""
        return f"{self.place}#{self.index}"

    def read(self) -> NDArray[np.uint8]:
        """64 x 64 pixels."""
        return render_scene(self.seed, self.index, variety=self.variety).image

    def open(self) -> EncodedImage:
        """64 x 64 pixels."""
        return open_image(self.read(), name=self.name)

    def classes(self) -> Tensor:
        """(64, 64): 0 for background and clutter, shapes from 1."""
        return torch.from_numpy(render_scene(self.seed, self.index, variety=self.variety).mask)

    def depth(self) -> Tensor:
        """(64, 64), from 0.1 to 1."""
        depth = render_scene(self.seed, self.index, variety=self.variety).depth
        return torch.from_numpy(np.asarray(depth, dtype=np.float32))


class PairSource:
    """The images of pairs, without their annotations, as a source."""

    problems: tuple[Problem, ...] = ()

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs
        self.addresses = sorted({pair.place for pair in pairs})
        self.fingerprint = sha256_text("\n".join(pair.name for pair in pairs))

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, row: int) -> str:
        """What messages call the image."""
        return self.pairs[row].name

    def uri(self, row: int) -> str:
        """Its path, or its place in a stream."""
        return self.pairs[row].uri

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        """The image as it is stored."""
        return self.pairs[row].read()

    def labels(self) -> None:
        """None: an image has many classes."""
        return


def open_annotated(root: str | Path, split: str) -> list[Annotated]:
    """Images of `ROOT/images/SPLIT` with those of `ROOT/annotations/SPLIT`, which are PNG files of the same name.

    Raises:
        DataError: If the folder is not there or empty, or an image has no annotation.
    """
    folder = Path(root).expanduser() / "images" / split
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist. Segmentation data has images/SPLIT and annotations/SPLIT.")
    annotations = folder.parents[1] / "annotations" / split
    found = [Annotated(path, annotations / f"{path.stem}.png") for path in sorted(folder.iterdir())]
    missing = next((pair.annotation for pair in found if not pair.annotation.is_file()), None)
    if missing is not None or not found:
        raise DataError(f"annotation {missing} does not exist." if found else f"{folder} holds no images.")
    return found


def read_annotation(path: Path) -> Tensor:
    """(H, W) uint8 class numbers.

    Raises:
        DataError: If the file is damaged, or has more than one channel or more than 8 bits.
    """
    return torch.from_numpy(_read(path, _CLASSES, "one class number a pixel, in 8 bits"))


def read_depth(path: Path) -> Tensor:
    """(H, W) float32 metres of a file of 16-bit millimetres, where 0 is unknown (NYUv2 as mmsegmentation keeps it).

    Raises:
        DataError: If the file is damaged or has not 16 bits.
    """
    return torch.from_numpy(_read(path, _DEPTH, "depth in millimetres, in 16 bits").astype(np.float32) / _MILLIMETRES)


def holds_depth(path: Path) -> bool:
    """Whether an annotation is of 16 bits, which is how depth is told from classes.

    Raises:
        DataError: If the file cannot be read.
    """
    return _mode(path) in _DEPTH


def _mode(path: Path) -> str:
    try:
        with Image.open(path) as image:
            return image.mode
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's words for damage
        raise _damaged(path, error) from None


def _read(path: Path, modes: tuple[str, ...], what: str) -> NDArray[np.generic]:
    mode = _mode(path)
    if mode not in modes:
        raise DataError(f"annotation {path} is an image of mode {mode}; it must hold {what}.")
    try:
        with Image.open(path) as image:
            return np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"annotation {path} cannot be read ({error}). Restore the file, or take it out with its image.")
