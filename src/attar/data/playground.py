"""The playground: procedural scenes with ground truth for everything, from a seed and an index.

One main shape on a textured background with clutter, 64 x 64 by default. A scene knows its class, its caption,
its segmentation mask and its depth. It feeds `attar quickstart` and the unit tests; it is never a
substitute for real images in a benchmark.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attar.data.shapes import (
    COLOUR_NAMES,
    SHAPES,
    TEXTURES,
    Array,
    add_clutter,
    blend,
    coverage_of,
    grid,
    paint,
    rotate,
)
from attar.utils.seeding import numpy_generator

CLASS_NAMES: tuple[str, ...] = tuple(SHAPES)
"""Shape classes; `Scene.label` indexes this tuple."""


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
    y, x = grid(size)

    colours = rng.permutation(len(COLOUR_NAMES))
    fill, ground = str(COLOUR_NAMES[colours[0]]), str(COLOUR_NAMES[colours[1]])
    fill_texture, ground_texture = (str(t) for t in rng.choice(list(TEXTURES), size=2))
    strength = 0.3 + 0.7 * variety
    image = paint(x, y, ground, ground_texture, strength, rng)
    tilt = rng.uniform(-0.1, 0.1, size=2)
    depth = (0.9 + tilt[0] * x + tilt[1] * y).clip(0.75, 1.0).astype(np.float32)

    for _ in range(int(rng.integers(0, 5))):
        add_clutter(image, depth, x, y, rng)

    radius = float(rng.uniform(0.62 - 0.3 * variety, 0.62))
    centre = variety * rng.uniform(-(0.9 - radius), 0.9 - radius, size=2)
    angle = variety * float(rng.uniform(-0.5, 0.5))
    u, v = rotate((x - centre[0]) / radius, (y - centre[1]) / radius, angle)
    coverage = coverage_of(SHAPES[CLASS_NAMES[label]](u, v), radius, size)
    blend(image, coverage, paint(u, v, fill, fill_texture, strength, rng))
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


def _place(cx: float, cy: float) -> str:
    row = "at the top" if cy < -0.15 else "at the bottom" if cy > 0.15 else ""
    column = "on the left" if cx < -0.15 else "on the right" if cx > 0.15 else ""
    return " ".join(word for word in (row, column) if word) or "in the middle"
