from __future__ import annotations

import time
from pathlib import Path

from attar.utils.locks import alone_at, take_lock
from small_runs import holder


def test_one_process_waits_for_the_other(tmp_path: Path) -> None:
    path = tmp_path / "entry" / "lock"
    with holder(path, 1.0) as process:
        with path.open("a+") as file:
            assert not take_lock(file)
        with alone_at(path):
            assert process.poll() is not None or process.wait(5) == 0


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path, 60) as process:
        process.kill()
        process.wait()
        started = time.monotonic()
        with alone_at(path):
            assert time.monotonic() - started < 5
