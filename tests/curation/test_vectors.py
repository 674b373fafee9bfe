"""Vectors of chosen images, in one view and in several."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attar.curation.vectors import PartView, embed_rows, guard_views
from attar.data.sources import open_source
from attar.data.views import EvaluationView
from attar.errors import DataError
from attar.models import load_backbone
from small_pools import REFERENCE

WHOLE = EvaluationView(32, 1.0)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(REFERENCE, weights="random", img_size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Thirteen images, the third of which cannot be read."""
    root = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    for number in range(13):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3)).astype(np.uint8)).save(root / f"{number:02}.png")
    (root / "02.png").write_bytes(b"no image")
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_several_views_are_each_images_vectors_one_after_the_other(backbone, folder, workers) -> None:
    source = open_source(str(folder))
    views = guard_views(WHOLE)
    vectors, positions = embed_rows(backbone, source, np.arange(13), *views, workers=workers)
    assert positions.tolist() == [row for row in range(13) if row != 2 for _ in views]
    for number, view in enumerate(views):
        alone, rows = embed_rows(backbone, source, np.arange(13), view)
        assert rows.tolist() == [row for row in range(13) if row != 2]
        torch.testing.assert_close(vectors[number :: len(views)], alone, atol=1e-3, rtol=0)
    others = vectors[1 : len(views)].double() @ vectors[0].double()
    assert others.max() < 0.999  # not one view many times


def test_a_mirrored_view_is_the_view_of_the_mirrored_image(backbone, folder, tmp_path) -> None:
    Image.open(folder / "00.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")
    flipped, _ = embed_rows(backbone, open_source(str(folder)), [0], PartView(WHOLE, is_flipped=True))
    mirrored, _ = embed_rows(backbone, open_source(str(tmp_path)), [0], WHOLE)
    assert float(flipped[0].double() @ mirrored[0].double()) > 0.999


def test_images_none_of_which_can_be_read_are_named(backbone, folder) -> None:
    with pytest.raises(DataError, match=r"none of the 1 queries can be read, such as .*02\.png"):
        embed_rows(backbone, open_source(str(folder)), [2], *guard_views(WHOLE), name="queries")
