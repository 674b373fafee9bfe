from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from attar.utils.locks import alone_at, take_lock
from small_runs import environment

HOLDER = """
import sys, time
from pathlib import Path
from attar.utils.locks import alone_at
with alone_at(Path(sys.argv[1])):
    print("here", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(path: Path, seconds: float) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", HOLDER, str(path), str(seconds)]
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


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
