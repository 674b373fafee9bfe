"""The playground: procedural scenes with ground truth for everything, from a seed and an index.

One main shape on a textured background with clutter, 64 x 64 by default. A scene knows its class, its caption,
its segmentation mask and its depth. It feeds `attar quickstart` and the unit tests; it is never a
substitute for real images in a benchmark.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attar.utils.seeding import numpy_generator

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Scene:
    """One rendered scene with its ground truth.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        label: Class of the main shape, an index into `CLASS_NAMES`.
        caption: One English sentence that is true of the scene.
        mask: (H, W) uint8, 0 for background and clutter, `label + 1` where the main shape is visible.
        depth: (H, W) float32 in (0, 1], 1 is farthest.
    """

    image: NDArray[np.uint8]
    label: int
    caption: str
    mask: NDArray[np.uint8]
    depth: Array


def render_scene(seed: int, index: int, *, size: int = 64, variety: float = 1.0) -> Scene:
    """Render scene `index` of the stream `seed`: a pure function, equal in every process and in every order.

    Args:
        seed: Names the stream. Train and test scenes use different seeds.
        index: Position in the stream, from 0; streams have no end.
        size: Height and width in pixels.
        variety: From 0, where every shape is large, upright and in the middle, to 1. Less variety is learnt sooner.
    """
    rng = numpy_generator(seed, "playground", index)
    label = index % len(CLASS_NAMES)  # balanced classes in every stretch of a stream
    y, x = _grid(size)

    colours = rng.permutation(len(_COLOURS))
    fill, ground = str(_COLOUR_NAMES[colours[0]]), str(_COLOUR_NAMES[colours[1]])
    fill_texture, ground_texture = (str(t) for t in rng.choice(list(_TEXTURES), size=2))
    strength = 0.3 + 0.7 * variety
    image = _paint(x, y, ground, ground_texture, strength, rng)
    tilt = rng.uniform(-0.1, 0.1, size=2)
    depth = (0.9 + tilt[0] * x + tilt[1] * y).clip(0.75, 1.0).astype(np.float32)

    for _ in range(int(rng.integers(0, 5))):
        _add_clutter(image, depth, x, y, rng)

    radius = float(rng.uniform(0.62 - 0.3 * variety, 0.62))
    centre = variety * rng.uniform(-(0.9 - radius), 0.9 - radius, size=2)
    angle = variety * float(rng.uniform(-0.5, 0.5))
    u, v = _rotate((x - centre[0]) / radius, (y - centre[1]) / radius, angle)
    coverage = _coverage(_SHAPES[CLASS_NAMES[label]](u, v), radius, size)
    _blend(image, coverage, _paint(u, v, fill, fill_texture, strength, rng))
    visible = coverage > 0.5
    depth[visible] = rng.uniform(0.1, 0.4)

    image += rng.normal(0.0, 0.02, image.shape).astype(np.float32)
    size_word = "small" if radius < 0.42 else "large" if radius > 0.52 else "medium"
    place = _place(float(centre[0]), float(centre[1]))
    thing = f"{size_word} {fill} {CLASS_NAMES[label]} with {fill_texture}"
    return Scene(
        image=np.asarray((image.clip(0, 1) * 255).round(), dtype=np.uint8),
        label=label,
        caption=f"a {thing} {place} on a {ground} ground with {ground_texture}",
        mask=np.where(visible, label + 1, 0).astype(np.uint8),
        depth=depth,
    )


# --- geometry: signed distances in the shape's own frame, negative inside, about one unit across -----------------


def _polygon(sides: int) -> Callable[[Array, Array], Array]:
    def distance(u: Array, v: Array) -> Array:
        sector = 2 * np.pi / sides
        theta = np.arctan2(u, -v)  # one corner points up
        theta = np.mod(theta, sector) - sector / 2
        return np.asarray(np.hypot(u, v) * np.cos(theta) - np.cos(sector / 2), dtype=np.float32)

    return distance


def _box(u: Array, v: Array, half_width: float, half_height: float) -> Array:
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


def _star(u: Array, v: Array) -> Array:
    theta = np.mod(np.arctan2(u, -v), 2 * np.pi / 5) - np.pi / 5
    edge = 0.42 + 0.58 * np.abs(theta) / (np.pi / 5)
    return np.asarray(0.6 * (np.hypot(u, v) - edge), dtype=np.float32)


def _heart(u: Array, v: Array) -> Array:
    lobes = v - 0.2 + 0.75 * np.sqrt(np.abs(u) + 1e-6)
    return np.asarray(0.8 * (np.hypot(1.05 * u, lobes) - 0.85), dtype=np.float32)


def _arrow(u: Array, v: Array) -> Array:
    head: Array = np.maximum(np.abs(u) - (v + 0.95) * 0.85, v - 0.05) * 0.75
    return np.asarray(np.minimum(head, _box(u, v - 0.45, 0.25, 0.5)))


def _ell(u: Array, v: Array) -> Array:
    return np.minimum(_box(u + 0.45, v, 0.3, 0.9), _box(u, v - 0.62, 0.75, 0.28))


_SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": lambda u, v: np.hypot(u, v) - 0.9,
    "square": lambda u, v: _box(u, v, 0.75, 0.75),
    "triangle": _polygon(3),
    "pentagon": _polygon(5),
    "star": _star,
    "cross": lambda u, v: np.minimum(_box(u, v, 0.95, 0.3), _box(u, v, 0.3, 0.95)),
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.68) - 0.24,
    "crescent": lambda u, v: np.maximum(np.hypot(u, v) - 0.95, 0.8 - np.hypot(u - 0.5, v)),
    "heart": _heart,
    "arrow": _arrow,
    "half-disc": lambda u, v: np.maximum(np.hypot(u, v + 0.35) - 0.95, -(v + 0.35)),
    "ell": _ell,
    "bar": lambda u, v: _box(u, v, 0.95, 0.26),
    "hourglass": lambda u, v: np.maximum(np.abs(v) - 0.9, (np.abs(u) - 0.12 - 0.75 * np.abs(v)) * 0.8),
}
CLASS_NAMES: tuple[str, ...] = tuple(_SHAPES)
"""Shape classes; `Scene.label` indexes this tuple."""


# --- painting ----------------------------------------------------------------------------------------------------

_COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.15, 0.15),
    "orange": (0.95, 0.55, 0.10),
    "yellow": (0.95, 0.88, 0.20),
    "green": (0.15, 0.65, 0.25),
    "cyan": (0.15, 0.75, 0.80),
    "blue": (0.15, 0.30, 0.85),
    "purple": (0.55, 0.20, 0.75),
    "pink": (0.98, 0.60, 0.75),
    "brown": (0.45, 0.28, 0.12),
    "white": (0.95, 0.95, 0.95),
    "grey": (0.50, 0.50, 0.50),
    "black": (0.08, 0.08, 0.08),
}
_COLOUR_NAMES = tuple(_COLOURS)
_TEXTURES: dict[str, Callable[[Array, Array, float, float], Array]] = {
    "plain paint": lambda u, v, f, p: np.zeros_like(u),
    "stripes": lambda u, v, f, p: np.sin(f * (u + 0.3 * v) + p),
    "bands": lambda u, v, f, p: np.sin(f * v + p),
    "checks": lambda u, v, f, p: np.sign(np.sin(f * u + p) * np.sin(f * v + p)).astype(np.float32),
    "dots": lambda u, v, f, p: np.sin(f * u + p) * np.sin(f * v + p),
    "shading": lambda u, v, f, p: np.clip(u * np.cos(p) + v * np.sin(p), -1, 1),
}


def _grid(size: int) -> tuple[Array, Array]:
    """Pixel centres as (y, x), each (size, size) in (-1, 1)."""
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size) * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return y, x


def _rotate(u: Array, v: Array, angle: float) -> tuple[Array, Array]:
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * u + s * v, c * v - s * u


def _paint(u: Array, v: Array, colour: str, texture: str, strength: float, rng: np.random.Generator) -> Array:
    """A surface of one colour whose brightness follows a texture, (H, W, 3)."""
    frequency, phase = float(rng.uniform(6, 14)), float(rng.uniform(0, 2 * np.pi))
    wave = strength * _TEXTURES[texture](u, v, frequency, phase)[..., None]
    base = np.asarray(_COLOURS[colour], dtype=np.float32) + rng.normal(0, 0.04, 3).astype(np.float32)
    return np.asarray((base * (1 + 0.28 * wave) + 0.05 * wave).clip(0, 1), dtype=np.float32)


def _coverage(distance: Array, scale: float, size: int) -> Array:
    """Anti-aliased share of each pixel inside the shape, from its signed distance."""
    pixels = distance * (scale * size / 2)
    return np.asarray((0.5 - pixels).clip(0, 1), dtype=np.float32)


def _blend(image: Array, coverage: Array, paint: Array) -> None:
    image += coverage[..., None] * (paint - image)


def _add_clutter(image: Array, depth: Array, x: Array, y: Array, rng: np.random.Generator) -> None:
    """A small disc, box or stick that belongs to no class."""
    centre, scale = rng.uniform(-1, 1, size=2), float(rng.uniform(0.06, 0.16))
    u, v = _rotate((x - centre[0]) / scale, (y - centre[1]) / scale, float(rng.uniform(0, np.pi)))
    kind = int(rng.integers(0, 3))
    distance = np.hypot(u, v) - 1 if kind == 0 else _box(u, v, 1, 0.7) if kind == 1 else _box(u, v, 4.0, 0.25)
    coverage = _coverage(distance, scale, image.shape[0])
    colour = np.asarray(_COLOURS[str(rng.choice(_COLOUR_NAMES))], dtype=np.float32)
    _blend(image, coverage, np.broadcast_to(colour, image.shape))
    depth[coverage > 0.5] = rng.uniform(0.5, 0.7)


def _place(cx: float, cy: float) -> str:
    row = "at the top" if cy < -0.15 else "at the bottom" if cy > 0.15 else ""
    column = "on the left" if cx < -0.15 else "on the right" if cx > 0.15 else ""
    return " ".join(word for word in (row, column) if word) or "in the middle"
