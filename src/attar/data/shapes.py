"""What playground scenes are drawn with: shapes as signed distances, colours, textures, clutter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

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


SHAPES: dict[str, Callable[[Array, Array], Array]] = {
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

# --- painting ----------------------------------------------------------------------------------------------------

COLOURS: dict[str, tuple[float, float, float]] = {
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
COLOUR_NAMES = tuple(COLOURS)
TEXTURES: dict[str, Callable[[Array, Array, float, float], Array]] = {
    "plain paint": lambda u, v, f, p: np.zeros_like(u),
    "stripes": lambda u, v, f, p: np.sin(f * (u + 0.3 * v) + p),
    "bands": lambda u, v, f, p: np.sin(f * v + p),
    "checks": lambda u, v, f, p: np.sign(np.sin(f * u + p) * np.sin(f * v + p)).astype(np.float32),
    "dots": lambda u, v, f, p: np.sin(f * u + p) * np.sin(f * v + p),
    "shading": lambda u, v, f, p: np.clip(u * np.cos(p) + v * np.sin(p), -1, 1),
}


def grid(size: int) -> tuple[Array, Array]:
    """Pixel centres as (y, x), each (size, size) in (-1, 1)."""
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size) * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return y, x


def rotate(u: Array, v: Array, angle: float) -> tuple[Array, Array]:
    """The same points in a frame that is turned by an angle."""
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * u + s * v, c * v - s * u


def paint(u: Array, v: Array, colour: str, texture: str, strength: float, rng: np.random.Generator) -> Array:
    """A surface of one colour whose brightness follows a texture, (H, W, 3)."""
    frequency, phase = float(rng.uniform(6, 14)), float(rng.uniform(0, 2 * np.pi))
    wave = strength * TEXTURES[texture](u, v, frequency, phase)[..., None]
    base = np.asarray(COLOURS[colour], dtype=np.float32) + rng.normal(0, 0.04, 3).astype(np.float32)
    return np.asarray((base * (1 + 0.28 * wave) + 0.05 * wave).clip(0, 1), dtype=np.float32)


def coverage_of(distance: Array, scale: float, size: int) -> Array:
    """Anti-aliased share of each pixel inside the shape, from its signed distance."""
    pixels = distance * (scale * size / 2)
    return np.asarray((0.5 - pixels).clip(0, 1), dtype=np.float32)


def blend(image: Array, coverage: Array, paint: Array) -> None:
    """Lay a surface over an image, in place, where it covers."""
    image += coverage[..., None] * (paint - image)


def add_clutter(image: Array, depth: Array, x: Array, y: Array, rng: np.random.Generator) -> None:
    """A small disc, box or stick that belongs to no class."""
    centre, scale = rng.uniform(-1, 1, size=2), float(rng.uniform(0.06, 0.16))
    u, v = rotate((x - centre[0]) / scale, (y - centre[1]) / scale, float(rng.uniform(0, np.pi)))
    kind = int(rng.integers(0, 3))
    distance = np.hypot(u, v) - 1 if kind == 0 else _box(u, v, 1, 0.7) if kind == 1 else _box(u, v, 4.0, 0.25)
    coverage = coverage_of(distance, scale, image.shape[0])
    colour = np.asarray(COLOURS[str(rng.choice(COLOUR_NAMES))], dtype=np.float32)
    blend(image, coverage, np.broadcast_to(colour, image.shape))
    depth[coverage > 0.5] = rng.uniform(0.5, 0.7)
