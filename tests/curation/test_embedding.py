"""A shard is a pure function of images, model and settings, whoever makes it and with whichever others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from attar.curation.embedding import embedded_batches, written_shards
from attar.curation.pool import read_unreadable, shard_name
from attar.data.shards import Shards
from attar.data.sources import open_source
from attar.data.views import EvaluationView
from attar.errors import DataError
from attar.models import Backbone, load_backbone
from small_runs import MODEL, write_pictures

VIEW = EvaluationView(32)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(MODEL, weights="random", img_size=32)


def test_batches_begin_with_their_shard() -> None:
    shards = Shards(count=23, size=10, batch_size=4)
    assert len(shards) == 3
    assert [list(batch) for batch in shards.batches([2, 0])] == [[20, 21, 22], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [len(shards.rows(number)) for number in range(3)] == [10, 10, 3]


def test_vectors_are_the_models_own_of_length_one(backbone: Backbone) -> None:
    source = open_source("playground:2?n=6")
    (batch,) = embedded_batches(backbone, source, Shards(6, 10, 10), [0], view=VIEW, width=32)
    views = torch.stack([VIEW(_opened(source, row), row=row) for row in range(6)])
    expected = torch.nn.functional.normalize(backbone.embed(views), dim=1)
    assert np.allclose(batch.vectors, expected.numpy(), atol=1e-3)  # float16 keeps 11 bits
    assert np.allclose(np.linalg.norm(batch.vectors.astype(np.float32), axis=1), 1, atol=1e-3)
    assert not np.allclose(backbone.embed(views).norm(dim=1), 1, atol=0.1)  # they were not so before


def _opened(source, row):
    from attar.data.decode import open_image

    return open_image(source.read(row), name=source.name(row))


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_made_alone_or_together_are_equal_to_the_last_byte(
    backbone: Backbone, tmp_path: Path, workers: int
) -> None:
    source, shards = open_source("playground:2?n=23"), Shards(23, 10, 4)

    def make(name: str, numbers: list[int]) -> None:
        batches = embedded_batches(backbone, source, shards, numbers, view=VIEW, width=32, workers=workers)
        assert list(written_shards(batches, shards, tmp_path / name)) == [(number, 0) for number in numbers]

    make("together", [0, 1, 2])
    for number in (2, 0, 1):
        make("alone", [number])
    for number in range(3):
        one, other = (tmp_path / name / shard_name(number) for name in ("together", "alone"))
        assert one.read_bytes() == other.read_bytes()


def test_unreadable_images_are_zeros_and_do_not_move_the_others(backbone: Backbone, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "images", 8)
    source, shards = open_source(str(folder)), Shards(8, 8, 4)

    def vectors() -> tuple[np.ndarray, list]:
        batches = list(embedded_batches(backbone, source, shards, [0], view=VIEW, width=32))
        list(written_shards(batches, shards, tmp_path))
        return np.concatenate([b.vectors for b in batches]), read_unreadable(tmp_path / shard_name(0))

    sound, none = vectors()
    for number in (1, 4, 5, 6, 7):  # one of the first batch, all of the second
        (folder / f"{number:03}.png").write_bytes(b"no picture")
    damaged, bad = vectors()
    assert none == []
    assert [one.sample for one in bad] == [1, 4, 5, 6, 7]
    assert "001.png" in bad[0].reason
    assert not damaged[[1, 4, 5, 6, 7]].any()
    assert np.allclose(damaged[[0, 2, 3]], sound[[0, 2, 3]], atol=1e-3)


def test_a_shard_is_written_as_soon_as_it_is_whole_and_no_other_is_held(backbone: Backbone, tmp_path: Path) -> None:
    source, shards, drawn = open_source("playground:2?n=23"), Shards(23, 10, 4), []

    def batches():
        for batch in embedded_batches(backbone, source, shards, [0, 1, 2], view=VIEW, width=32):
            drawn.append(batch.first)
            yield batch

    written = written_shards(batches(), shards, tmp_path)
    assert next(written) == (0, 0)
    assert drawn == [0, 4, 8]
    assert [path.name for path in tmp_path.iterdir()] == [shard_name(0)]
    written.close()
    assert [path.name for path in tmp_path.iterdir()] == [shard_name(0)]


def test_a_vector_that_is_not_finite_names_its_image(backbone: Backbone) -> None:
    broken = load_backbone(MODEL, weights="random", img_size=32)
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    source = open_source("playground:2?n=6")
    with pytest.raises(DataError, match=r"playground:2\[0\]: the model's vector is not finite"):
        list(embedded_batches(broken, source, Shards(6, 6, 6), [0], view=VIEW, width=32))
