"""The playground's ground truth is true: what a scene says is what can be seen in it."""

import re

import numpy as np
import pytest

from attar.data.playground import CLASS_NAMES, render_scene

COLOURS = {  # what people call these colours; close to what is painted, and not taken from there
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (240, 225, 50),
    "green": (40, 165, 65),
    "cyan": (40, 190, 205),
    "blue": (40, 75, 215),
    "purple": (140, 50, 190),
    "pink": (250, 155, 190),
    "brown": (115, 70, 30),
    "white": (242, 242, 242),
    "grey": (128, 128, 128),
    "black": (20, 20, 20),
}
CAPTION = re.compile(
    r"a (?P<size>small|medium|large) (?P<colour>\w+) (?P<shape>[\w-]+) with (?P<texture>plain paint|[a-z]+)"
    r" (?P<place>in the middle|at the (?:top|bottom)|on the (?:left|right)|at the (?:top|bottom) on the (?:left|right))"
    r" on a (?P<ground>\w+) ground with (?P<ground_texture>plain paint|[a-z]+)"
)


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(0, index) for index in range(1400)]


def words(scene):
    match = CAPTION.fullmatch(scene.caption)
    assert match, scene.caption
    return match.groupdict()


def shape(scene):
    return CLASS_NAMES[scene.label]


def centre(scene):
    """(row, column) of the middle of the visible shape, each in (-1, 1)."""
    rows, columns = np.nonzero(scene.mask)
    return np.mean(rows) / 32 - 1, np.mean(columns) / 32 - 1


def equal(one, other):
    arrays = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("image", "mask", "depth"))
    return arrays and (one.label, one.caption) == (other.label, other.caption)


def test_a_scene_depends_on_seed_and_index_alone(scenes):
    for index in (1399, 0, 77):  # in another order than they were made
        assert equal(render_scene(0, index), scenes[index])
    assert not equal(render_scene(1, 77), scenes[77])
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


def test_seeds_and_indices_do_not_shift_into_each_other():
    classes = len(CLASS_NAMES)  # scenes this far apart have the same class
    images = {render_scene(classes * a, classes * b).image.tobytes() for a in range(12) for b in range(12)}
    assert len(images) == 12 * 12


def test_classes_are_many_and_balanced(scenes):
    assert len(CLASS_NAMES) >= 12
    assert len(set(CLASS_NAMES)) == len(CLASS_NAMES)
    labels = np.array([scene.label for scene in scenes])
    for start in (0, 5, 99):
        assert sorted(labels[start : start + len(CLASS_NAMES)]) == list(range(len(CLASS_NAMES)))


@pytest.mark.parametrize("size", [16, 64, 97])
def test_sizes_and_types(size):
    scene = render_scene(3, 5, size=size)
    assert (scene.image.shape, scene.image.dtype) == ((size, size, 3), np.uint8)
    assert (scene.mask.shape, scene.mask.dtype) == ((size, size), np.uint8)
    assert (scene.depth.shape, scene.depth.dtype) == ((size, size), np.float32)
    whole = render_scene(3, 5, size=256)
    assert np.mean(scene.mask > 0) == pytest.approx(np.mean(whole.mask > 0), abs=0.03)
    assert (scene.label, scene.caption) == (whole.label, whole.caption)


def test_the_mask_holds_the_label_and_is_neither_empty_nor_everything(scenes):
    for scene in scenes:
        assert set(np.unique(scene.mask)) == {0, scene.label + 1}
        assert 0.02 < np.mean(scene.mask > 0) < 0.6, scene.caption


def test_depth_is_in_its_interval_and_the_shape_is_nearer_than_everything(scenes):
    for scene in scenes:
        inside = scene.mask > 0
        assert scene.depth.min() > 0
        assert scene.depth.max() <= 1
        assert scene.depth[inside].max() < scene.depth[~inside].min()


def test_captions_name_class_colour_and_ground(scenes):
    for scene in scenes:
        said = words(scene)
        assert said["shape"] == shape(scene)
        assert said["colour"] in COLOURS
        assert said["ground"] in COLOURS
        assert said["colour"] != said["ground"]
    assert {words(scene)["colour"] for scene in scenes} == set(COLOURS)
    assert len({words(scene)["texture"] for scene in scenes}) == 6


def nearest_colour(pixels):
    mean = pixels.reshape(-1, 3).mean(0)
    return min(COLOURS, key=lambda name: np.abs(mean - COLOURS[name]).sum())


def test_the_mask_covers_what_is_painted_in_the_captions_colour(scenes):
    """Inside the mask is the shape's colour; outside is not, but for clutter."""
    plain = [s for s in scenes if words(s)["texture"] == "plain paint" and words(s)["ground_texture"] == "plain paint"]
    assert len(plain) > 20
    inside, ground = [], []
    for scene in plain:
        mask, said = scene.mask > 0, words(scene)
        inside.append(nearest_colour(scene.image[mask]) == said["colour"])
        ground.append(nearest_colour(np.median(scene.image[~mask], axis=0)) == said["ground"])
        paint, edge = np.median(scene.image[mask], axis=0), np.median(scene.image[~mask], axis=0)
        nearer = np.abs(scene.image - paint).sum(-1) < np.abs(scene.image - edge).sum(-1)
        assert np.mean(nearer[mask]) > 0.9, scene.caption
        assert np.mean(nearer[~mask]) < 0.25, scene.caption
    assert np.mean(inside) > 0.95
    assert np.mean(ground) > 0.95


def box_share(scene):
    """Share of the mask's bounding box that the mask fills."""
    rows, columns = np.nonzero(scene.mask)
    return len(rows) / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1))


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("circle", np.pi / 4),
        ("ring", np.pi / 4 * (1 - (0.44 / 0.92) ** 2)),  # outer radius .92, inner radius .44
    ],
)
def test_round_shapes_have_the_area_of_geometry(scenes, name, share):
    found = [box_share(scene) for scene in scenes if shape(scene) == name]
    assert np.mean(found) == pytest.approx(share, abs=0.03)


def test_a_square_is_a_turned_square(scenes):
    # by a for the angle, its bounding box is (cos a + sin a)^2 times its area
    found = [box_share(scene) for scene in scenes if shape(scene) == "square"]
    angles = np.linspace(-0.5, 0.5, 1001)
    assert np.mean(found) == pytest.approx(np.mean((np.cos(angles) + np.abs(np.sin(angles))) ** -2.0), abs=0.04)


def test_shapes_differ_from_each_other(scenes):
    """Each class's average silhouette, centred and scaled, is unlike that of every other class."""
    silhouettes = {}
    for name in CLASS_NAMES:
        total = np.zeros((24, 24))
        for scene in [scene for scene in scenes if shape(scene) == name][:40]:
            rows, columns = np.nonzero(scene.mask)
            middle, spread = (rows.mean(), columns.mean()), np.sqrt(len(rows))
            grid = ((np.arange(24) - 11.5) / 11.5 * spread).round().astype(int)
            r, c = (np.clip(grid + round(m), 0, 63) for m in middle)
            total += scene.mask[np.ix_(r, c)] > 0
        silhouettes[name] = total / 40
    for one in CLASS_NAMES:
        for other in CLASS_NAMES:
            if one < other:
                assert np.abs(silhouettes[one] - silhouettes[other]).mean() > 0.01, (one, other)


def test_captions_say_where_and_how_large(scenes):
    for scene in scenes:
        if shape(scene) not in ("circle", "square", "ring"):  # shapes whose middle is their centre of mass
            continue
        row, column = centre(scene)
        place = words(scene)["place"]
        assert ("top" in place) == (row < -0.15) or abs(row + 0.15) < 0.03, (scene.caption, row)
        assert ("bottom" in place) == (row > 0.15) or abs(row - 0.15) < 0.03, (scene.caption, row)
        assert ("left" in place) == (column < -0.15) or abs(column + 0.15) < 0.03, (scene.caption, column)
        assert ("right" in place) == (column > 0.15) or abs(column - 0.15) < 0.03, (scene.caption, column)
    for name in CLASS_NAMES:
        areas = {"small": [], "medium": [], "large": []}
        for scene in scenes:
            if shape(scene) == name:
                areas[words(scene)["size"]].append(np.mean(scene.mask > 0))
        assert np.mean(areas["small"]) < np.mean(areas["medium"]) < np.mean(areas["large"]), name
