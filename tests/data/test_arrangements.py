"""What the captions of an arrangement say can be seen in its mask and its pixels."""

import re

import numpy as np
import pytest

from attar.data.arrangements import COMBINATIONS, Content, Thing, captions, draw_content, render_arrangement
from attar.data.playground import CLASS_NAMES
from attar.data.shapes import COLOUR_NAMES, COLOURS
from attar.utils.seeding import numpy_generator


@pytest.fixture(scope="module")
def scenes():
    return [render_arrangement(0, index) for index in range(600)]


def centre(scene, number):
    """(x, y) of the middle of a thing's pixels."""
    rows, columns = np.nonzero(scene.mask == number + 1)
    return columns.mean(), rows.mean()


def test_a_scene_depends_on_its_names_alone(scenes):
    again = render_arrangement(0, 77)
    assert np.array_equal(again.image, scenes[77].image)
    assert (again.caption, again.content, again.label) == (scenes[77].caption, scenes[77].content, scenes[77].label)
    others = [
        render_arrangement(1, 77),
        render_arrangement(0, 77, things=1),
        render_arrangement(0, 77, part="held_out"),
    ]
    assert not any(np.array_equal(other.image, again.image) for other in others)
    assert render_arrangement(0, 77, size=128).content == again.content


def test_a_relation_is_that_of_the_masks(scenes):
    pairs = [scene for scene in scenes if scene.content.relation is not None]
    assert len(pairs) > 100
    for scene in pairs:
        (x, y), (other_x, other_y) = centre(scene, 0), centre(scene, 1)
        seen = {
            "left of": other_x - x,
            "right of": x - other_x,
            "above": other_y - y,
            "below": y - other_y,
        }
        assert max(seen, key=seen.__getitem__) == scene.content.relation, scene.caption
    assert {scene.content.relation for scene in pairs} == {"left of", "right of", "above", "below"}


def test_every_thing_is_there_whole_and_in_its_colour(scenes):
    right = []
    for scene in scenes:
        assert set(np.unique(scene.mask)) == set(range(len(scene.content.things) + 1))
        edge = np.concatenate([scene.mask[[0, -1]].ravel(), scene.mask[:, [0, -1]].ravel()])
        assert not edge.any(), "a thing is cut off by the border"
        for number, thing in enumerate(scene.content.things):
            inside = np.median(scene.image[scene.mask == number + 1], axis=0) / 255
            nearest = min(COLOURS, key=lambda name: np.abs(inside - COLOURS[name]).sum())
            right.append(nearest == thing.colour)
            assert scene.depth[scene.mask == number + 1].max() < scene.depth[scene.mask == 0].min()
    assert np.mean(right) > 0.95


@pytest.mark.parametrize("count", [1, 2])
def test_large_things_are_larger(scenes, count):
    for shape in CLASS_NAMES:
        areas = {"small": [], "large": []}
        for scene in (scene for scene in scenes if len(scene.content.things) == count):
            for number, thing in enumerate(scene.content.things):
                if thing.shape == shape:
                    areas[thing.size].append(np.mean(scene.mask == number + 1))
        assert max(areas["small"]) < min(areas["large"]), shape


def test_captions_say_what_is_there_and_nothing_else():
    content = Content((Thing("large", "red", "circle"), Thing("small", "blue", "square")), "left of", "orange")
    said = captions(content)
    assert "a large red circle left of a small blue square" in said
    assert "a small blue square right of a red circle on an orange ground" in said
    assert len(set(said)) == len(said) == 2 * 2 * 3 * 3
    backwards = re.compile("circle right of|square left of|above|below|small red|large blue")
    assert not any(backwards.search(sentence) for sentence in said)
    assert not any("square left" in s or "circle right" in s for s in said)


def test_a_caption_is_one_of_its_content(scenes):
    assert all(scene.caption in captions(scene.content) for scene in scenes)
    assert len({scene.caption for scene in scenes}) > 250


def pairs_of(content):
    return {(thing.colour, thing.shape) for thing in content.things}


def test_held_out_combinations_occur_on_their_own_side_alone(scenes):
    seen, held_out = (set(COMBINATIONS[part]) for part in ("seen", "held_out"))
    assert not seen & held_out
    assert len(seen | held_out) == len(COLOUR_NAMES) * len(CLASS_NAMES)
    assert len(held_out) == 28
    assert all(pairs_of(scene.content) <= seen for scene in scenes)
    for index in range(60):
        scene = render_arrangement(0, index, part="held_out")
        assert pairs_of(scene.content) <= held_out
        assert (scene.content.things[0].colour, scene.content.things[0].shape) == COMBINATIONS["held_out"][scene.label]


def test_every_colour_and_shape_of_what_is_held_out_is_seen_with_others():
    for position, names in enumerate((COLOUR_NAMES, CLASS_NAMES)):
        for part in ("seen", "held_out"):
            assert {pair[position] for pair in COMBINATIONS[part]} == set(names)


def test_labels_are_balanced_in_every_stretch():
    count = len(COMBINATIONS["held_out"])
    labels = [render_arrangement(3, index, part="held_out", things=1, size=16).label for index in range(9, 9 + count)]
    assert sorted(labels) == list(range(count))


def test_things_and_ground_are_told_apart():
    for index in range(300):
        content = draw_content(numpy_generator(0, "test", index), things=2)
        one, other = content.things
        assert one.shape != other.shape
        assert len({one.colour, other.colour, content.ground}) == 3
