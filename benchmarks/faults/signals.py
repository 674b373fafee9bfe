"""Signals and second writers: asked to stop in any phase a run saves, says so and leaves nobody behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.faults.harness import (
    STEPS,
    Ended,
    Trial,
    chance,
    differences,
    distil_words,
    forked,
    left_behind,
    numbered,
    outcome,
)

_WATCHED = ("--monitor", "playground:1?n=140", "--monitoring.every", "10", "--monitoring.k", "3", "--workers", "2")
PHASES = {  # a phase begins when this stands in the log of the run
    "starting": "",
    "baselines": "  monitor  ",
    "first steps": "step 1 ",
    "training": f"step {STEPS // 2} ",
    "last steps": f"step {STEPS - 2} ",
    "judging": f"step {STEPS} ",
}
_SOON_S = 30.0


def asked_to_stop(folder: Path, *, trials: int, seed: int, only: int | None) -> Iterator[Trial]:
    """SIGTERM or SIGINT in each phase of a run with a monitor and two data workers: it ends with 143 or 130 within 30
    seconds (0 where it had just finished), no process stays, and the same command ends with the undisturbed bytes
    (check d)."""
    golden_at = folder / "golden"
    ended = forked(distil_words(golden_at, *_WATCHED), log=folder / "golden.log")
    assert ended.code == 0, ended.said
    golden = outcome(golden_at)
    for number in numbered(trials, only):
        rng = chance(seed, number)
        phase = list(PHASES)[number % len(PHASES)]
        what = rng.choice((signal.SIGTERM, signal.SIGINT))
        run, log = folder / f"run-{number}", folder / f"run-{number}.log"
        sent: list[float] = []
        began = time.monotonic()
        ask = asking(phase, what, rng.uniform(0, 0.1), log, sent)
        ended = forked(distil_words(run, *_WATCHED), before=os.setsid, while_running=ask, log=log)
        latency = time.monotonic() - sent[0] if sent else 0.0
        problem = _stopped_rightly(ended, what, latency) or _orphans(sent)
        again = forked(distil_words(run, *_WATCHED), log=log)
        problem = problem or (f"exit code {again.code}: {again.said[-300:]}" if again.code else "")
        problem = problem or differences(outcome(run), golden) or ", ".join(left_behind(run))
        fault = f"{what.name} in {phase}, ended after {latency:.2f} s"
        yield Trial(number, fault, "wrong" if problem else "recovered", problem, time.monotonic() - began)
        if not problem:
            shutil.rmtree(run)


def asking(phase: str, what: signal.Signals, later: float, log: Path, sent: list[float]) -> Callable[[int], None]:
    """Send a signal to a fork a little after a phase has begun; `sent` gets the time, and the fork's number."""

    def ask(pid: int) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until and not _has_ended(pid):
            if not PHASES[phase] or (log.exists() and PHASES[phase] in log.read_text(errors="replace")):
                break
            time.sleep(0.002)
        time.sleep(later)
        if not _has_ended(pid):
            sent[:] = [time.monotonic(), pid]
            os.kill(pid, what)

    return ask


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _stopped_rightly(ended: Ended, what: signal.Signals, latency: float) -> str:
    said = ended.said.strip().splitlines()
    last = said[-1] if said else ""
    if ended.code not in (0, 128 + what):
        return f"exit code {ended.code}: {last}"
    if ended.code and "stopped by" not in last:
        return f"its last line is: {last}"
    if "Traceback" in ended.said:
        return f"a traceback: {ended.said[-500:]}"
    return f"it took {latency:.1f} s" if latency > _SOON_S else ""


def _orphans(sent: list[float]) -> str:
    """Processes of the fork's session that live a second after it."""
    if not sent:
        return ""
    time.sleep(0.2)
    session = int(sent[1])
    for _ in range(40):
        living = list(_of_session(session))
        if not living:
            return ""
        time.sleep(0.1)
    return f"left behind: {living}"


def _of_session(session: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                yield int(entry.name)


def two_at_once(folder: Path, *, trials: int, seed: int, only: int | None) -> Iterator[Trial]:
    """The same command twice in one directory, started within half a second: one runs to its end, the other is refused
    by name, and nothing is mixed (check f)."""
    golden_at = folder / "golden"
    assert forked(distil_words(golden_at), log=folder / "golden.log").code == 0
    golden = outcome(golden_at)
    for number in numbered(trials, only):
        rng, began = chance(seed, number), time.monotonic()
        run, later = folder / f"run-{number}", rng.uniform(0, 0.5)
        logs = [folder / f"run-{number}-{which}.log" for which in ("one", "other")]
        second: list[Ended] = []
        one = forked(distil_words(run), while_running=_starting(second, run, later, logs[1]), log=logs[0])
        problem = _one_of_two(one, second[0]) or differences(outcome(run), golden) or ", ".join(left_behind(run))
        fault = f"two commands {later:.3f} s apart"
        yield Trial(number, fault, "wrong" if problem else "recovered", problem, time.monotonic() - began)
        if not problem:
            shutil.rmtree(run)


def _starting(second: list[Ended], run: Path, later: float, log: Path) -> Callable[[int], None]:
    def start(_pid: int) -> None:
        time.sleep(later)
        second.append(forked(distil_words(run), log=log))

    return start


def _one_of_two(one: Ended, other: Ended) -> str:
    codes = sorted((one.code, other.code))
    if codes != [0, 2]:
        return f"exit codes {codes}: {one.said[-200:]} / {other.said[-200:]}"
    refused = other if other.code == 2 else one
    return "" if "is in use by process" in refused.said else f"refused otherwise: {refused.said[-300:]}"
