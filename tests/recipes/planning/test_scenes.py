"""What a process draws once and keeps, found through what stands around it."""

import numpy as np
import pytest
from PIL import Image

from attar.data import scenes
from attar.data.merged import MergedSource, Part
from attar.data.scenes import PlaygroundSource, open_playground
from attar.data.sources import open_source
from attar.data.subset import SubsetSource
from attar.recipes.planning.scenes import draw_scenes, kept_rows


@pytest.fixture
def image_folder(tmp_path):
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("reference", "count"),
    [
        ("playground:0?n=5", 5),
        ("playground:0?n=5000", 0),  # more than are kept: the first ones are gone when they come again
        ("playground:0?scenes=arrangements&n=5", 5),
        ("playground:0?scenes=arrangements&n=5&size=96", 0),
    ],
)
def test_scenes_are_kept_while_they_are_few_and_small(reference, count):
    assert len(kept_rows(open_playground(reference))) == count


def test_images_of_a_folder_are_not_drawn(image_folder):
    assert len(kept_rows(open_source(str(image_folder)))) == 0


def test_scenes_are_found_in_choices_and_mixtures(image_folder):
    drawn, read = PlaygroundSource(0, 4), open_source(str(image_folder))
    mixture = MergedSource([Part(read), Part(drawn, weight=2), Part(PlaygroundSource(0, 5000))])
    assert kept_rows(mixture).tolist() == list(range(len(read), len(read) + 8))
    chosen = SubsetSource(mixture, np.array([len(read) + 1, 0, len(mixture) - 1, len(read) + 7]))
    assert kept_rows(chosen).tolist() == [0, 3]


def test_what_was_drawn_is_not_drawn_again():
    source = PlaygroundSource(76_543, 6)
    draw_scenes(source)
    before = scenes._scene_pixels.cache_info().misses
    for row in range(len(source)):
        source.read(row)
    assert scenes._scene_pixels.cache_info().misses == before
