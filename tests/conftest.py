"""What every test stands on: one thread, no network, no cache but its own."""

import os

import pytest

# Before torch is imported: threads that spin for each other make tiny models ten times slower on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_collection_modifyitems(items):
    """Tests that need a GPU skip themselves where there is none."""
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def _cache(tmp_path_factory):
    return tmp_path_factory.mktemp("attar-cache")


@pytest.fixture(autouse=True)
def _own_cache(_cache, monkeypatch):
    """Indexes of image folders go to a folder that ends with the session, not to the user's cache."""
    monkeypatch.setenv("ATTAR_CACHE", str(_cache))
