"""Annotated images that take a blink, for tests of dense protocols."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from attar.config import EvaluateConfig
from attar.data.decode import open_image
from attar.data.pairs import Scene
from attar.evaluation.dense.splits import DenseSplits

COLOURS = np.array([[250, 250, 250], [5, 5, 5]], np.uint8)


@dataclass(frozen=True)
class Shape:
    """A scene of the playground with two classes, ground and shape."""

    scene: Scene

    @property
    def name(self):
        return self.scene.name

    @property
    def place(self):
        return self.scene.place

    def read(self):
        return self.scene.read()

    def open(self):
        return self.scene.open()

    def classes(self):
        return (self.scene.classes() > 0).to(torch.uint8)

    def depth(self):
        return self.scene.depth()


@dataclass(frozen=True)
class Drawn:
    """Pixels (H, W, 3) and class numbers (H, W) as they are; depth is the class number in metres."""

    name: str
    pixels: np.ndarray
    numbers: np.ndarray

    @property
    def place(self):
        return "drawn"

    def read(self):
        return self.pixels

    def open(self):
        return open_image(self.read(), name=self.name)

    def classes(self):
        return torch.from_numpy(self.numbers)

    def depth(self):
        return torch.from_numpy(self.numbers.astype(np.float32))


def board(height, width, *, seed=0, cell=4):
    """Black and white squares in random order, a class each."""
    cells = np.random.default_rng(seed).integers(0, 2, (-(-height // cell), -(-width // cell)))
    numbers = np.kron(cells, np.ones((cell, cell)))[:height, :width].astype(np.uint8)
    return Drawn(f"board{seed}", COLOURS[numbers], numbers)


def shapes(train=24, val=6, test=8):
    """Splits of shapes in plain view."""
    pairs = [Shape(Scene(3, index, 0.0)) for index in range(train + val + test)]
    return DenseSplits(pairs[:train], pairs[train : train + val], pairs[train + val :], 2, 0, "drawn", 1.25)


def config(mode="honest", **dense):
    """Settings with those of dense heads."""
    return EvaluateConfig(model="m", tasks="knn:x", out="o", mode=mode, dense=dense)


def write_pair(root, split, name, numbers, *, pixels=None):
    """An image and its annotation as files: 8 bits for uint8, 16 bits for uint16."""
    pixels = np.zeros((*numbers.shape, 3), np.uint8) if pixels is None else pixels
    for kind, array in (("images", pixels), ("annotations", numbers)):
        folder = root / kind / split
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / f"{name}.png")
