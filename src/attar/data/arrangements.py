"""Playground scenes for models of two towers: one or two things with size and colour, and where they lie, in words.

What a scene holds (`Content`) is drawn first; pixels and sentences are made of it, so that they agree. Some pairs of
colour and shape are kept for judging: no scene and no sentence of the part "seen" has one, though each of their
colours and each of their shapes occurs there. The other playground's scenes know nothing of these parts.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attar.data.shapes import COLOUR_NAMES, SHAPES, Array, blend, coverage_of, grid, paint, rotate
from attar.utils.seeding import numpy_generator

Part = Literal["seen", "held_out"]
Relation = Literal["left of", "right of", "above", "below"]

_OPPOSITE: Mapping[Relation, Relation] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
_SIZES = ("small", "large")
_RADII = {  # of half the image, by how many things it holds: one alone is seen from nearer
    1: {"small": (0.34, 0.40), "large": (0.58, 0.66)},
    2: {"small": (0.18, 0.22), "large": (0.32, 0.36)},
}
_REACH = 1.2  # of the farthest corner of any shape, in radii
_EDGE, _GAP = 0.96, 0.05  # how near to the border a thing may come, and to another
_EVERY = 6  # one pair in so many is held out: two colours of each shape


def _is_held_out(colour: int, shape: int) -> bool:
    return (colour + shape) % _EVERY == 0


COMBINATIONS: Mapping[Part, tuple[tuple[str, str], ...]] = {
    part: tuple(
        (colour, shape)
        for (c, colour), (s, shape) in itertools.product(enumerate(COLOUR_NAMES), enumerate(SHAPES))
        if _is_held_out(c, s) == (part == "held_out")
    )
    for part in ("seen", "held_out")
}
"""(colour, shape) of each part; `Arrangement.label` indexes these."""


@dataclass(frozen=True)
class Thing:
    """One shape, in words: `size` is small or large."""

    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Content:
    """What a scene holds.

    Attributes:
        things: One, or two that differ in colour and in shape.
        relation: Where the first lies as the second sees it; None for one.
        ground: Colour behind them, which is none of theirs.
    """

    things: tuple[Thing, ...]
    relation: Relation | None
    ground: str


@dataclass(frozen=True)
class Arrangement:
    """A rendered scene with its ground truth.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        content: What it holds.
        label: Colour and shape of the first thing, an index into `COMBINATIONS` of its part.
        caption: One of `captions(content)`.
        mask: (H, W) uint8, 0 for ground, i + 1 where thing i is.
        depth: (H, W) float32 in (0, 1], 1 is farthest.
    """

    image: NDArray[np.uint8]
    content: Content
    label: int
    caption: str
    mask: NDArray[np.uint8]
    depth: Array


def render_arrangement(
    seed: int, index: int, *, part: Part = "seen", things: int | None = None, size: int = 64
) -> Arrangement:
    """Render scene `index` of the stream `seed`: a pure function, equal in every process and in every order.

    Args:
        seed: Names the stream. Train and test scenes use different seeds.
        index: Position in the stream, from 0; streams have no end, and each stretch of one is balanced in labels.
        part: Which combinations of colour and shape it may hold.
        things: How many, 1 or 2; by default either.
        size: Height and width in pixels.

    Example:
        >>> render_arrangement(0, 5, things=2).caption
        'there is a brown triangle left of a red crescent'
    """
    rng = numpy_generator(seed, "arrangement", part, things or 0, index)
    label = index % len(COMBINATIONS[part])
    content = draw_content(rng, part=part, things=things, first=label)
    sentences = captions(content)
    caption = sentences[int(rng.integers(len(sentences)))]

    y, x = grid(size)
    image = paint(x, y, content.ground, "shading", 0.5, rng)
    depth = (0.9 + rng.uniform(-0.1, 0.1) * y).clip(0.75, 1.0).astype(np.float32)
    mask = np.zeros((size, size), dtype=np.uint8)
    radii = [float(rng.uniform(*_RADII[len(content.things)][thing.size])) for thing in content.things]
    nearness = rng.permutation([0.25, 0.5])[: len(radii)]
    for number, (thing, radius, centre) in enumerate(
        zip(content.things, radii, _centres(content.relation, radii, rng), strict=True)
    ):
        u, v = rotate((x - centre[0]) / radius, (y - centre[1]) / radius, float(rng.uniform(-0.3, 0.3)))
        coverage = coverage_of(SHAPES[thing.shape](u, v), radius, size)
        blend(image, coverage, paint(u, v, thing.colour, "shading", 0.5, rng))
        mask[coverage > 0.5] = number + 1
        depth[coverage > 0.5] = nearness[number] + rng.uniform(-0.1, 0.1)
    image += rng.normal(0.0, 0.02, image.shape).astype(np.float32)
    return Arrangement(
        image=np.asarray((image.clip(0, 1) * 255).round(), dtype=np.uint8),
        content=content,
        label=label,
        caption=caption,
        mask=mask,
        depth=depth,
    )


def draw_content(
    rng: np.random.Generator, *, part: Part = "seen", things: int | None = None, first: int | None = None
) -> Content:
    """What a scene may hold.

    Args:
        rng: Decides.
        part: Combinations that may occur.
        things: How many, 1 or 2; by default either.
        first: Combination of the first thing; by default any.
    """
    pairs = COMBINATIONS[part]
    count = int(rng.integers(1, 3)) if things is None else things
    chosen = [pairs[int(rng.integers(len(pairs))) if first is None else first]]
    if count == 2:
        others = [pair for pair in pairs if pair[0] != chosen[0][0] and pair[1] != chosen[0][1]]
        chosen.append(others[int(rng.integers(len(others)))])
    grounds = [colour for colour in COLOUR_NAMES if colour not in [colour for colour, _ in chosen]]
    relations: list[Relation] = list(_OPPOSITE)
    return Content(
        things=tuple(Thing(str(rng.choice(_SIZES)), colour, shape) for colour, shape in chosen),
        relation=relations[int(rng.integers(len(relations)))] if count == 2 else None,
        ground=grounds[int(rng.integers(len(grounds)))],
    )


def captions(content: Content) -> tuple[str, ...]:
    """Sentences that are true of a scene, in a fixed order: what of it is said, and how, differs.

    Example:
        >>> captions(Content((Thing("large", "orange", "star"),), None, "blue"))[:3]
        ('a large orange star', 'there is a large orange star', 'a large orange star on a blue ground')
    """
    named = [
        (f"{thing.size} {thing.colour} {thing.shape}", f"{thing.colour} {thing.shape}") for thing in content.things
    ]
    said = []
    for names in itertools.product(*named):
        one = [_a(name) for name in names]
        facts = one
        if content.relation is not None:
            facts = [
                f"{one[0]} {content.relation} {one[1]}",
                f"{one[1]} {_OPPOSITE[content.relation]} {one[0]}",
                f"{one[0]} and {one[1]}",
            ]
        for fact in facts:
            said += [fact, f"there is {fact}", f"{fact} on {_a(content.ground)} ground"]
    return tuple(said)


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _centres(relation: Relation | None, radii: list[float], rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """(x, y) of each thing: inside the image, apart, and further apart along the relation than across it."""
    room = [_EDGE - _REACH * radius for radius in radii]
    if relation is None:
        return [rng.uniform(-room[0], room[0], size=2)]
    is_first_before = relation in ("left of", "above")
    before, after = room if is_first_before else room[::-1]
    apart = float(rng.uniform(_REACH * sum(radii) + _GAP, before + after))
    start = float(rng.uniform(-before, after - apart))
    half = float(rng.uniform(-0.125, 0.125)) * apart
    across = float(rng.uniform(-1, 1)) * (min(room) - abs(half))
    places = np.array([[start, across + half], [start + apart, across - half]])
    if relation in ("above", "below"):
        places = places[:, ::-1]
    return list(places if is_first_before else places[::-1])
