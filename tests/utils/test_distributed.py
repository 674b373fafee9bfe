"""Ranks meet, also after a restart, in a store that remembers those before them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from attar.errors import ConfigError
from attar.utils.distributed import _agree_on_name, pick_device


def start(store: dist.Store, size: int, *, late: int = 0) -> set[str]:
    """The names that ranks agree on, all of which come at once but one."""

    def come(rank: int) -> str:
        time.sleep(0.2 * (rank == late))
        return _agree_on_name(store, rank, size, timeout_s=10)

    with ThreadPoolExecutor(size) as pool:
        return set(pool.map(come, range(size)))


def test_ranks_agree_on_a_name_that_no_start_before_had() -> None:
    # catches a name that the first to come reads from the start before
    store = dist.HashStore()
    names = [start(store, 3, late=late) for late in (0, 1, 2, 0)]
    assert [len(found) for found in names] == [1, 1, 1, 1]
    assert len(set.union(*names)) == 4


def test_a_start_of_which_some_never_came_does_not_confuse_the_next() -> None:
    # catches names that count arrivals
    store = dist.HashStore()
    for rank in (0, 1):
        with pytest.raises(RuntimeError, match="not come within"):
            _agree_on_name(store, rank, 3, timeout_s=0.1)
        assert len(start(store, 3)) == 1


def test_a_numbered_device_is_not_shared_by_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match=r"'cuda:0' would serve several of the 2 ranks\. Try --device cuda"):
        pick_device("cuda:0")
    assert pick_device("cpu").type == "cpu"
