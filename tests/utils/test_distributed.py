"""Ranks meet, also after a restart, in a store that remembers those before them."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist

from attar.errors import ConfigError
from attar.utils.distributed import _agree_on_name, pick_device
from small_runs import environment

SLOW_MAIN = """
import sys, time, torch
from attar.utils.distributed import from_main, process_group, rank
def slow():
    time.sleep(4)
    return "done"
with process_group(torch.device("cpu"), timeout_s=2):
    found = [from_main(slow, patience_s=60), from_main(lambda: "soon", patience_s=60), from_main(lambda: "now")]
    sys.stdout.write(f"<{rank()} {' '.join(found)}>\\n")
"""


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


@pytest.mark.slow
def test_the_main_rank_may_take_longer_than_the_groups_timeout(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_MAIN)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(tmp_path / "slow.py")]
    done = subprocess.run(
        [sys.executable, *launcher],
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(f"<{rank} done soon now>" in done.stdout for rank in (0, 1))
