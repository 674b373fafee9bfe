"""Ranks: one that is killed or stopped ends the job soon, with the first cause, and the restart goes on exactly."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults.harness import STEPS, Trial, chance, differences, distil_words, numbered, outcome
from benchmarks.faults.signals import _of_session

PATIENCE_S = 15  # that a rank waits for the others
_LIMITS_S = {signal.SIGKILL: 30.0, signal.SIGSTOP: PATIENCE_S + 10.0}
_WORDS = ("--parallel.timeout-s", str(PATIENCE_S), "--workers", "1")


def lost_rank(folder: Path, *, trials: int, seed: int, only: int | None) -> Iterator[Trial]:
    """One of two gloo ranks, with a data worker each, is killed or stopped at a random step: the job ends within 30
    seconds, or the time-out and ten more, says why, leaves no process, and the same command ends with the undisturbed
    bytes (check e)."""
    assert _to_its_end(folder / "golden").returncode == 0
    golden = outcome(folder / "golden")
    for number in numbered(trials, only):
        rng, began = chance(seed, number), time.monotonic()
        what, step = rng.choice(list(_LIMITS_S)), rng.randint(2, STEPS - 3)
        run = folder / f"run-{number}"
        problem, seconds = _disturbed(run, what, step, victim=rng.randrange(2))
        again = _to_its_end(run)
        problem = problem or (f"the restart ended with {again.returncode}" if again.returncode else "")
        problem = problem or differences(outcome(run), golden)
        fault = f"{what.name} after step {step}, over in {seconds:.1f} s"
        yield Trial(number, fault, "wrong" if problem else "recovered", problem, time.monotonic() - began)
        if not problem:
            shutil.rmtree(run)


def _command(run: Path) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--", "attar"]
    return [sys.executable, *launcher, *distil_words(run, *_WORDS)]


def _to_its_end(run: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(_command(run), env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def _disturbed(run: Path, what: signal.Signals, step: int, *, victim: int) -> tuple[str, float]:
    """(what went otherwise than it should, seconds from the signal to the end of the job)."""
    log = run.parent / f"{run.name}.log"
    with log.open("wb") as file:
        job = subprocess.Popen(_command(run), env=_environment(), stdout=file, stderr=file, start_new_session=True)
    while _steps(run) < step:
        if job.poll() is not None:
            return f"ended with {job.returncode} before step {step}: {log.read_text()[-400:]}", 0.0
        time.sleep(0.01)
    ranks = _ranks(job.pid)
    os.kill(ranks[victim], what)
    sent = time.monotonic()
    try:
        job.wait(_LIMITS_S[what] + 30)
    except subprocess.TimeoutExpired:
        for leader in (job.pid, *ranks):
            with contextlib.suppress(OSError):
                os.killpg(leader, signal.SIGKILL)
        return "the job never ended", time.monotonic() - sent
    seconds = time.monotonic() - sent
    said, left = log.read_text(errors="replace"), _left({job.pid, *ranks})
    if seconds > _LIMITS_S[what]:
        return f"it took {seconds:.1f} s", seconds
    if job.returncode == 0:
        return "the job ended with 0", seconds
    if "LostRankError" not in said and "Signal 9" not in said:
        return f"no reason is said: {said[-600:]}", seconds
    return (f"left behind: {left}" if left else ""), seconds


def _steps(run: Path) -> int:
    file = run / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def _ranks(launcher: int) -> list[int]:
    """Processes of the ranks, in their order; torchrun gives each a session of its own."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            words = (entry / "environ").read_text().split("\0") if parent == launcher else []
            found |= {int(word.removeprefix("RANK=")): int(entry.name) for word in words if word.startswith("RANK=")}
    return [found[rank] for rank in sorted(found)]


def _left(sessions: set[int]) -> list[int]:
    """Processes of the job that live two seconds after it; a stopped one is woken to see its signal."""
    for _ in range(20):
        living = [pid for session in sessions for pid in _of_session(session)]
        if not living:
            return []
        time.sleep(0.1)
    return living
