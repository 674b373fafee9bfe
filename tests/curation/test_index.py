import numpy as np
import pytest
import torch
import torch.nn.functional as F

from attar.curation.index import PoolIndex
from attar.curation.pool import Pool
from small_pools import random_pool


@pytest.fixture
def vectors() -> torch.Tensor:
    rows = F.normalize(torch.randn(230, 16, generator=torch.Generator().manual_seed(0)), dim=1).half()
    rows[7] = 0  # an image that could not be read
    return rows


def test_places_follow_ids_and_zero_vectors_are_never_found(tmp_path, vectors) -> None:
    index = PoolIndex(Pool.open(random_pool(tmp_path, vectors)))
    ids = index.pool.ids(index.rows(range(230)))
    assert ids == sorted(ids)
    found = index.search(vectors[:3], 229)
    assert torch.equal(index.vectors(found.place[:, 0].numpy()), vectors[:3])
    assert 7 not in index.rows(found.place.flatten().tolist())
    assert (found.place >= 0).all()
    assert (index.search(vectors[:3], 230).place[:, -1] < 0).all()


def test_shards_searched_apart_and_merged_give_what_the_whole_gives(tmp_path, vectors) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    index = PoolIndex(Pool.open(random_pool(tmp_path, vectors)))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        apart, whole = index.search_on_ray(vectors[:5], 20), index.search(vectors[:5], 20)
    finally:
        ray.shutdown()
    assert torch.equal(apart.place, whole.place)
    assert torch.equal(apart.similarity, whole.similarity)


def test_images_are_named_by_id_or_address_and_sources_by_rows(tmp_path, vectors) -> None:
    index = PoolIndex(Pool.open(random_pool(tmp_path, vectors)))
    assert index.places_of({"image 0003", "image 0100", "nothing"}) == {3, 100}
    first, second = index.by_source([50, 230])
    assert (len(first), len(second)) == (50, 180)
    assert set(index.rows(first)) == set(range(50))
    assert np.array_equal(np.sort(np.concatenate([first, second])), np.arange(230))
